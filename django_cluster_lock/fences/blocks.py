"""The transaction that shows fences before it does anything else."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from django.db import connections, transaction
from django.utils.asyncio import async_unsafe

from django_cluster_lock.fences.rows import Showing, database, retried, show

_IN_A_LOOP = (
    "lock.atomic() cannot be used in async code, since Django has no transactions there: put the block into a "
    "function, and call it by 'await sync_to_async(function)(...)' while the lock is held."
)


@contextmanager
def atomic(showings: Sequence[Showing], using: str | None = None) -> Iterator[None]:
    """A transaction that the database lets begin only if no later lease of the locks has shown its fence.

    A beginning that fails for what passes is repeated, for a while: a serialization failure, a deadlock, a busy file.

    Args:
        using: the database; by default the one that the routers have for the table of fences.

    Raises:
        StaleFence: as `show`.
        RuntimeError: a transaction is open already.
        django.core.exceptions.ImproperlyConfigured: the table is missing.
    """
    using = database() if using is None else using
    _refuse_to_nest(using, ", ".join(repr(showing.name) for showing in showings))
    with ExitStack() as stack:
        retried(lambda: _begin(stack, showings, using), connections[using])
        yield


def _begin(stack: ExitStack, showings: Sequence[Showing], using: str) -> None:
    """Begins the transaction and shows the fences, or rolls it back.

    It is the stack's from the beginning: a signal's exception, at just any line, must not leave it open.
    """
    try:
        stack.enter_context(transaction.atomic(using=using, durable=True))
        show(showings, using)
    except BaseException as error:
        stack.__exit__(type(error), error, error.__traceback__)
        raise


@async_unsafe(_IN_A_LOOP)
def _refuse_to_nest(using: str, names: str) -> None:
    connection = connections[using]
    if connection.in_atomic_block:
        # Those of a TestCase stand for no transaction.
        if not getattr(connection.atomic_blocks[-1], "_from_testcase", False):
            raise RuntimeError(
                f"lock.atomic() of {names} is to be the transaction on {using!r}, but one is open there. Take the lock "
                "first and put lock.atomic() in the place of transaction.atomic(); for several locks use "
                "cache_lock([...]). The view that cache_lock decorates has it open already under ATOMIC_REQUESTS."
            )
    elif not connection.get_autocommit():
        raise RuntimeError(
            f"lock.atomic() of {names} is to be the transaction on {using!r}, where autocommit is off, so that one is "
            "open always. Switch it on."
        )
