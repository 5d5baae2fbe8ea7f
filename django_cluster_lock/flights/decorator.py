"""`single_flight`: of one Celery task and one key, at most one flight exists at a time."""

from collections.abc import Callable
from typing import Any, TypeVar, overload

from django_cluster_lock.conf import DEFAULT_ALIAS
from django_cluster_lock.flights.adoption import mark
from django_cluster_lock.flights.policy import Key, OnDuplicate, OnLost, OnUnavailable, Policy, Scope
from django_cluster_lock.holding import UNSET, Unset

F = TypeVar("F")


@overload
def single_flight(function: F, /) -> F: ...
@overload
def single_flight(
    *,
    key: Key = ...,
    on_duplicate: OnDuplicate = ...,
    scope: Scope = ...,
    alias: str = ...,
    timeout: float | Unset = ...,
    queue_timeout: float = ...,
    max_hold: float | None = ...,
    on_lost: OnLost = ...,
    on_unavailable: OnUnavailable = ...,
) -> Callable[[F], F]: ...
def single_flight(
    function: Any = None,
    /,
    *,
    key: Key = None,
    on_duplicate: OnDuplicate = "join",
    scope: Scope = "flight",
    alias: str = DEFAULT_ALIAS,
    timeout: float | Unset = UNSET,
    queue_timeout: float = 3600.0,
    max_hold: float | None = None,
    on_lost: OnLost = "abort",
    on_unavailable: OnUnavailable = "raise",
) -> Any:
    """Lets one flight of a Celery task exist for each key, from ``apply_async`` to the end of the run.

    Below or above ``@shared_task`` or ``@app.task``. A call that finds its key in flight is a duplicate. One that
    Celery waits for under an id of its own (``task_id``, a link, a member of a chain, group or chord) is published
    nevertheless. If a worker finds its key in flight, the message is parked in Redis, not in the worker.

    Args:
        key: what makes two calls the same: every argument, those named in a template such as ``"invoice:{number}"``,
            those in a list of names, or what a callable makes of them.
        on_duplicate: what the caller of a duplicate gets: "join", the result of the flight under way; "skip", a
            result without a value; "raise", `DuplicateFlight`; "rerun", the result of the one run that follows, with
            the latest call's arguments; "wait", a run of its own after those before it, first in, first out.
        scope: when the key is taken: "flight", from the call to the end of the run; "queued", until the run starts;
            "running", during the run.
        alias: which entry of CLUSTER_LOCKS the locks belong to.
        timeout: the length of a run's lease in seconds, which is renewed; by default the setting TIMEOUT.
        queue_timeout: for how many seconds a call that waits to be run holds its key, counted from its eta. Later
            its run still is the only one, but duplicates may queue beside it.
        max_hold: how many seconds a run's lease is renewed at most; by default the task's hard time limit or a day.
        on_lost: what a lost lease does to the run: "abort", raise `LockLost` at the next statement to a database and
            at the latest when the task returns; "interrupt", also between two lines of Python, where the worker has
            its main thread for one task; "tell", nothing but the signal and ``current_lock().lost``.
        on_unavailable: what happens while Redis cannot be asked: "raise", the call raises `LockUnavailable` and a
            message comes again later; "run", it goes on without the lock.

    Raises:
        TypeError, ValueError: an argument cannot be used; the message names it.
    """
    policy = Policy(key, on_duplicate, scope, alias, timeout, queue_timeout, max_hold, on_lost, on_unavailable)

    def decorate(target: Any) -> Any:
        mark(target, policy)
        return target

    return decorate if function is None else decorate(function)
