"""What LOCATION, CACHE and OPTIONS stand for: nodes, and the arguments of redis-py's connections to them."""

import inspect
import os
import re
import socket
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

from django.utils.module_loading import import_string

Node: TypeAlias = tuple[str, int]

EMBEDDED = "embedded://"
_PLAIN_OPTIONS = frozenset(
    {
        "username",
        "password",
        "credential_provider",
        "client_name",
        "socket_timeout",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_keepalive_options",
    }
)
_OWN_OPTIONS = frozenset({"ssl", "address_remap", "max_connections"})
FEWEST_CONNECTIONS = 4  # one that sleeps, one that asks and one that is kept for releases, with one to spare
_CACHE_BACKENDS = {"django.core.cache.backends.redis", "django_redis.cache"}


def listed(location: object) -> list[Any]:
    """A LOCATION as a list, however it is written: as for Django's caches, one string may hold several URLs."""
    if isinstance(location, str):
        return [url.strip() for url in re.split("[,;]", location) if url.strip()]
    return list(location) if isinstance(location, list | tuple | set) else []


def endpoint(url: str) -> tuple[Node, dict[str, Any]]:
    """The node of a URL, and what else the URL says.

    Raises:
        ValueError: it is not the URL of a Redis server.
    """
    from redis.connection import SSLConnection, parse_url

    said = dict(parse_url(url))
    node = said.pop("host", "localhost"), said.pop("port", 6379)
    if said.pop("connection_class", None) is SSLConnection:
        said["ssl"] = True
    return node, said


def is_readable(url: str) -> bool:
    """Whether it is the URL of a server that can be reached over the network."""
    try:
        endpoint(url)
    except ValueError:
        return False
    return url.startswith(("redis://", "rediss://"))


def without_secrets(url: str) -> str:
    """A URL as it may be shown."""
    return re.sub("//.*@", "//***@", url).partition("?")[0]


def connection_arguments(
    location: Sequence[str], options: Mapping[str, Any]
) -> tuple[tuple[Node, ...], dict[str, Any]]:
    """The nodes of the URLs, and the arguments of connections to them; among these, ``ssl`` says whether by TLS.

    What a URL says wins over the options, as in redis-py.
    """
    endpoints = [endpoint(url) for url in location]
    accepted = accepted_options()
    arguments = dict(options)
    for _, said in endpoints:
        arguments |= {name: value for name, value in said.items() if name in accepted}
    of_tls = {name for name in arguments if name.startswith("ssl_")}
    if not arguments.setdefault("ssl", bool(of_tls)):
        arguments = {name: value for name, value in arguments.items() if name not in of_tls}
    return tuple(node for node, _ in endpoints), arguments


def accepted_options() -> frozenset[str]:
    """The names that OPTIONS may have with the installed redis-py."""
    blocking, of_asyncio = redis_parameters()
    return _OWN_OPTIONS | {name for name in blocking & of_asyncio if name in _PLAIN_OPTIONS or name.startswith("ssl_")}


@cache
def redis_parameters() -> tuple[frozenset[str], frozenset[str]]:
    """The names that redis-py's connections take, the blocking ones and those of asyncio."""
    from redis import connection as blocking
    from redis.asyncio import connection as of_asyncio

    return (
        _parameters(blocking.AbstractConnection, blocking.Connection, blocking.SSLConnection),
        _parameters(of_asyncio.AbstractConnection, of_asyncio.Connection, of_asyncio.SSLConnection),
    )


def _parameters(*kinds: type) -> frozenset[str]:
    return frozenset(name for kind in kinds for name in inspect.signature(kind).parameters)


def cache_config(cache: str) -> Mapping[str, Any]:
    """The settings of an alias of CACHES."""
    from django.conf import settings

    config: Mapping[str, Any] = settings.CACHES[cache]
    return config


def cache_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a cache's OPTIONS say of its connections: django-redis's in capitals, Django's as redis-py's.

    A TLS option is always among them, even if it is not accepted: it must not be dropped unseen.
    """
    from redis.connection import SSLConnection

    options = config.get("OPTIONS", {})
    capitals = ("USERNAME", "PASSWORD", "SOCKET_TIMEOUT", "SOCKET_CONNECT_TIMEOUT")
    said = {
        **options,
        **{name.lower(): options[name] for name in capitals if options.get(name)},
        **options.get("CONNECTION_POOL_KWARGS", {}),
    }
    kind = said.get("connection_class")
    if isinstance(kind, type) and issubclass(kind, SSLConnection):
        said["ssl"] = True
    accepted = accepted_options() - {"max_connections"}  # of the cache's own pool
    return {
        name: value
        for name, value in said.items()
        if name.startswith("ssl_") or (name in accepted and value is not None)
    }


def is_redis(backend: object) -> bool:
    """Whether a cache backend is Django's or django-redis's, or derived from them."""
    try:
        found = import_string(str(backend))
    except Exception:  # whatever the import of the user's module raises
        return False
    return isinstance(found, type) and any(base.__module__ in _CACHE_BACKENDS for base in found.__mro__)


def uses_sentinel(config: Mapping[str, Any]) -> bool:
    """Whether a django-redis cache finds its servers by Redis Sentinel."""
    from django.conf import settings

    options = config.get("OPTIONS", {})
    factory = options.get("CONNECTION_FACTORY") or getattr(settings, "DJANGO_REDIS_CONNECTION_FACTORY", "")
    classes = (options.get("CLIENT_CLASS", ""), options.get("CONNECTION_POOL_CLASS", ""), factory)
    return "SENTINELS" in options or any("sentinel" in str(each).lower() for each in classes)


def embedded_allowed() -> bool:
    """Whether ``embedded://`` may be used here: in development, in tests, or on request.

    Django's test environment, which pytest-django sets up too, gives `django.core.mail` its ``outbox``; pytest has
    its version in the environment, where a worker that a test starts finds it as well.
    """
    from django.conf import settings
    from django.core import mail

    testing = hasattr(mail, "outbox") or "PYTEST_VERSION" in os.environ
    return bool(settings.DEBUG or testing or os.environ.get("CLUSTER_LOCK_EMBEDDED") == "1")


def fault(arguments: Mapping[str, Any]) -> str:
    """What is wrong with the arguments of connections, in words; nothing is opened to find out."""
    rest = dict(arguments)
    most = rest.pop("max_connections", FEWEST_CONNECTIONS)
    if type(most) is not int or most < FEWEST_CONNECTIONS:
        return f"max_connections is {most!r}, not a whole number of {FEWEST_CONNECTIONS} or more"
    return _remap_fault(rest.pop("address_remap", None)) or _connection_fault(rest.pop("ssl"), rest)


def remap_of(value: object) -> object:
    """The callable that address_remap is, or is the dotted path of."""
    return import_string(value) if isinstance(value, str) else value


def _remap_fault(value: object) -> str:
    try:
        remap = remap_of(value)
    except Exception as error:  # whatever the import of the user's module raises
        return f"address_remap {value!r} cannot be imported ({error})"
    return "" if remap is None or callable(remap) else f"address_remap {value!r} cannot be called"


def _connection_fault(tls: object, arguments: Mapping[str, Any]) -> str:
    from redis import connection as blocking
    from redis.asyncio import connection as of_asyncio

    if not isinstance(tls, bool):
        return f"ssl is {tls!r}, neither True nor False"
    for name in ("username", "password", "client_name"):
        value = arguments.get(name)
        if not isinstance(value, str | bytes | int | float | None) or isinstance(value, bool):
            return f"{name} is of type {type(value).__name__}, not a string"
    if fault := _keepalive_fault(arguments.get("socket_keepalive_options")):
        return fault
    if arguments.get("credential_provider") and (arguments.get("username") or arguments.get("password")):
        return "credential_provider comes beside a username or password"
    try:
        (blocking.SSLConnection if tls else blocking.Connection)(**arguments)
        (of_asyncio.SSLConnection if tls else of_asyncio.Connection)(**arguments)
    except Exception as error:  # TypeError, DataError, RedisError, ...
        return str(error).rstrip(".")
    return ""


def _keepalive_fault(options: object) -> str:
    if options is None:
        return ""
    if not isinstance(options, Mapping):
        return f"socket_keepalive_options is {options!r}, not a dictionary of TCP options"
    with socket.socket() as unconnected:
        for option, value in options.items():
            try:
                unconnected.setsockopt(socket.IPPROTO_TCP, option, value)
            except (OSError, OverflowError, TypeError) as error:
                return f"socket_keepalive_options sets {option!r} to {value!r}, which TCP refuses ({error})"
    return ""
