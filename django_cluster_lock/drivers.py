"""Run a flow of the protocol, on blocking connections or in an event loop.

What interrupts an action is thrown into the flow, which may have something to take back before it ends; a driver
never closes a flow.
"""

import asyncio
from typing import TypeVar

from django_cluster_lock.actions import Actions
from django_cluster_lock.connections.aio import AsyncConnections
from django_cluster_lock.connections.sync import Connections

T = TypeVar("T")
_unfinished: set[asyncio.Task[object]] = set()


def run(flow: Actions[T], connections: Connections) -> T:
    """Runs a flow and gives its result."""
    answer: object = None
    error: BaseException | None = None
    while True:
        try:
            action = flow.throw(error) if error else flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        error = None
        try:
            answer = connections.perform(action)
        except BaseException as raised:
            error = raised


async def arun(flow: Actions[T], connections: AsyncConnections, error: BaseException | None = None) -> T:
    """Runs a flow and gives its result. Once cancelled, what the flow still has to do is done in a task of its own."""
    answer: object = None
    while True:
        try:
            action = flow.throw(error) if error else flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        error = None
        try:
            answer = await connections.perform(action)
        except Exception as raised:
            error = raised
        except BaseException as interruption:
            rest = asyncio.ensure_future(arun(flow, connections, interruption))
            _unfinished.add(rest)
            rest.add_done_callback(_unfinished.discard)
            return await asyncio.shield(rest)
