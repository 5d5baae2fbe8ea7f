"""The setting ``CLUSTER_LOCKS``: its aliases, their defaults, and what is wrong with them.

`problems` finds everything at once for the system checks, `load` raises the first error of one alias. Settings are
read anew at each call; nothing here opens a connection or starts a server. It is long because all that can be wrong
with a setting stands in one place, each with its hint.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_cluster_lock import servers
from django_cluster_lock.servers import EMBEDDED

DEFAULT_ALIAS = "default"
EMBEDDED_PREFIX = "locks"
TIMEOUT, BLOCKING_TIMEOUT, CLOCK_SKEW, SWEEP_INTERVAL = 30.0, 10.0, 1.0, 60.0
# As long as a record outlives its last lease (RETENTION in common.lua): then a clock alone makes the next fence, which
# has to be above the last one.
LONGEST_SKEW = 2.0

HINTS = {
    "E001": 'Set CLUSTER_LOCKS = {"default": {"LOCATION": ["redis://10.0.0.1:6379"], "KEY_PREFIX": "shop"}}.',
    "E002": 'Write it as {"default": {"LOCATION": ["redis://10.0.0.1:6379"], "KEY_PREFIX": "shop"}}.',
    "E003": "Add it to CLUSTER_LOCKS; cache_lock uses 'default' where no other alias is named.",
    "E004": "The keys are LOCATION or CACHE, KEY_PREFIX, TIMEOUT, BLOCKING_TIMEOUT, REPLICAS, CLOCK_SKEW, "
    "SWEEP_INTERVAL, OPTIONS.",
    "E005": "Give LOCATION (URLs of some nodes) or CACHE (an alias of CACHES whose servers to use), one of them.",
    "E006": 'Give a URL such as "redis://10.0.0.1:6379", or a list of them.',
    "E007": "Use redis://user:password@host:port, or rediss:// for TLS, special characters percent-encoded. A cluster "
    "moves its primaries by itself, without Redis Sentinel; Unix sockets have no place in it.",
    "E008": 'Give "embedded://" alone, or servers alone.',
    "E009": "Name your servers in LOCATION; set CLUSTER_LOCK_EMBEDDED=1 in the environment if losing all locks with "
    "this machine is what you want.",
    "E010": "Leave the number out: a cluster has database 0 alone, and KEY_PREFIX keeps the locks apart.",
    "E011": "All nodes of a cluster take the same; use OPTIONS for what does not belong to one node.",
    "E012": "Name an alias of CACHES whose backend is django-redis or Django's RedisCache, or use LOCATION.",
    "E013": "Name the nodes of a Redis Cluster, or one server, in LOCATION instead of CACHE.",
    "E014": 'Give each project its own, such as "KEY_PREFIX": "shop": two with the same one on the same servers '
    "share their locks.",
    "E015": "Give a non-empty string without braces, which Redis Cluster takes for a hash tag.",
    "E016": "Give them different prefixes: each would count its own fences for what is one lock in Redis.",
    "E017": "Give the seconds a lease lasts unless it is renewed: a number above 0. No lock is for ever.",
    "E018": "Give the seconds to wait for a lock, 0 or more, or None to wait without an end.",
    "E019": 'Give "auto" for all replicas of a shard, or how many: 0 or more.',
    "E020": "Give the seconds by which the clocks of the nodes may differ: 0 to 2. With more, fences may lose order.",
    "E021": "Remove it. Accepted is what both kinds of redis-py's connections, blocking and asyncio, have in common, "
    "and what a lock has a use for: see the settings reference.",
    "E022": "Give a value as redis-py's connections take it; for address_remap a callable or its dotted path.",
    "E023": "Name the production servers in LOCATION: the embedded cluster is for development and tests.",
    "E024": "Set Celery's result_backend to one that other processes can read, or let the tasks do without results by "
    "on_duplicate='skip' or 'raise', or ignore_result=True.",
    "E025": "Give the seconds between two sweeps for what dead flights left behind, above 0, or None for no sweeps.",
    "E026": "Switch autocommit on, or keep the app 'cluster_lock_fences' out of it by a router's allow_migrate().",
    "W001": "One request without an answer would cost the lease. Stay below a third of TIMEOUT.",
    "W002": "A duplicate that joins never gets the result of another process's call. Use a backend such as Redis.",
    "W003": "Put @shared_task or @app.task above or below @single_flight, and have a base's __init_subclass__ call "
    "super(): as it is, nothing keeps its calls apart.",
}
_KEYS = (
    "LOCATION",
    "CACHE",
    "KEY_PREFIX",
    "TIMEOUT",
    "BLOCKING_TIMEOUT",
    "REPLICAS",
    "CLOCK_SKEW",
    "SWEEP_INTERVAL",
    "OPTIONS",
)


@dataclass(frozen=True)
class AliasSettings:
    """One alias of CLUSTER_LOCKS; times in seconds. ``replicas`` is None for "auto".

    Where ``cache`` names an alias of CACHES, ``location`` and ``options`` come from there.
    """

    alias: str
    location: tuple[str, ...]
    key_prefix: str
    cache: str | None = None
    timeout: float = TIMEOUT
    blocking_timeout: float | None = BLOCKING_TIMEOUT
    replicas: int | None = None
    clock_skew: float = CLOCK_SKEW
    options: Mapping[str, Any] = field(default_factory=dict)
    sweep_interval: float | None = SWEEP_INTERVAL


class Problem(ImproperlyConfigured):
    """Something wrong with CLUSTER_LOCKS: an error, or a warning if its number begins with W."""

    def __init__(self, number: str, message: str) -> None:
        super().__init__(number, message)
        self.id = f"django_cluster_lock.{number}"
        self.is_error = number.startswith("E")
        self.message, self.hint = message, HINTS[number]

    def __str__(self) -> str:
        return f"{self.message} {self.hint} ({self.id})"


def load(alias: str = DEFAULT_ALIAS) -> AliasSettings:
    """The settings of an alias, read now.

    Raises:
        django.core.exceptions.ImproperlyConfigured: there is no such alias, or something is wrong with it.
    """
    aliases = _aliases()
    if alias not in aliases:
        raise _no_alias(alias, aliases)
    for problem in _problems_of(alias, aliases[alias]):
        if problem.is_error:
            raise problem
    return _settings(alias, aliases[alias])


def problems() -> Iterator[Problem]:
    """All that is wrong with CLUSTER_LOCKS."""
    try:
        aliases = _aliases()
    except Problem as problem:
        yield problem
        return
    if DEFAULT_ALIAS not in aliases:
        yield _no_alias(DEFAULT_ALIAS, aliases)
    sound = []
    for alias, config in aliases.items():
        found = list(_problems_of(alias, config))
        yield from found
        if not any(problem.is_error for problem in found):
            sound.append(_settings(alias, config))
    yield from _twins(sound)


def deployment_problems() -> Iterator[Problem]:
    """What is wrong with CLUSTER_LOCKS in production alone."""
    try:
        aliases = _aliases()
    except Problem:
        return
    for alias, config in aliases.items():
        if isinstance(config, Mapping) and _is_embedded(config):
            yield Problem("E023", f'{_where(alias)}["LOCATION"] is {EMBEDDED!r} in a deployment.')


def _aliases() -> Mapping[str, Any]:
    from django.conf import settings

    aliases = getattr(settings, "CLUSTER_LOCKS", None)
    if aliases is None:
        raise Problem("E001", "CLUSTER_LOCKS is not set.")
    if not isinstance(aliases, Mapping):
        raise Problem("E002", f"CLUSTER_LOCKS is {_a(aliases)}, not a dictionary of aliases.")
    return aliases


def _no_alias(alias: str, aliases: Mapping[str, Any]) -> Problem:
    return Problem("E003", f"CLUSTER_LOCKS has no alias {alias!r}{_did_you_mean(alias, aliases)}.")


def _settings(alias: str, config: Mapping[str, Any]) -> AliasSettings:
    cache = config.get("CACHE")
    inherited, urls = {}, config.get("LOCATION")
    if cache:
        of_cache = servers.cache_config(cache)
        inherited, urls = servers.cache_options(of_cache), of_cache["LOCATION"]
    replicas = config.get("REPLICAS", "auto")
    return AliasSettings(
        alias=alias,
        location=tuple(servers.listed(urls)),
        key_prefix=config.get("KEY_PREFIX", EMBEDDED_PREFIX),
        cache=cache,
        timeout=config.get("TIMEOUT", TIMEOUT),
        blocking_timeout=config.get("BLOCKING_TIMEOUT", BLOCKING_TIMEOUT),
        replicas=None if replicas == "auto" else replicas,
        clock_skew=config.get("CLOCK_SKEW", CLOCK_SKEW),
        sweep_interval=config.get("SWEEP_INTERVAL", SWEEP_INTERVAL),
        options={**inherited, **config.get("OPTIONS", {})},
    )


def _problems_of(alias: str, config: object) -> Iterator[Problem]:
    where = _where(alias)
    if not isinstance(config, Mapping):
        yield Problem("E002", f"{where} is {_a(config)}, not a dictionary of settings.")
        return
    found = [
        *_key_problems(where, config),
        *_location_problems(where, config),
        *_prefix_problems(where, config),
        *_number_problems(where, config),
        *_option_problems(where, config),
    ]
    yield from found or _combined_problems(where, _settings(alias, config))


def _key_problems(where: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    for key in config:
        if key not in _KEYS:
            yield Problem("E004", f"{where} has the unknown key {key!r}{_did_you_mean(str(key).upper(), _KEYS)}.")


def _location_problems(where: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    location, cache = config.get("LOCATION"), config.get("CACHE")
    if location and cache:
        yield Problem("E005", f"{where} has both LOCATION and CACHE.")
    elif location:
        yield from _url_problems(f'{where}["LOCATION"]', location)
        yield from _database_problems(f'{where}["LOCATION"]', location)
    elif cache:
        yield from _cache_problems(where, cache)
    else:
        yield Problem("E005", f"{where} has neither LOCATION nor CACHE.")


def _url_problems(where: str, value: object) -> Iterator[Problem]:
    urls = servers.listed(value)
    strange = next((url for url in urls if not isinstance(url, str)), None)
    if not urls or strange is not None:
        yield Problem(
            "E006", f"{where} {'has something' if urls else 'is'} {_a(strange if urls else value)}, not a URL."
        )
        return
    if EMBEDDED in urls:
        if len(urls) > 1:
            yield Problem("E008", f"{where} has {EMBEDDED!r} among other servers.")
        elif not servers.embedded_allowed():
            yield Problem("E009", f"{where} is {EMBEDDED!r}, but DEBUG is off and no tests are running.")
        return
    bad = [url for url in urls if not servers.is_readable(url)]
    for url in bad:
        yield Problem("E007", f"{where} has {servers.without_secrets(url)!r}, which is no URL of a Redis server.")
    if not bad:
        yield from _difference_problems(where, urls)


def _difference_problems(where: str, urls: Sequence[str]) -> Iterator[Problem]:
    first, *others = [{"ssl": False, **servers.endpoint(url)[1]} for url in urls]
    names = sorted({name for other in others for name in first | other if first.get(name) != other.get(name)})
    if names:
        yield Problem("E011", f"The URLs of {where} differ in {', '.join(names)}.")


def _database_problems(where: str, value: object) -> Iterator[Problem]:
    for url in servers.listed(value):
        if isinstance(url, str) and servers.is_readable(url) and (number := servers.endpoint(url)[1].get("db")):
            yield Problem("E010", f"{where} has {servers.without_secrets(url)!r}, which names database {number}.")


def _cache_problems(where: str, cache: object) -> Iterator[Problem]:
    from django.conf import settings

    if not isinstance(cache, str) or cache not in settings.CACHES:
        known = _did_you_mean(str(cache), settings.CACHES)
        yield Problem("E012", f'{where}["CACHE"] is {cache!r}, but CACHES has no such alias{known}.')
        return
    config = servers.cache_config(cache)
    backend = config.get("BACKEND")
    if not servers.is_redis(backend):
        yield Problem("E012", f'{where}["CACHE"] is {cache!r}, whose backend {backend!r} is not known to use Redis.')
    elif servers.uses_sentinel(config):
        yield Problem("E013", f'{where}["CACHE"] is {cache!r}, which uses Redis Sentinel.')
    else:
        yield from _url_problems(f'CACHES["{cache}"]["LOCATION"]', config.get("LOCATION"))
        for name in sorted(servers.cache_options(config).keys() - servers.accepted_options()):
            yield Problem("E021", f'{where}["CACHE"] is {cache!r}, which has the option {name!r}.')


def _prefix_problems(where: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    if "KEY_PREFIX" not in config:
        if not _is_embedded(config):
            yield Problem("E014", f"{where} has no KEY_PREFIX.")
        return
    prefix = config["KEY_PREFIX"]
    if not isinstance(prefix, str) or not prefix or "{" in prefix or "}" in prefix:
        yield Problem("E015", f'{where}["KEY_PREFIX"] is {prefix!r}.')


def _number_problems(where: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    fits: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "E017": ("TIMEOUT", lambda timeout: _is_number(timeout) and timeout > 0),
        "E018": ("BLOCKING_TIMEOUT", lambda wait: wait is None or (_is_number(wait) and wait >= 0)),
        "E019": ("REPLICAS", lambda count: count == "auto" or (type(count) is int and count >= 0)),
        "E020": ("CLOCK_SKEW", lambda skew: _is_number(skew) and 0 <= skew <= LONGEST_SKEW),
        "E025": ("SWEEP_INTERVAL", lambda interval: interval is None or (_is_number(interval) and interval > 0)),
    }
    for number, (key, fit) in fits.items():
        if key in config and not fit(config[key]):
            yield Problem(number, f'{where}["{key}"] is {config[key]!r}.')


def _option_problems(where: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    options = config.get("OPTIONS", {})
    if not isinstance(options, Mapping):
        yield Problem("E022", f'{where}["OPTIONS"] is {_a(options)}, not a dictionary.')
        return
    yield from _option_name_problems(f'{where}["OPTIONS"]', options)
    for url in servers.listed(config.get("LOCATION")):
        if isinstance(url, str) and servers.is_readable(url):
            said = servers.endpoint(url)[1].keys() - {"db"}
            yield from _option_name_problems(f'{servers.without_secrets(url)!r} in {where}["LOCATION"]', said)


def _option_name_problems(where: str, names: Collection[object]) -> Iterator[Problem]:
    accepted = servers.accepted_options()
    known = frozenset[str]().union(*servers.redis_parameters())
    for name in names:
        if name in known and name not in accepted:
            yield Problem("E021", f"{where} has the option {name!r}, which is of no use to a lock.")
        elif name not in accepted:
            yield Problem("E021", f"{where} has the unknown option {name!r}{_did_you_mean(str(name), accepted)}.")


def _combined_problems(where: str, settings: AliasSettings) -> Iterator[Problem]:
    """What is wrong with options that have good names, and come from good URLs."""
    urls = () if settings.location == (EMBEDDED,) else settings.location
    _, arguments = servers.connection_arguments(urls, settings.options)
    for name in ("socket_timeout", "socket_connect_timeout"):
        value = arguments.get(name, 1)
        if not _is_number(value) or value <= 0:
            yield Problem("E022", f"{where} has {name} {value!r}, not a number of seconds above 0.")
            return
    if fault := servers.fault(arguments):
        yield Problem("E022", f"{where} has connection options that cannot be used: {fault}.")
    elif arguments.get("socket_timeout", 0) >= settings.timeout:
        told = f"socket_timeout {arguments['socket_timeout']!r}, not less than its TIMEOUT {settings.timeout!r}"
        yield Problem("W001", f"{where} has {told}.")


def _twins(aliases: Sequence[AliasSettings]) -> Iterator[Problem]:
    for one, other in combinations(aliases, 2):
        if one.key_prefix == other.key_prefix and _servers(one) & _servers(other):
            yield Problem(
                "E016",
                f"CLUSTER_LOCKS: {one.alias!r} and {other.alias!r} have the same servers "
                f"and the same KEY_PREFIX {one.key_prefix!r}.",
            )


def _servers(settings: AliasSettings) -> set[object]:
    return {url if url == EMBEDDED else servers.endpoint(url)[0] for url in settings.location}


def _is_embedded(config: Mapping[str, Any]) -> bool:
    return EMBEDDED in servers.listed(config.get("LOCATION"))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _did_you_mean(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, map(str, known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _where(alias: str) -> str:
    return f'CLUSTER_LOCKS["{alias}"]'


def _a(value: object) -> str:
    """A value whose kind may be told, but whose content may be a secret."""
    empty = not (value.strip(" ,;") if isinstance(value, str) else value)
    return "empty" if empty else f"of type {type(value).__name__}"
