"""What a user asks of `single_flight`, checked once, at the decorator."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from django_cluster_lock import names
from django_cluster_lock.arguments import positive
from django_cluster_lock.conf import DEFAULT_ALIAS
from django_cluster_lock.holding import UNSET, Unset

OnDuplicate: TypeAlias = Literal["join", "skip", "raise", "rerun", "wait"]
Scope: TypeAlias = Literal["flight", "queued", "running"]
OnLost: TypeAlias = Literal["abort", "interrupt", "tell"]
OnUnavailable: TypeAlias = Literal["raise", "run"]
Key: TypeAlias = str | Sequence[str] | Callable[..., object] | None

POLICY = "flight_policy"  # the attribute of a task's class that has it


@dataclass(frozen=True, slots=True)
class Policy:
    """The arguments of `single_flight`; times in seconds."""

    key: Key = None
    on_duplicate: OnDuplicate = "join"
    scope: Scope = "flight"
    alias: str = DEFAULT_ALIAS
    timeout: float | Unset = UNSET
    queue_timeout: float = 3600.0
    max_hold: float | None = None
    on_lost: OnLost = "abort"
    on_unavailable: OnUnavailable = "raise"
    # Of the key; None where it has none: every argument counts, or a callable makes it.
    template: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        _choice("on_duplicate", self.on_duplicate, OnDuplicate)
        _choice("scope", self.scope, Scope)
        if self.scope == "queued" and self.on_duplicate in ("rerun", "wait"):
            raise ValueError(
                f"on_duplicate={self.on_duplicate!r} needs a run to follow, but with scope='queued' the key is free "
                "once the run starts: use 'join', 'skip' or 'raise', or another scope"
            )
        _choice("on_lost", self.on_lost, OnLost)
        _choice("on_unavailable", self.on_unavailable, OnUnavailable)
        positive("queue_timeout", self.queue_timeout)
        if not isinstance(self.timeout, Unset):
            positive("timeout", self.timeout)
        if self.max_hold is not None:
            positive("max_hold", self.max_hold)
        if self.key is not None and not callable(self.key):
            template = self.key if isinstance(self.key, str) else template_of(self.key)
            object.__setattr__(self, "template", template)  # as `dataclasses` itself sets what is frozen

    def check(self, function: Callable[..., Any]) -> None:
        """Raises a TypeError where the key needs an argument that the function does not have, or just names one."""
        if self.template is None or not (self.template or isinstance(self.key, str)):  # `[]`: no argument counts
            return
        signature = inspect.signature(function)
        if isinstance(self.key, str) and self.key in signature.parameters:
            raise TypeError(
                f"single_flight: the key {self.key!r} is the same for every call of {function.__qualname__}; write "
                f"'{{{self.key}}}' for its argument"
            )
        missing = set(names.fields_of(self.template)) - signature.parameters.keys()
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
        if missing and not takes_any:
            raise TypeError(
                f"single_flight: {function.__qualname__} has no parameter {', '.join(map(repr, sorted(missing)))} "
                f"for the key {self.key!r}; it has {signature}"
            )


def template_of(arguments: Sequence[str]) -> str:
    """The template in which these arguments stand side by side."""
    return ",".join(f"{argument}={{{argument}}}" for argument in arguments)


def _choice(argument: str, value: object, kind: Any) -> None:
    choices = get_args(kind)
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}, not {value!r}")
