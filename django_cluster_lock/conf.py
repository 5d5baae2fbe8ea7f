"""The setting ``CLUSTER_LOCKS``: its aliases, their defaults, and what is wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_ALIAS = "default"
EMBEDDED = "embedded://"
TIMEOUT, BLOCKING_TIMEOUT, CLOCK_SKEW = 30.0, 10.0, 1.0


@dataclass(frozen=True)
class AliasSettings:
    """One alias of CLUSTER_LOCKS; times in seconds. ``replicas`` is None for "auto"."""

    alias: str
    location: tuple[str, ...]
    key_prefix: str
    cache: str | None = None
    timeout: float = TIMEOUT
    blocking_timeout: float | None = BLOCKING_TIMEOUT
    replicas: int | None = None
    clock_skew: float = CLOCK_SKEW
    options: Mapping[str, Any] = field(default_factory=dict)


def load(alias: str = DEFAULT_ALIAS) -> AliasSettings:
    """The settings of an alias, read now.

    Raises:
        django.core.exceptions.ImproperlyConfigured: there is no such alias, or something is wrong with it.
    """
    from django.conf import settings

    config = settings.CLUSTER_LOCKS[alias]
    location = config.get("LOCATION", ())
    replicas = config.get("REPLICAS", "auto")
    return AliasSettings(
        alias=alias,
        location=(location,) if isinstance(location, str) else tuple(location),
        key_prefix=config["KEY_PREFIX"],
        cache=config.get("CACHE"),
        timeout=config.get("TIMEOUT", TIMEOUT),
        blocking_timeout=config.get("BLOCKING_TIMEOUT", BLOCKING_TIMEOUT),
        replicas=None if replicas == "auto" else replicas,
        clock_skew=config.get("CLOCK_SKEW", CLOCK_SKEW),
        options=config.get("OPTIONS", {}),
    )
