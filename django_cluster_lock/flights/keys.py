"""The name of a flight: the same for equal calls, on the side that calls and on the side that runs."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple, get_args

from celery import Task

from django_cluster_lock import names
from django_cluster_lock.flights.policy import Policy, template_of
from django_cluster_lock.values import canonical

_AS_IT_IS = (str, int)  # made once: `str | int` is made anew each time it is asked
LONGEST_READABLE = 200  # characters of a name; a longer one stands as a digest, since each index entry holds it whole


def name_of(
    task: "Task[..., Any]", policy: Policy, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
) -> str:
    """The lock's name for a call of the task.

    Raises:
        TypeError: the arguments do not fit the task, or one that the key needs has no canonical form.
    """
    positional, named = args or (), kwargs or {}
    if callable(policy.key):
        key = canonical(policy.key(*positional, **named))
    else:
        form = _form(task.run)
        arguments = form.bind(*positional, **named)
        template = form.of_all if policy.template is None else policy.template
        key = names.fill(template, _values(form, arguments)) if template else ""
    name = f"{names.FLIGHT}{task.name.replace('%', '%25').replace(':', '%3A')}:{key}"
    if len(name) > LONGEST_READABLE:
        name = f"{names.FLIGHT}%h{hashlib.sha256(name.encode()).hexdigest()}"
    return name


class _Form(NamedTuple):
    """The parameters of a task, without the ``self`` of a bound one.

    Args:
        bind: gives the arguments of a call by their names.
        of_all: the template in which every argument counts.
        rest: the name of the one that takes further arguments by name; empty if none does.
        kinds: the annotations of the others, as types where these can be had.
    """

    bind: Callable[..., dict[str, Any]]
    of_all: str
    kinds: Mapping[str, Any]
    rest: str


@cache
def _form(run: Callable[..., Any]) -> _Form:
    try:
        signature = inspect.signature(run, eval_str=True)
    except Exception:
        signature = inspect.signature(run)
    parameters = signature.parameters.values()
    rest = next((each.name for each in parameters if each.kind is inspect.Parameter.VAR_KEYWORD), "")
    kinds = {each.name: each.annotation for each in parameters if each.name != rest}
    bind = _binder(getattr(run, "__name__", "run"), signature)
    return _Form(bind, template_of(list(signature.parameters)), kinds, rest)


def _binder(name: str, signature: inspect.Signature) -> Callable[..., dict[str, Any]]:
    """A function of that signature that returns its arguments by name; binding by it costs no more than a call."""
    given, empty = signature.parameters.values(), inspect.Parameter.empty
    bare = [each.replace(annotation=empty, default=empty if each.default is empty else None) for each in given]
    arguments = ", ".join(f"{each.name!r}: {each.name}" for each in given)
    made: dict[str, Any] = {}
    exec(f"def bind{inspect.Signature(bare)}: return {{{arguments}}}", made)  # noqa: S102 - as `dataclasses` does
    bind: FunctionType = made["bind"]
    bind.__qualname__ = name  # what its errors say
    optional = [each for each in given if each.default is not empty]
    bind.__defaults__ = tuple(each.default for each in optional if each.kind is not each.KEYWORD_ONLY)
    bind.__kwdefaults__ = {each.name: each.default for each in optional if each.kind is each.KEYWORD_ONLY}
    return bind


def _values(form: _Form, arguments: Mapping[str, Any]) -> dict[str, object]:
    if form.rest:
        arguments = {**arguments[form.rest], **arguments}
    return {name: _plain(value, form.kinds.get(name)) for name, value in arguments.items()}


def _plain(value: Any, annotation: Any) -> object:
    """A pydantic model as the message carries it; what stands for one gets its defaults first."""
    if isinstance(value, _AS_IT_IS):
        return value
    if isinstance(value, Mapping):
        model = next((kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)), None)
        with suppress(ValueError):  # the run will say what is wrong with it
            value = model.model_validate(value) if model else value
    return value.model_dump(mode="json") if _is_model(type(value)) else value


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and callable(getattr(kind, "model_validate", None))
