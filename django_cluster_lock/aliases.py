"""The aliases of CLUSTER_LOCKS at work: for each its settings, the cluster's layout, connections and renewer."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from django.core.signals import setting_changed

from django_cluster_lock import conf, drivers
from django_cluster_lock.actions import Actions
from django_cluster_lock.connections.aio import AsyncConnections
from django_cluster_lock.connections.options import ConnectionOptions, connection_options
from django_cluster_lock.connections.sync import Connections
from django_cluster_lock.connections.topology import Topology
from django_cluster_lock.exchange import carry
from django_cluster_lock.protocol import WAIT_FOR_REPLICAS, Flow, Terms
from django_cluster_lock.renewal import Renewer

T = TypeVar("T")
LONGEST_FIELD = 64  # bytes: a record with longer ones takes twice the memory
TERMS_KEPT = 1000
HOST = socket.gethostname().encode()[:LONGEST_FIELD]


class Alias:
    """One alias at work. What needs the network is made on first use."""

    def __init__(self, settings: conf.AliasSettings) -> None:
        self.settings = settings
        self._terms: dict[tuple[float, str], Terms] = {}
        self._async: dict[asyncio.AbstractEventLoop, AsyncConnections] = {}

    @cached_property
    def options(self) -> ConnectionOptions:
        return connection_options(self.settings)

    @cached_property
    def topology(self) -> Topology:
        return Topology(self.options.nodes, self.options.remap)

    @cached_property
    def renewer(self) -> Renewer:
        return Renewer(self.topology, self.perform)

    @cached_property
    def connections(self) -> Connections:
        return Connections(self.options)

    @property
    def patience(self) -> float:
        """How long to try where the caller sets no limit: time for an attempt that fails and one that does not."""
        return WAIT_FOR_REPLICAS + 2 * self.options.socket_timeout

    def terms(self, timeout: float, whose: str = "") -> Terms:
        """What to ask a lease of that length for, on behalf of whoever runs here, or of the state named."""
        whose = whose or threading.current_thread().name
        terms = self._terms.get((timeout, whose))
        if terms is None:
            if len(self._terms) >= TERMS_KEPT:
                self._terms = {}
            terms = self._terms[timeout, whose] = self._terms_for(timeout, owner(whose, ""))
        return terms

    def terms_of_task(self, timeout: float, task: str) -> Terms:
        """The same on behalf of a Celery task that runs here."""
        return self._terms_for(timeout, owner(threading.current_thread().name, task))

    def _terms_for(self, timeout: float, whose: tuple[bytes, ...]) -> Terms:
        settings = self.settings
        return Terms(timeout, settings.clock_skew, settings.replicas, whose, self.patience)

    def run(self, flow: Flow[T]) -> T:
        return drivers.run(carry(flow, self.topology, self.renewer.cancel), self.connections)

    def run_ahead(self, flow: Flow[T]) -> Callable[[], T]:
        """Sends a flow's first request; what is returned gives the result, and has to be called."""
        return drivers.run_ahead(carry(flow, self.topology, self.renewer.cancel), self.connections)

    async def arun(self, flow: Flow[T]) -> T:
        carried = carry(flow, self.topology, self.renewer.cancel)
        return await drivers.arun(carried, await self._connections_here())

    def perform(self, flow: Actions[T]) -> T:
        """Runs a flow that has no calls of the protocol in it but speaks to nodes itself."""
        return drivers.run(flow, self.connections)

    def close(self) -> None:
        """Closes all idle connections."""
        if "connections" in self.__dict__:
            self.connections.forget()
        for connections in self._async.values():
            connections.forget()

    def leave(self) -> None:
        """Drops the sockets that a fork copied; the parent goes on with its own."""
        if "connections" in self.__dict__:
            self.connections.forget(close=False)

    async def _connections_here(self) -> AsyncConnections:
        loop = asyncio.get_running_loop()
        connections = self._async.get(loop)
        if connections is None:
            # A copy, since loops of other threads may be added meanwhile.
            self._async = {loop: pool for loop, pool in dict(self._async).items() if not loop.is_closed()}
            connections = self._async[loop] = await AsyncConnections.open(self.options)
        return connections


class Aliases(dict[str, Alias]):
    """Gives the `Alias` of a name, one in each process, made when it is first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._making = threading.Lock()

    def __missing__(self, name: str) -> Alias:
        with self._making:
            return self.get(name) or self.setdefault(name, Alias(conf.load(name)))

    def close(self) -> None:
        """Closes all connections; each alias is made anew from the settings when it is next used."""
        made = list(self.values())
        self.clear()
        for alias in made:
            alias.close()

    def start_anew(self) -> None:
        """Forgets what a fork copied: sockets the parent still uses, locks its threads held, its renewer."""
        self._making = threading.Lock()
        made = list(self.values())
        self.clear()
        for alias in made:
            alias.leave()


def owner(thread: str, task: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Who asks: host, process, thread, Celery task, whose id is kept whole since duplicates go by it."""
    return HOST, b"%d" % os.getpid(), thread.encode(errors="replace")[:LONGEST_FIELD], task.encode()


def _on_setting_changed(*, setting: str, **_: Any) -> None:
    if setting in {"CLUSTER_LOCKS", "CACHES"}:
        aliases.close()


aliases = Aliases()
setting_changed.connect(_on_setting_changed)
os.register_at_fork(after_in_child=aliases.start_anew)
