"""Processes that do nothing but keep cores busy, beside a measurement."""

import multiprocessing
import os
from contextlib import contextmanager

ROUND = 100_000  # additions between two looks at the parent: some milliseconds


@contextmanager
def neighbours(count):
    """Keep so many processes busy for as long as the block lasts."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, args=(os.getpid(),), daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            if process.pid:
                process.terminate()
                process.join()


def _spin(parent):
    while os.getppid() == parent:  # a parent that was killed cannot end its children
        sum(range(ROUND))
