"""How to connect: an alias's settings turned into redis-py connections, blocking or asyncio."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.module_loading import import_string
from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.asyncio.connection import Connection as AsyncPlain
from redis.asyncio.connection import SSLConnection as AsyncTLS
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.retry import Retry

from django_cluster_lock.conf import EMBEDDED, AliasSettings
from django_cluster_lock.connections.topology import Remap
from django_cluster_lock.exchange import Node

SOCKET_TIMEOUT, CONNECT_TIMEOUT = 2.0, 1.0


@dataclass(frozen=True)
class ConnectionOptions:
    """Where to connect and how; times in seconds."""

    nodes: tuple[Node, ...]
    kwargs: Mapping[str, Any]
    tls: bool
    socket_timeout: float
    remap: Remap | None

    def connection(self, node: Node, timeout: float) -> AbstractConnection:
        """A blocking connection to a node, not yet open, whose opening may take that long."""
        kind = SSLConnection if self.tls else Connection
        return kind(host=node[0], port=node[1], retry=Retry(NoBackoff(), 0), **self._within(timeout))

    def async_connection(self, node: Node, timeout: float) -> AsyncConnection:
        """An asyncio connection to a node, not yet open, whose opening may take that long."""
        kind = AsyncTLS if self.tls else AsyncPlain
        return kind(host=node[0], port=node[1], retry=AsyncRetry(NoBackoff(), 0), **self._within(timeout))

    def _within(self, timeout: float) -> dict[str, Any]:
        limits = {name: min(self.kwargs[name], timeout) for name in ("socket_timeout", "socket_connect_timeout")}
        return {**self.kwargs, **limits}


def connection_options(settings: AliasSettings) -> ConnectionOptions:
    """The connection options of an alias; starts the embedded cluster where that is its location."""
    location = settings.location
    if location == (EMBEDDED,):
        from django_cluster_lock import embedded

        location = embedded.up().urls
    nodes: list[Node] = []
    kwargs: dict[str, Any] = {}
    for url in location:
        part = parse_url(url)
        nodes.append((part.pop("host", "localhost"), part.pop("port", 6379)))
        kwargs |= part
    kwargs |= settings.options
    tls = kwargs.pop("connection_class", None) is SSLConnection or kwargs.pop("ssl", False)
    remap = kwargs.pop("address_remap", None)
    kwargs.setdefault("socket_timeout", SOCKET_TIMEOUT)
    kwargs.setdefault("socket_connect_timeout", CONNECT_TIMEOUT)
    kwargs.setdefault("socket_keepalive", True)
    kwargs["protocol"] = 2  # answers as plain arrays, and no messages between them
    return ConnectionOptions(
        tuple(nodes), kwargs, tls, kwargs["socket_timeout"], import_string(remap) if isinstance(remap, str) else remap
    )
