"""What callers and duplicates get: the result of a call that was skipped, and the outcome of another flight."""

from typing import Any, NamedTuple

from celery import Task, states
from celery.backends.base import DisabledBackend
from celery.result import EagerResult

SKIPPED = "SKIPPED"


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
