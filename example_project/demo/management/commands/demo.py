import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError

from demo.processes import stoppable
from demo.run import Demo


@contextmanager
def folder_for(keep: Path | None) -> Iterator[Path]:
    """The folder for everything that the demo writes."""
    if keep:
        try:
            keep.mkdir(parents=True)
        except OSError as error:
            raise CommandError(
                f"--keep needs the name of a folder that does not exist yet: {error}", returncode=2
            ) from error
        yield keep.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="ticket-shop-") as folder:
            yield Path(folder)


class Command(BaseCommand):
    help = (
        "Floods the shop with requests and calls, with the lock and without it, kills processes, and does the accounts."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--requests", type=int, default=3000, help="in each of the two floods (%(default)s)")
        parser.add_argument("--calls", type=int, default=2000, help="of tasks, in each of two floods (%(default)s)")
        parser.add_argument(
            "--seconds", type=float, default=45, help="that a flood of requests lasts at most (%(default)s)"
        )
        parser.add_argument("--seed", type=int, default=1, help="of the buyers' choices (%(default)s)")
        parser.add_argument(
            "--keep", type=Path, metavar="FOLDER", help="keep the logs and the SQLite database, in a new one"
        )
        parser.add_argument("--no-kill", action="store_true", help="let all processes live")
        parser.add_argument("--no-lock", action="store_true", help="leave the lock out of both floods: must fail")

    def handle(self, **options: Any) -> None:
        try:
            with stoppable(), folder_for(options["keep"]) as folder:
                demo = Demo(
                    folder,
                    requests=options["requests"],
                    calls=options["calls"],
                    seconds=options["seconds"],
                    seed=options["seed"],
                    kill=not options["no_kill"],
                    lock=not options["no_lock"],
                )
                passed = demo.run()
        except KeyboardInterrupt:
            print("\nStopped. Nothing is left running.", file=sys.stderr)
            sys.exit(130)
        sys.exit(0 if passed else 1)
