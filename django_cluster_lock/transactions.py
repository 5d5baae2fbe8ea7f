"""A lock must not come free before the transaction that wrote under it has ended."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest

MARKS = "_non_atomic_requests"  # where Django looks up for which databases a view wants no transaction


class OpensItsOwn(set[str]):
    """Marks a view that opens the request's transactions itself: to Django it wants none for any database.

    What it holds are the databases for which the view's author wants none.
    """

    def __contains__(self, _: object) -> bool:
        return True


def open_connections() -> list[BaseDatabaseWrapper]:
    """The connections with an open transaction here. One that a TestCase opened never commits: it does not count."""
    return [
        connection
        for connection in connections.all(initialized_only=True)
        if connection.in_atomic_block and not all(map(_from_testcase, connection.atomic_blocks))
    ]


def mark(view: Callable[..., Any]) -> None:
    """Keeps Django from opening the request's transactions around a view that has a lock to take first."""
    setattr(view, MARKS, OpensItsOwn(getattr(view, MARKS, ())))


def is_marked(view: object) -> bool:
    return isinstance(getattr(view, MARKS, None), OpensItsOwn)


def wanted(request: HttpRequest) -> list[str]:
    """The databases for which Django would have opened a transaction, had the view of the request not been marked."""
    view = getattr(request.resolver_match, "func", None)
    if not is_marked(view):
        return []
    unwanted = list(getattr(view, MARKS))
    opened = [connection.alias for connection in open_connections()]
    return [
        alias
        for alias, options in connections.settings.items()
        if options["ATOMIC_REQUESTS"] and alias not in unwanted and alias not in opened
    ]


@contextmanager
def on(databases: Iterable[str]) -> Iterator[None]:
    """A transaction on each database."""
    with ExitStack() as stack:
        for alias in databases:
            stack.enter_context(transaction.atomic(using=alias))
        yield


def refuse_async(request: HttpRequest) -> None:
    """Raises what Django raises for an async view that is to be in a transaction."""
    if wanted(request):
        raise RuntimeError("You cannot use ATOMIC_REQUESTS with async views.")


def roll_back_request() -> None:
    """Rolls back the request's transactions that are open around a view that answers with an error."""
    for connection in open_connections():
        if connection.settings_dict["ATOMIC_REQUESTS"]:
            connection.set_rollback(True)


def _from_testcase(block: object) -> bool:
    return bool(getattr(block, "_from_testcase", False))
