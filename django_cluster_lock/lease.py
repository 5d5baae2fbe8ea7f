"""A lease as its holder knows it, and who the holder is."""

import _thread
import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import ReferenceType, ref

from django_cluster_lock import protocol, scripts
from django_cluster_lock.errors import LockError, LockLost
from django_cluster_lock.names import Keys
from django_cluster_lock.protocol import Batch, Call, Flow, Grant, Replies, Step, Terms

T = TypeVar("T")
Run: TypeAlias = Callable[[Flow[Replies]], Replies]


class Thread:
    """Stands for a thread or greenlet, and goes when that ends. Its ident may be another's then, this never is."""

    __slots__ = ("__weakref__",)


_here = threading.local()


class Place(NamedTuple):
    """Where code runs: a thread or greenlet and, in an event loop, the asyncio task. Neither is kept alive."""

    thread: ReferenceType[Thread]
    task: ReferenceType[asyncio.Task[Any]] | None

    @classmethod
    def here(cls) -> "Place":
        """Return the place of the caller."""
        thread = _this_thread()
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs here
            return thread
        return thread if task is None else cls(thread.thread, ref(task))

    @property
    def task_is_done(self) -> bool:
        """Tell whether it is in a task, and that has ended."""
        if self.task is None:
            return False
        task = self.task()
        return task is None or task.done()


def _this_thread() -> Place:
    """Return this thread or greenlet as a place outside of any task."""
    global _here  # noqa: PLW0603
    if type(_here) is not threading.local:  # gevent has patched it since
        _here = threading.local()
    try:
        found: Place = _here.place
    except AttributeError:
        _here.thread = Thread()
        found = _here.place = Place(ref(_here.thread), None)
    return found


class Lease:
    """The time-limited right to one lock. Times are seconds of this process's monotonic clock.

    It is trusted until `valid_until`, which renewals move on and which never lies later than the server's deadline.
    `lost` says why it ended early, if it did; `given_up` that its holder gave it up; `place` where it is held;
    `keeper` what it goes back to, if it was taken over from there; `on_freed` is called once its lock was freed.
    `turn` orders its guarded writes. `rescue`, if any, frees the lock if the lease is dropped while it is held.
    """

    __slots__ = (
        "__weakref__",
        "given_up",
        "grant",
        "hold_until",
        "keeper",
        "lost",
        "on_freed",
        "on_lost",
        "pid",
        "place",
        "rescue",
        "terms",
        "turn",
        "valid_until",
    )

    def __init__(self, grant: Grant, terms: Terms, *, max_hold: float, place: Place) -> None:
        self.rescue: Rescue | None = None
        self.grant = grant
        self.terms = terms
        self.valid_until = grant.valid_until
        self.hold_until = grant.valid_until - terms.timeout + max_hold
        self.lost = ""
        self.given_up = False
        self.place = place
        self.keeper: object = None
        self.on_lost: list[Callable[[Lease], None]] = []
        self.on_freed: Callable[[], None] | None = None
        self.pid = os.getpid()
        self.turn = 0

    @property
    def name(self) -> str:
        """The name of its lock."""
        return self.grant.keys.name

    @property
    def slot(self) -> int:
        """The slot of its lock."""
        return self.grant.keys.slot

    @property
    def closed(self) -> bool:
        """Tell whether it is not renewed any more: it was given up, or its thread has ended."""
        return self.given_up or self.place.thread() is None

    def free_if_dropped(self, run: Run) -> None:
        """Have the lock freed when nobody has the lease any more."""
        if self.rescue is None:
            self.rescue = Rescue(run)
            self.rescue.asked[self.grant.token] = self.grant.keys

    def close(self) -> None:
        """Give it up for good; whoever calls this sees to the lock."""
        self.given_up = True
        if self.rescue:
            self.rescue.disarm()

    def renewed(self, grant: Grant) -> None:
        """Takes over a renewal; never shortens."""
        self.grant = grant
        self.valid_until = max(self.valid_until, grant.valid_until)

    def trouble(self, now: float | None = None) -> str:
        """Why the lease cannot be trusted any more; empty while it can."""
        if not self.lost and (time.monotonic() if now is None else now) >= self.valid_until:
            self.lost = "its time ended before it was renewed"
        return self.lost

    def lose(self, reason: str) -> None:
        """Marks it as lost and tells those who asked to know: once, though both holder and renewer may notice it."""
        self.lost = reason
        while self.on_lost:
            self.on_lost.pop(0)(self)


def letting_go(leases: Sequence[Lease], *, patience: float) -> Flow[None]:
    """Frees what was held. Each lease is closed first, so that no renewal counts any more.

    Raises:
        LockLost: one had ended before. LockUnavailable: Redis could not be told.
    """
    now = time.monotonic()
    for lease in leases:
        lease.given_up = True
        lease.trouble(now)
    grants = [lease.grant for lease in leases]
    ends = [lease.valid_until for lease in leases]
    times = {
        "deadline": now + patience,
        "valid_until": min(ends),
        "lingers": max(max(ends) - now, 0.0) if leases[0].terms.lingers else 0.0,
    }
    try:
        if len(grants) == 1:
            released = yield from protocol.release(grants[0], **times)
            failed: list[Grant | LockError] = [] if released else list(grants)
        else:
            failed = yield from protocol.release_all(grants, **times)
    except (LockError, asyncio.CancelledError):  # what could be done is done
        for lease in leases:
            lease.close()
        raise
    for lease in leases:
        lease.close()
    for lease in leases:
        if lease.on_freed:
            lease.on_freed()
    for failure in failed:
        if isinstance(failure, LockError):
            raise failure
    for lease, grant in zip(leases, grants, strict=True):  # a renewal may have given the lease another meanwhile
        if reason := lease.lost or ("Redis no longer knew its lease" if grant in failed else ""):
            raise LockLost(lease.name, reason)


class _Disarmed:
    """A rescue that has nothing to do any more."""

    __slots__ = ("asked", "pid", "run")


class Rescue(_Disarmed):
    """Frees leases, or what may become one, if it is dropped before it was disarmed.

    An exception of a signal may come at any line, and where no code can see it, as at the entry of ``__exit__``. Once
    that was handled, nothing refers to the lease any more.
    """

    __slots__ = ()

    def __init__(self, run: Run) -> None:
        self.run, self.pid = run, os.getpid()
        self.asked: dict[bytes, Keys] = {}  # by their tokens

    def __del__(self) -> None:
        if getattr(self, "asked", None) and self.pid == os.getpid() and not sys.is_finalizing():
            with suppress(RuntimeError):  # too many threads: the leases end by themselves
                # In a thread, since garbage is collected amid anything; and not by `threading`, which may be locked.
                _thread.start_new_thread(_cancel, (self.run, self.asked))

    def disarm(self) -> None:
        """Do nothing when it is dropped. Without its class there is no finaliser, in which a signal would be lost."""
        self.__class__ = _Disarmed  # type: ignore[assignment]

    def watch(self, flow: Flow[T]) -> Flow[T]:
        """Return the flow, noting the leases that it asks for and takes back."""
        reply: object = None
        error: BaseException | None = None
        while True:
            try:
                step = flow.throw(error) if error else flow.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            finally:
                error = None  # which refers to this frame: else both would wait for the collector of garbage
            self._note(step)
            try:
                reply = yield step
                self._note(step, answered=True)
            except BaseException as raised:
                error = raised

    def _note(self, step: Step, *, answered: bool = False) -> None:
        for call in (step,) if isinstance(step, Call) else step.calls:
            if call.script is scripts.RELEASE:
                if answered:
                    self.asked.pop(call.args[0], None)
            else:
                self.asked[call.args[1 if call.script is scripts.ATTACH else 0]] = call.keys


def _cancel(run: Run, asked: dict[bytes, Keys]) -> None:
    with suppress(Exception):
        run(protocol.ask_all(Batch([protocol.give_up(keys, token, mark=True) for token, keys in asked.items()])))
