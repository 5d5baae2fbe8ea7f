"""What is wrong with single-flight tasks, told without making those that Celery has not made yet."""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from celery import Celery, Task, _state

from django_cluster_lock.conf import Problem
from django_cluster_lock.flights.adoption import MARK, adopted, function_of, marked
from django_cluster_lock.flights.policy import POLICY, Policy


class Made(NamedTuple):
    """A task that is made or will be: of which function, its policy, and whether it asks for its result to be kept."""

    function: Any
    policy: Policy | None
    ignores_result: bool | None


def problems() -> Iterator[Problem]:
    """All of them, in the tasks that have been imported."""
    apps = _apps()
    for app in apps:
        yield from _result_problems(app)
    made = [made for app in apps for made in _made(app)]
    unseen = {each.function for each in made if each.policy is None and hasattr(each.function, MARK)}
    for function in sorted(unseen, key=_name):
        yield Problem(
            "W003",
            f"{_name(function)} is marked by single_flight, but its task has a base whose __init_subclass__ does not "
            "call super().",
        )
    of_tasks = {each.function for each in made}
    for function in sorted(marked - adopted, key=_name):
        if function not in of_tasks:
            yield Problem("W003", f"{_name(function)} is marked by single_flight, but there is no task of it.")


def _apps() -> list[Celery]:
    """The project's; Celery's default one only where it has no other."""
    apps = [app for app in _state._get_active_apps() if app is not _state.default_app]  # type: ignore[attr-defined] # noqa: SLF001
    return sorted(apps, key=lambda app: app.main or "") or [_state.get_current_app()]


def _result_problems(app: Celery) -> Iterator[Problem]:
    backend = str(app.conf.result_backend or "disabled").partition(":")[0].partition("+")[0]
    if backend not in ("disabled", "rpc"):
        return
    names = sorted({_name(made.function) for made in _made(app) if made.function and _joins(app, made)})
    if names:
        told = f"duplicates join in {', '.join(names)}, but the Celery app {app.main!r} has"
        yield (
            Problem("E024", f"{told} no result backend.")
            if backend == "disabled"
            else Problem("W002", f"{told} the result backend {backend}://.")
        )


def _joins(app: Celery, made: Made) -> bool:
    ignores = app.conf.task_ignore_result if made.ignores_result is None else made.ignores_result
    return made.policy is not None and made.policy.on_duplicate == "join" and not ignores


def _made(app: Any) -> Iterator[Made]:
    """Tasks made; those that wait until the app is finalized; those that every app makes then."""
    for task in list(app._tasks.values()):  # noqa: SLF001 - `tasks` would finalize the app
        yield Made(function_of(task), getattr(task, POLICY, None), task.ignore_result)
    for promise in list(app._pending):  # noqa: SLF001
        if not promise.__evaluated__():
            yield _to_be_made(function_of(promise), object.__getattribute__(promise, "_Proxy__kwargs"))
    for maker in list(_state._on_app_finalizers):  # type: ignore[attr-defined] # noqa: SLF001
        seen = inspect.getclosurevars(maker).nonlocals
        yield _to_be_made(seen.get("fun"), seen.get("options") or seen.get("opts") or {})


def _to_be_made(function: Any, options: dict[str, Any]) -> Made:
    policy = None if _is_deaf(options.get("base") or Task) else getattr(function, MARK, None)
    return Made(function, policy, options.get("ignore_result"))


def _is_deaf(base: type) -> bool:
    """Whether a base keeps its tasks from adoption: its ``__init_subclass__`` never names that of its own base."""
    hook = getattr(base.__init_subclass__, "__func__", None)
    return inspect.isfunction(hook) and "__init_subclass__" not in hook.__code__.co_names


def _name(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"
