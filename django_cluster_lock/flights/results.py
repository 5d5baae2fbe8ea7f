"""What callers and duplicates get: the result of a call, of one that was skipped, and the outcome of another flight."""

import base64
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from celery import Task, states
from celery.backends.base import DisabledBackend
from celery.result import AsyncResult, EagerResult
from kombu.serialization import dumps, loads
from kombu.utils.encoding import str_to_bytes

SKIPPED = "SKIPPED"
LONGEST_CARRIED = 16384  # bytes of an outcome that travel with a message; a longer one is looked up by the flight's id
Packed: TypeAlias = dict[str, Any]


class FlightResult(AsyncResult):  # type: ignore[type-arg]
    """The result of a call, or of the flight it joined. Revoked, it frees the key at once if the run has not begun.

    It still is of the class that the app or the task has for its results, and is pickled as one of that.
    """

    _class: type["AsyncResult[Any]"]
    _leave: Callable[[], None] | None = None

    @classmethod
    def of(cls, result: "AsyncResult[Any]", leave: Callable[[], None]) -> "FlightResult":
        """The result itself, which from now on is one of these too.

        Args:
            leave: frees the key, if that is still queued.
        """
        own: Any = result
        if not isinstance(own, cls):
            own.__class__ = _also_of_flights(own.__class__)
        flight: FlightResult = own
        flight._leave = leave
        return flight

    def revoke(self, *args: Any, **options: Any) -> None:
        """Tells the workers to drop the message, as Celery's does, and frees the key, unless the run has begun."""
        super().revoke(*args, **options)
        if self._leave:
            self._leave()

    def __reduce__(self) -> Any:
        reduced: Any = super().__reduce__()
        make, *rest = reduced
        return (self._class if make is self.__class__ else make), *rest


@lru_cache
def _also_of_flights(cls: type["AsyncResult[Any]"]) -> type[FlightResult]:
    return type(cls.__name__, (FlightResult, cls), {"_class": cls, "__module__": cls.__module__})


class SkippedResult(EagerResult):  # type: ignore[type-arg]
    """The result of a call that was skipped: ready, without a value, under the id of the flight under way."""

    def __init__(self, flight_id: str) -> None:
        super().__init__(flight_id, None, SKIPPED)

    @property
    def flight_id(self) -> str:
        """The task under way; empty if it runs inline."""
        return self.id

    def get(self, *_: Any, **__: Any) -> None:
        """Nothing, at once."""

    def __reduce_args__(self) -> tuple[str]:  # type: ignore[override]
        return (self.id,)


class Outcome(NamedTuple):
    """How a flight ended: what it returned or raised."""

    value: Any
    error: BaseException | None = None

    def give(self) -> Any:
        """Returns or raises it."""
        if self.error:
            raise self.error
        return self.value

    def packed(self, task: "Task[..., Any]") -> Packed | None:
        """As it travels with a message: itself, or the id to look it up by. None if it cannot be had otherwise."""
        backend: Any = task.backend
        content = backend.prepare_exception(self.error) if self.error else self.value
        try:
            content_type, encoding, data = dumps(content, backend.serializer)
        except Exception:
            return None
        raw = str_to_bytes(data)
        if len(raw) > LONGEST_CARRIED:
            with suppress(Exception):  # a backend that cannot be asked: it is carried, however long it is
                if outcome_of(task, task.request.id or ""):
                    return {"of": task.request.id}
        carried = [base64.b64encode(raw).decode(), content_type, encoding]
        return {"failed": self.error is not None, "content": carried}

    @classmethod
    def unpacked(cls, task: "Task[..., Any]", packed: Packed) -> "Outcome":
        """What was packed itself."""
        backend: Any = task.backend
        data, content_type, encoding = packed["content"]
        content = loads(base64.b64decode(data), content_type, encoding, accept=backend.accept)
        return cls(None, backend.exception_to_python(content)) if packed["failed"] else cls(content)


def looked_up_at(packed: Packed) -> str:
    """The task whose stored outcome it is; empty if it was packed itself."""
    return str(packed.get("of") or "")


def outcome_of(task: "Task[..., Any]", task_id: str) -> Outcome | None:
    """The outcome of a task, if the result backend has one."""
    if isinstance(task.backend, DisabledBackend):
        return None
    meta = task.backend.get_task_meta(task_id, cache=False)
    if meta["status"] == states.SUCCESS:
        return Outcome(meta["result"])
    if meta["status"] == states.FAILURE:
        return Outcome(None, meta["result"])
    return None
