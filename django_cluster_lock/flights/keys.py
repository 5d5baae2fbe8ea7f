"""The name of a flight: the same for equal calls, on the side that calls and on the side that runs."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from celery import Task

from django_cluster_lock import names
from django_cluster_lock.flights.policy import Policy, template_of
from django_cluster_lock.values import canonical

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
        signature = _signature(task.run)
        bound = signature.bind(*positional, **named)
        bound.apply_defaults()
        template = template_of(list(signature.parameters)) if policy.template is None else policy.template
        key = names.fill(template, _values(signature, bound.arguments)) if template else ""
    name = f"{names.FLIGHT}{task.name.replace('%', '%25').replace(':', '%3A')}:{key}"
    if len(name) > LONGEST_READABLE:
        name = f"{names.FLIGHT}%h{hashlib.sha256(name.encode()).hexdigest()}"
    return name


@cache
def _signature(run: Callable[..., Any]) -> inspect.Signature:
    """The parameters of a task, without the ``self`` of a bound one."""
    return inspect.signature(run)


def _values(signature: inspect.Signature, arguments: Mapping[str, Any]) -> dict[str, object]:
    rest = next((p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD), None)
    extra = arguments[rest] if rest else {}
    return {name: _plain(value) for name, value in {**extra, **arguments}.items()}


def _plain(value: Any) -> object:
    """A pydantic model as the message carries it."""
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) and not isinstance(value, type) else value
