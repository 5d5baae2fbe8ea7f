"""What a lost lease does to the run under it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from django.db import connections

from django_cluster_lock.flights.policy import Policy
from django_cluster_lock.lock import Lock

SIGNAL = signal.SIGUSR1  # of Celery's soft time limit, whose handler is called for it as before


@contextmanager
def aborting(lock: Lock, policy: Policy) -> Iterator[None]:
    """Raises LockLost in the block, once the lease is lost: at its next database statement, else at its end."""
    if policy.on_lost == "tell":
        yield
        return

    def guard(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        if not str(sql).startswith(("ROLLBACK", "RELEASE")):  # which undo what was done
            lock.raise_if_lost()
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for connection in connections.all():
            stack.enter_context(connection.execute_wrapper(guard))
        if policy.on_lost == "interrupt":
            stack.enter_context(_interrupting(lock))
        yield
    lock.raise_if_lost()


@contextmanager
def _interrupting(lock: Lock) -> Iterator[None]:
    """Also raises it between two lines of Python, where the worker has its main thread for one task."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(SIGNAL)
    running = True

    def interrupt(_: object) -> None:
        if running:
            os.kill(os.getpid(), SIGNAL)

    def raise_if_lost(number: int, frame: FrameType | None) -> None:
        if running:
            lock.raise_if_lost()
        if callable(before):
            before(number, frame)

    lock.when_lost(interrupt)
    signal.signal(SIGNAL, raise_if_lost)
    try:
        yield
    finally:
        running = False
        signal.signal(SIGNAL, before)
