"""The demo: two floods, which differ by the lock alone, and their account."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from demo.account import Account, account_of
from demo.database import new_database
from demo.faults import Faults, kill_a_primary, kill_a_web_process
from demo.flood import BUYERS, SOLD, Flood, orders_for
from demo.processes import ANSWERS, PAYMENTS, WEB_PROCESSES, Servers, listener, running_shop
from demo.report import Progress, report
from demo.tasks_report import report_tasks
from demo.tasks_run import TaskFloods
from django_cluster_lock import embedded
from shop.samples import create_events

GUARDED, UNGUARDED = "/api/events/{}/tickets/", "/api/events/{}/tickets/unguarded/"


@dataclass
class Demo:
    folder: Path
    requests: int
    calls: int
    seconds: float
    seed: int
    kill: bool
    lock: bool

    def run(self) -> bool:
        """Whether no guarantee was broken in the floods with the lock."""
        began = time.monotonic()
        sound = True
        with new_database(self.folder), self.servers() as servers:
            print(f"A cluster of {len(servers.cluster.ports)} nodes and an empty database are ready.")
            print(f"Watch the shop at http://127.0.0.1:{servers.web.getsockname()[1]}/locks/ meanwhile.\n")
            if self.requests:
                print(f"{self.requests} requests, {BUYERS} at a time, to {WEB_PROCESSES} web processes, twice.")
                guarded = self.flood("with the lock", GUARDED if self.lock else UNGUARDED, servers, guarded=True)
                control = self.flood("without it", UNGUARDED, servers, guarded=False)
                print(*report(guarded, control), "", sep="\n")
                sound = not guarded.breaches
            if self.calls:
                tasks = TaskFloods(self.folder, self.calls, self.seed, kill=self.kill, lock=self.lock)
                guarded_tasks, control_tasks = tasks.run(servers)
                print(*report_tasks(guarded_tasks, control_tasks), "", sep="\n")
                sound = sound and not guarded_tasks.breaches
        print(f"All of it took {time.monotonic() - began:.0f} s.")
        return sound

    @contextmanager
    def servers(self) -> Iterator[Servers]:
        """A cluster and a broker of our own, which would stop even if we were killed."""
        with ExitStack() as stack:
            for name in "cluster", "broker":
                stack.callback(embedded.down, self.folder / name)
            cluster = embedded.up(self.folder / "cluster", owner=True)
            settings.CLUSTER_LOCKS["default"]["LOCATION"] = cluster.urls  # before anything here asks for a lock
            broker = embedded.up(self.folder / "broker", cluster=False, owner=True)
            yield Servers(cluster, f"{broker.urls[0]}/0", stack.enter_context(listener()))

    def flood(self, title: str, path: str, servers: Servers, *, guarded: bool) -> Account:
        """One flood; where the lock is at work, a primary that has locks is killed too."""
        log, payment_log = self.folder / "log", self.folder / PAYMENTS
        events = [event.pk for event in create_events(capacity=max(self.requests // 36, 1))]
        faults = Faults(wanted=self.kill)
        with (
            ThreadPoolExecutor(1) as pool,
            running_shop(self.folder, servers) as shop,
            Flood(shop.port, path, orders_for(events, self.requests, self.seed)) as flood,
        ):

            def go_wrong() -> None:
                faults.web = kill_a_web_process(shop, flood)
                if guarded:
                    faults.primary = kill_a_primary(servers.cluster, events, flood)

            going_wrong = pool.submit(go_wrong) if faults.wanted else None
            progress = Progress(lambda: progress_of(title, flood))
            while flood.under_way and time.monotonic() < flood.began + self.seconds:
                progress.show()
                time.sleep(0.1)
            flood.finish()
            progress.show(last=True)
            if going_wrong:
                going_wrong.result()
        flood.note(self.folder / ANSWERS)
        account = account_of(flood, faults, events, payment_log, guarded=guarded)
        if account.failed:
            print("The end of the web processes' log:", *log.read_text().splitlines()[-20:], sep="\n")
        return account


def progress_of(title: str, flood: Flood) -> str:
    answers = flood.by_status
    return (
        f"{title:>13}: {time.monotonic() - flood.began:4.1f} s, {answers.total():4} of {flood.total} requests, "
        f"{answers[SOLD]} tickets sold"
    )
