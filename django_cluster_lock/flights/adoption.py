"""Making single-flight tasks of the task classes whose ``run`` is marked, however they are made.

`Task.__init_subclass__` sees every class of tasks, of whichever app, base and decorator. A decorator that stands above
the one that makes the task comes later: it finds the classes made so far and marks the function for those to come.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, NoReturn
from weakref import WeakSet

from celery import Task
from celery._state import _get_active_apps  # type: ignore[attr-defined]
from celery.local import PromiseProxy, Proxy
from celery.utils.imports import symbol_by_name

from django_cluster_lock.flights import started
from django_cluster_lock.flights.policy import POLICY, Policy
from django_cluster_lock.flights.publish import publish
from django_cluster_lock.flights.run import run

MARK = "__single_flight__"  # on functions
OUTERMOST = "_single_flight_"  # on a class, before the name of what was replaced: the class itself
_NAMED = ("args", "kwargs", "task_id", "producer", "link", "link_error", "shadow")  # what Celery takes in this order
marked: WeakSet[Any] = WeakSet()  # the functions that are
adopted: WeakSet[Any] = WeakSet()  # those of which there are tasks


def mark(target: Any, policy: Policy) -> None:
    """Marks the function under a task or decorator, and adopts what tasks of it there are.

    Raises:
        TypeError: it is no function, or has no parameter that the key needs.
    """
    function = function_of(target)
    if not inspect.isroutine(function):
        raise TypeError(f"single_flight decorates a task's function, or a task, not {target!r}")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"single_flight: {function.__qualname__} would run after the task's call has returned")
    policy.check(function)
    setattr(function, MARK, policy)
    marked.add(inspect.unwrap(function))
    if target is not function:
        adopted.add(inspect.unwrap(function))
        for app in _get_active_apps():
            for task in list(app._tasks.values()):  # noqa: SLF001 - `tasks` would finalize the app
                if function_of(task) is function:
                    adopt(type(task), policy)


def adopt(cls: Any, policy: Policy | None = None) -> None:
    """Makes a class of tasks one of single flight, if its ``run`` is marked or a policy is given."""
    own = vars(cls).get("run")
    function = getattr(own, "__func__", own)
    policy = policy or getattr(function, MARK, None)
    if policy is not None and own is not None:
        adopted.add(inspect.unwrap(function))
    if policy is not None or (own is not None and hasattr(cls, POLICY)):  # a `run` of its own, unmarked: no flight
        setattr(cls, POLICY, policy)
    if hasattr(cls, POLICY):
        for name, replaced in _REPLACEMENTS.items():
            _replace(cls, name, replaced)


def _replace(cls: Any, name: str, replaced: Callable[..., Any]) -> None:
    """Replaces what the class brings under this name; in the first class of a line, what it inherits too.

    Each replacement asks the task at hand for its policy, since that of a class below may be another or none.
    """
    outermost = OUTERMOST + name
    if outermost not in vars(cls) and (name in vars(cls) or not hasattr(cls, outermost)):
        setattr(cls, name, replaced(cls, vars(cls).get(name)))
        setattr(cls, outermost, cls)


def _acting(cls: type, name: str, task: Any) -> Policy | None:
    """The task's policy, for the replacement that was called first; one below it only passes the call on."""
    policy: Policy | None = getattr(task, POLICY)
    return policy if getattr(task, OUTERMOST + name) is cls else None


def _publishing(cls: type, own: Callable[..., Any] | None) -> Callable[..., Any]:
    @wraps(own or Task.apply_async)
    def apply_async(  # noqa: PLR0917 - as in Celery
        self: Any,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        send = partial(own, self) if own else super(cls, self).apply_async  # type: ignore[arg-type]
        given = zip(_NAMED, (args, kwargs, task_id, producer, link, link_error, shadow), strict=True)
        options |= {option: value for option, value in given if value is not None}
        policy = _acting(cls, "apply_async", self)
        return publish(self, policy, send, options) if policy else send(**options)

    return apply_async


def _running(cls: type, own: Callable[..., Any] | None) -> Callable[..., Any]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        call = partial(own, self) if own else super(cls, self).__call__  # type: ignore[arg-type]
        policy = _acting(cls, "__call__", self)
        return run(self, policy, call, args, kwargs) if policy else call(*args, **kwargs)

    return __call__


def _requesting(cls: Any, _: Any) -> property:
    """The class of the worker's requests, made where it is asked for: only workers need Celery's."""
    base = cls.Request

    @cache
    def made() -> Any:
        from django_cluster_lock.flights.request import over

        return over(symbol_by_name(base))

    return property(lambda task: made() if getattr(task, POLICY) else base)


_REPLACEMENTS = {
    "apply_async": _publishing,
    "__call__": _running,
    "Request": _requesting,
    "track_started": started.deferred,
}


def function_of(target: Any) -> Any:
    """What a task was made of; anything else is itself.

    Raises:
        TypeError: it is a proxy of something else.
    """
    if type(target) is PromiseProxy and not target.__evaluated__():
        function, *_ = object.__getattribute__(target, "_Proxy__args") or (None,)
        return function or _refuse(target)
    if type(target) is Proxy:  # `shared_task` gives one, which asks the current app each time
        ask = object.__getattribute__(target, "_Proxy__local")
        seen = inspect.getclosurevars(ask).nonlocals if inspect.isfunction(ask) else {}
        return seen.get("fun") or _refuse(target)
    if isinstance(target, Task):
        own = vars(target.__class__).get("run")  # not type(), which may be a proxy's
        return getattr(target, "_decorated_fun", None) or getattr(own, "__func__", own)
    return target


def _refuse(proxy: Any) -> NoReturn:
    raise TypeError(
        f"single_flight decorates a task's function, or what `app.task` or `shared_task` made of one, not a proxy that "
        f"stands for {proxy!r} just now"
    )


def _watch() -> None:
    before = Task.__dict__.get("__init_subclass__")

    def __init_subclass__(cls: Any, /, **options: Any) -> None:  # noqa: N807
        if before:
            before.__get__(None, cls)(**options)
        else:
            super(Task, cls).__init_subclass__(**options)
        adopt(cls)

    Task.__init_subclass__ = classmethod(__init_subclass__)  # type: ignore[assignment]


_watch()
