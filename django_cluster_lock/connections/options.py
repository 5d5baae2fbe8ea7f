"""How to connect: an alias's settings turned into redis-py connections, blocking or asyncio."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from django.core.exceptions import ImproperlyConfigured
from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.asyncio.connection import Connection as AsyncPlain
from redis.asyncio.connection import SSLConnection as AsyncTLS
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection
from redis.retry import Retry

from django_cluster_lock import servers
from django_cluster_lock.actions import Node
from django_cluster_lock.conf import AliasSettings
from django_cluster_lock.connections.topology import Remap

C = TypeVar("C", AbstractConnection, AsyncConnection)
DEFAULTS: Mapping[str, Any] = {"socket_timeout": 2.0, "socket_connect_timeout": 1.0, "socket_keepalive": True}
MAX_CONNECTIONS = 64  # to a node, of a process
FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
# What the embedded cluster has of its own, so that options meant for production do not keep it from being used.
EMBEDDED_HAS = ("username", "password", "credential_provider", "address_remap", "ssl")


@dataclass(frozen=True)
class ConnectionOptions:
    """Where to connect and how; times in seconds. ``max_connections`` is for each node, process and event loop."""

    nodes: tuple[Node, ...]
    kwargs: Mapping[str, Any]
    tls: bool
    socket_timeout: float
    remap: Remap | None
    max_connections: int = MAX_CONNECTIONS

    def connection(self, node: Node, timeout: float) -> AbstractConnection:
        """A blocking connection to a node, not yet open, whose opening may take that long."""
        kind = SSLConnection if self.tls else Connection
        return _unannounced(kind(host=node[0], port=node[1], retry=Retry(NoBackoff(), 0), **self._within(timeout)))

    def async_connection(self, node: Node, timeout: float) -> AsyncConnection:
        """An asyncio connection to a node, not yet open, whose opening may take that long."""
        kind = AsyncTLS if self.tls else AsyncPlain
        return _unannounced(kind(host=node[0], port=node[1], retry=AsyncRetry(NoBackoff(), 0), **self._within(timeout)))

    def _within(self, timeout: float) -> dict[str, Any]:
        limits = {name: min(self.kwargs[name], timeout) for name in ("socket_timeout", "socket_connect_timeout")}
        return {**self.kwargs, **limits}


def _unannounced(connection: C) -> C:
    """Return the connection, which will not tell the server about redis-py: two round trips that an ACL may deny.

    redis-py 6.4 goes by the names, 7.2 and later by `driver_info`; its arguments for them change with each release.
    """
    for name in ("lib_name", "lib_version", "driver_info"):
        setattr(connection, name, None)
    return connection


def connection_options(settings: AliasSettings) -> ConnectionOptions:
    """The connection options of an alias; starts the embedded cluster where that is its location.

    Raises:
        django.core.exceptions.ImproperlyConfigured: a file that TLS needs is not there.
    """
    location, options = settings.location, settings.options
    if location == (servers.EMBEDDED,):
        from django_cluster_lock import embedded

        location = embedded.up().urls
        options = {name: value for name, value in options.items() if not name.startswith(EMBEDDED_HAS)}
    nodes, arguments = servers.connection_arguments(location, options)
    tls, remap = arguments.pop("ssl"), servers.remap_of(arguments.pop("address_remap", None))
    for name in FILES:
        if arguments.get(name) and not Path(arguments[name]).exists():
            raise ImproperlyConfigured(
                f"CLUSTER_LOCKS[{settings.alias!r}]: {name} is {arguments[name]!r}, but there is no such file."
            )
    most = arguments.pop("max_connections", MAX_CONNECTIONS)
    # The second protocol version has plain arrays for answers, and no messages between them.
    kwargs = {**DEFAULTS, **arguments, "protocol": 2}
    return ConnectionOptions(nodes, kwargs, tls, kwargs["socket_timeout"], cast("Remap | None", remap), most)
