import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from contextlib import suppress
from subprocess import Popen, TimeoutExpired
from threading import Event as Flag

from django.conf import settings
from django.core.management import BaseCommand, call_command

from django_cluster_lock import embedded
from shop.models import Event
from shop.samples import create_events

SEATS = 50  # of each event
WORKER = (sys.executable, "-m", "celery", "-A", "ticketshop", "worker", "--concurrency=2", "--loglevel=INFO")


class Command(BaseCommand):
    help = "Runs the shop to try it by hand, until Ctrl-C: its web server, a Celery worker, and the servers they need."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000", help="of the web server (%(default)s)")

    def handle(self, *, address: str, **_: object) -> None:
        call_command("migrate", verbosity=0)
        if not Event.objects.exists():
            create_events(capacity=SEATS)
        environment = {**os.environ, **servers()}
        web = (sys.executable, str(settings.BASE_DIR / "manage.py"), "runserver", "--noreload", address)
        closing = asked_to_close()
        self.stdout.write(f"The shop opens at http://{address}/ and closes with Ctrl-C.")
        with (
            Popen(WORKER, cwd=settings.BASE_DIR, env=environment) as worker,
            Popen(web, cwd=settings.BASE_DIR, env=environment) as server,
        ):
            while server.poll() is None and not closing.wait(0.1):
                pass
            server.terminate()  # in a terminal, Ctrl-C has told them too
            worker.terminate()
            with suppress(TimeoutExpired):
                server.wait(10)
            server.kill()  # a browser's open connection may keep it
        if server.returncode > 0:  # it did not start, and has said why
            sys.exit(server.returncode)


def asked_to_close() -> Flag:
    """Set the flag on a signal that asks to close.

    A signal that was ignored at the start stays so: SIGINT in a script's background, SIGHUP under ``nohup``.
    """
    closing = Flag()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda *_: closing.set())
    return closing


def servers() -> Mapping[str, str]:
    """Where the locks and the broker are: what the environment does not name is started, and stops with us."""
    found = {}
    folder = embedded.state_directory(settings.BASE_DIR)
    if not os.environ.get("LOCK_SERVERS"):
        found["LOCK_SERVERS"] = ",".join(embedded.up(folder, owner=True).urls)
    if not os.environ.get("CELERY_BROKER"):
        broker = embedded.up(folder.with_name(f"{folder.name}-broker"), cluster=False, owner=True)
        found["CELERY_BROKER"] = f"{broker.urls[0]}/0"
    return found
