"""`cache_lock`: the lock for views, services and commands, as a context manager and as a decorator."""

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial, wraps
from types import MethodType
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack, cast

from asgiref.sync import iscoroutinefunction
from django.views import View

from django_cluster_lock import names, transactions, views
from django_cluster_lock.arguments import given_names
from django_cluster_lock.conf import DEFAULT_ALIAS
from django_cluster_lock.holding import MAX_HOLD, UNSET, ReleaseOn, Unset
from django_cluster_lock.lock import Lock
from django_cluster_lock.names import Keys
from django_cluster_lock.views import Answering, Respond, http_request, request_of

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, ..., Any] | staticmethod[..., Any]")
_MEANINGLESS = {
    "sleep": "a waiter does not poll, it is woken",
    "thread_local": "each thread and task has a lease of its own; hand one on with detach() and attach()",
    "lock_class": "there is one kind of lock",
    "client": "the connections are those of the alias in CLUSTER_LOCKS",
    "version": "make it a part of the name",
}


NameOf: TypeAlias = Callable[..., str | Iterable[str]]


class OfOtherLocks(TypedDict, total=False):
    """Arguments of redis-py's and django-redis's locks that have no meaning here."""

    sleep: float | None
    thread_local: bool
    lock_class: object
    client: object
    version: int | None


def cache_lock(
    name: str | Iterable[str] | NameOf,
    *,
    values: Mapping[str, object] | None = None,
    alias: str = DEFAULT_ALIAS,
    timeout: float | Unset = UNSET,
    blocking: bool | Unset = UNSET,
    blocking_timeout: float | Unset | None = UNSET,
    renew: bool = True,
    max_hold: float = MAX_HOLD,
    tag: str | None = None,
    release_on: ReleaseOn = "commit",
    raise_on_release_error: bool = True,
    response: Respond | None = None,
    **others: Unpack[OfOtherLocks],
) -> "Guard":
    """A lock, to be used in ``with`` and ``async with`` or by its methods, and a decorator.

    As a decorator it holds the lock during each call. The name is then a template over the call's arguments,
    ``"stock:{sku}"``, as with ``values``; or a function of those that it names, ``lambda sku: f"stock:{int(sku)}"``.
    A call whose first or second argument is a request is a view call: it does not wait unless ``blocking`` or
    ``blocking_timeout`` is given, and what the lock raises is answered by 409 or 503.

    Args:
        name: a name, or several: then all are acquired, or none. Of a long one the end stands as a digest.
        values: fills the templates, for a lock by the same name as that of a decorated function.
        alias: which entry of CLUSTER_LOCKS it belongs to.
        timeout: the length of a lease in seconds; by default the setting TIMEOUT.
        blocking: whether to wait for it.
        blocking_timeout: how many seconds; None for as long as it takes; by default the setting BLOCKING_TIMEOUT.
        renew: whether a held lease is renewed until it is released.
        max_hold: how many seconds it is renewed at most.
        tag: a hash tag to share with other keys in Redis Cluster.
        release_on: leaving ``with`` or the function inside an open transaction frees the lock when that ends
            ("commit", whether it commits or rolls back) or at once ("exit").
        raise_on_release_error: whether leaving ``with`` or the function raises when the release fails.
        response: makes the response to a view call from the request and what the lock raised.

    Raises:
        TypeError, ValueError: an argument cannot be used; the message names it.
    """
    for argument in others:
        if argument not in _MEANINGLESS:
            raise TypeError(f"cache_lock() got an unexpected keyword argument {argument!r}")
        warnings.warn(f"cache_lock: {argument} has no meaning here: {_MEANINGLESS[argument]}", stacklevel=2)
    return Guard(
        name,
        values=values,
        blocking=blocking,
        response=response,
        alias=alias,
        timeout=timeout,
        blocking_timeout=blocking_timeout,
        renew=renew,
        max_hold=max_hold,
        tag=tag,
        release_on=release_on,
        raise_on_release_error=raise_on_release_error,
    )


class Guard(Lock):
    """What `cache_lock` gives: a lock, and a decorator that takes a lock of its own for each call."""

    def __init__(
        self,
        name: str | Iterable[str] | NameOf,
        *,
        values: Mapping[str, object] | None,
        blocking: bool | Unset,
        response: Respond | None,
        **options: Any,
    ) -> None:
        self._name_of = _checked_name_of(name, values) if callable(name) else None
        given = (_name(name),) if callable(name) else given_names(name)
        self._templates = given if values is None and not callable(name) else ()
        self._response = response
        self._options = options
        self._waits = blocking
        if values is not None:
            given = tuple(names.fill(template, values) for template in given)
        super().__init__(
            given[0] if len(given) == 1 else given,
            blocking=_or(blocking, default=True),
            **options,
        )

    def __call__(self, function: F) -> F:
        """Decorates a function, method or view, blocking or async.

        Raises:
            TypeError: it cannot be decorated, or has no parameter that the name needs.
        """
        if isinstance(function, classmethod | staticmethod):
            return cast(F, type(function)(self(function.__func__)))
        _refuse(function)
        return cast(F, self._guarded(function, self._names_of(function)))

    def _names_of(self, function: Callable[..., Any]) -> "NamesOf":
        if self._name_of:
            return CalledNaming(self._name_of, function)
        return Naming(self._templates, function) if self._templates else lambda *_: self.names

    def _keys(self) -> list[Keys]:
        if self._name_of:
            raise TypeError(
                f"cache_lock({_name(self._name_of)}) makes its name of a call's arguments, so it is a decorator alone; "
                "elsewhere call the function, and give cache_lock() the name"
            )
        if any(map(names.has_unfilled_field, self._templates)):
            # Without the name, which may be anybody's text: warnings are remembered by what they say.
            warnings.warn(
                "cache_lock: the lock's name has a field in braces which nothing fills in: did you mean an f-string, "
                "or values={...}? If the braces came with a value, use a template and values={...}, which encodes them",
                stacklevel=_frames_of_package(),
            )
        return super()._keys()

    def _guarded(self, function: Callable[..., Any], names_of: "NamesOf") -> Callable[..., Any]:
        opens_transactions = not transactions.is_marked(function)  # else a guard below it does

        @wraps(function)
        async def in_loop(*args: Any, **kwargs: Any) -> Any:
            request = request_of(args)
            if request is None:
                async with Lock(names_of(args, kwargs), blocking=self.blocking, **self._options):
                    return await function(*args, **kwargs)
            with Answering(request, self._response) as answering:
                async with self._for_view(names_of(args, kwargs)) as lock:
                    transactions.refuse_async(http_request(request), function)
                    answering.response = await function(*args, **kwargs)
                    lock.raise_if_lost()
            return answering.response

        if iscoroutinefunction(function):
            return in_loop

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if _is_async_dispatch(function, args):
                return in_loop(*args, **kwargs)
            request = request_of(args)
            if request is None:
                with Lock(names_of(args, kwargs), blocking=self.blocking, **self._options):
                    return _finished(function, function(*args, **kwargs))
            with Answering(request, self._response) as answering, self._for_view(names_of(args, kwargs)) as lock:
                locks = views.locks_around(http_request(request), lock)
                databases = transactions.wanted(http_request(request), function) if opens_transactions else []
                with transactions.on(databases, partial(views.begin_transaction, locks)):
                    answering.response = _finished(function, function(*args, **kwargs))
                    lock.raise_if_lost()  # while it can still be rolled back
            return answering.response

        transactions.mark(guarded)
        return guarded

    def _for_view(self, lock_names: Iterable[str]) -> Lock:
        waits = _or(self._waits, default=not isinstance(self._options["blocking_timeout"], Unset))
        return Lock(lock_names, blocking=waits, **self._options)


NamesOf = Callable[[tuple[Any, ...], dict[str, Any]], Iterable[str]]


class Arguments:
    """The arguments of a function's calls, by name.

    Raises:
        TypeError: the function has no parameter for one of the fields; ``of`` says what they are for.
    """

    def __init__(self, function: Callable[..., Any], fields: Collection[str], of: str) -> None:
        self._signature = _signature(function)
        kinds = {parameter.kind: name for name, parameter in self._signature.parameters.items()}
        self._rest = kinds.get(inspect.Parameter.VAR_KEYWORD)
        missing = set(fields) - self._signature.parameters.keys()
        if missing and not self._rest:
            raise TypeError(
                f"cache_lock: {_name(function)} has no parameter {', '.join(map(repr, sorted(missing)))} "
                f"for the name {of}; it has {self._signature}"
            )

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        return {**values[self._rest], **values} if self._rest else values


class Naming:
    """Names the locks of a call: templates, filled with its arguments."""

    def __init__(self, templates: Iterable[str], function: Callable[..., Any]) -> None:
        self._templates = tuple(templates)
        fields = {field for template in self._templates for field in names.fields_of(template)}
        self._arguments = Arguments(function, fields, ", ".join(map(repr, self._templates)))

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        values = self._arguments(args, kwargs)
        return [names.fill(template, values) for template in self._templates]


class CalledNaming:
    """Names the locks of a call: by a function that gets those of its arguments for which it has parameters."""

    def __init__(self, name_of: NameOf, function: Callable[..., Any]) -> None:
        self._name_of = name_of
        parameters = inspect.signature(name_of).parameters
        self._parameters = [(name, each.default is each.empty) for name, each in parameters.items()]
        required = [name for name, is_required in self._parameters if is_required]
        self._arguments = Arguments(function, required, f"that {_name(name_of)} makes")

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[str]:
        values = self._arguments(args, kwargs)
        name = self._name_of(
            **{name: values[name] for name, required in self._parameters if required or name in values}
        )
        return given_names(name)


def _checked_name_of(name_of: NameOf, values: object) -> NameOf:
    """Return the function that makes a name, or raise a TypeError that says why it cannot.

    Its parameters are the decorated function's, by name: it can have neither ``*args`` nor ``**kwargs``.
    """
    if values is not None:
        raise TypeError("cache_lock: values fill a template, not a function that makes the name")
    if iscoroutinefunction(name_of) or inspect.isgeneratorfunction(name_of):
        raise TypeError(f"cache_lock: {_name(name_of)} makes a name, so it is a plain function")
    odd = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    for parameter in inspect.signature(name_of).parameters.values():
        if parameter.kind in odd:
            raise TypeError(
                f"cache_lock: {_name(name_of)} gets the call's arguments by name, so it cannot have {str(parameter)!r}"
            )
    return name_of


def _frames_of_package() -> int:
    """Return the stack level of the caller's caller outside this package, for a warning."""
    frame, level = inspect.currentframe(), 0
    while frame and frame.f_globals.get("__name__", "").startswith(__package__):
        frame, level = frame.f_back, level + 1
    return level


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    inner = inspect.unwrap(function, stop=lambda step: isinstance(step, partial | MethodType))
    if isinstance(inner, partial):
        # Django's method_decorator makes it look like the method with `self`, which is bound already.
        inner = partial(inner.func, *inner.args, **inner.keywords)
    return inspect.signature(inner)


def _refuse(function: object) -> None:
    """Raises for what would not run under the lock though it is decorated."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"cache_lock: {_name(function)} is a generator, which runs after the call has returned; "
            "use 'with cache_lock(...)' inside it"
        )
    if isinstance(function, type):
        raise TypeError(
            f"cache_lock: {_name(function)} is a class; decorate a method, "
            "or a view class with @method_decorator(cache_lock(...), name='dispatch')"
        )
    if hasattr(function, "apply_async"):
        raise TypeError(f"cache_lock: {_name(function)} is a task; write @cache_lock below the task's decorator")
    if not callable(function):
        raise TypeError(f"cache_lock decorates functions, not {function!r}")


def _is_async_dispatch(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether it is the dispatch of an async class-based view: a plain function that gives a coroutine."""
    if getattr(function, "__name__", "") != "dispatch":
        return False
    owners = list(args[:1])
    step: Any = function
    while step is not None:
        owners.append(getattr(step.func if isinstance(step, partial) else step, "__self__", None))
        step = getattr(step, "__wrapped__", None)
    return any(isinstance(owner, View) and owner.view_is_async for owner in owners)


def _finished(function: object, result: Any) -> Any:
    """The result, unless the function has yet to run, without the lock."""
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(f"cache_lock: {_name(function)} gives a coroutine; make it an async function")
    return result


def _name(function: object) -> str:
    return getattr(function, "__qualname__", repr(function))


def _or(given: bool | Unset, *, default: bool) -> bool:
    return default if isinstance(given, Unset) else given
