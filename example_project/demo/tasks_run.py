"""The tasks' part of the demo: two floods of calls, which differ by the decorator alone."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from demo.processes import CONCURRENCY, PAYMENTS, Servers, Shop, running_shop
from demo.report import Progress
from demo.tasks_account import TaskAccount, task_account_of
from demo.tasks_faults import kill_a_primary_of_flights, kill_a_run
from demo.tasks_flood import TaskFlood, calls_for
from django_cluster_lock import embedded
from shop.samples import create_events, create_tickets

CALLERS, WORKERS = 4, 2
SEATS = 10  # of each event
GUARDED, UNGUARDED = "", "_unguarded"


@dataclass
class TaskFloods:
    folder: Path
    calls: int
    seed: int
    kill: bool
    lock: bool

    def run(self, servers: Servers) -> tuple[TaskAccount, TaskAccount]:
        """The accounts of the flood with single flight and of that without it."""
        with (
            ThreadPoolExecutor(1) as pool,
            running_shop(self.folder, servers, web=1, workers=WORKERS, callers=CALLERS) as shop,
        ):
            print(
                f"{self.calls} calls of tasks from {CALLERS} processes to {WORKERS} workers of {CONCURRENCY} "
                "processes each, twice."
            )
            suffix = GUARDED if self.lock else UNGUARDED
            guarded = self.flood("single flight", suffix, shop, pool, servers.cluster)
            return guarded, self.flood("without it", UNGUARDED, shop, pool, None)

    def flood(
        self, title: str, suffix: str, shop: Shop, pool: ThreadPoolExecutor, cluster: embedded.Cluster | None
    ) -> TaskAccount:
        """One flood; with a cluster, one of its primaries is killed too."""
        events = create_events(capacity=SEATS)
        calls = calls_for(events, create_tickets(events, SEATS), max(self.calls // CALLERS, 1), self.seed)
        guarded = cluster is not None
        with TaskFlood(shop, self.folder, calls, suffix) as flood:

            def go_wrong() -> None:
                if flood.reached(0.1):
                    flood.killed = kill_a_run(shop, guarded=guarded and self.lock)
                if cluster and self.lock and flood.reached(0.35):
                    flood.primary = kill_a_primary_of_flights(cluster, flood.keys, lambda: flood.stopped)

            going_wrong = pool.submit(go_wrong) if self.kill else None
            progress = Progress(lambda: progress_of(title, flood))
            while flood.under_way:
                flood.look()
                progress.show()
                time.sleep(0.1)
            flood.finish()
            progress.show(last=True)
            if going_wrong:
                going_wrong.result()
        return task_account_of(flood, self.folder / PAYMENTS, kill_wanted=self.kill, guarded=guarded)


def progress_of(title: str, flood: TaskFlood) -> str:
    return (
        f"{title:>13}: {time.monotonic() - flood.began:4.1f} s, {len(flood.made):4} of {flood.total} calls made, "
        f"{len(flood.begun)} runs, {len(flood.closed)} calls answered"
    )
