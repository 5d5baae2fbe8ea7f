"""Run a flow of the protocol, on blocking connections or in an event loop.

What interrupts an action is thrown into the flow, which may have something to take back before it ends; a driver
never closes a flow.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from django_cluster_lock.actions import Actions
from django_cluster_lock.connections.aio import AsyncConnections
from django_cluster_lock.connections.sync import Connections

T = TypeVar("T")
_unfinished: set[asyncio.Task[object]] = set()


def run(flow: Actions[T], connections: Connections, answer: object = None, error: BaseException | None = None) -> T:
    """Run a flow and return its result; of one that has begun the rest, from the answer to what it waits for."""
    while True:
        try:
            action = flow.throw(error) if error else flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            error = None  # which refers to this frame: else both would wait for the collector of garbage
        try:
            answer = connections.perform(action)
        except BaseException as raised:
            error = raised


def run_ahead(flow: Actions[T], connections: Connections) -> Callable[[], T]:
    """Send what a flow asks for first, so that its caller can do something until the answer is there.

    Returns:
        What runs the rest of the flow and gives its result. It must be called: until then a connection is taken.
    """
    action = next(flow)
    try:
        answer = connections.begin(action)
    except BaseException as interruption:
        run(flow, connections, error=interruption)
        raise
    return partial(_finish, flow, connections, answer)


def _finish(flow: Actions[T], connections: Connections, answer: Callable[[], object]) -> T:
    try:
        answered = answer()
    except BaseException as error:
        return run(flow, connections, error=error)
    return run(flow, connections, answered)


async def arun(flow: Actions[T], connections: AsyncConnections, error: BaseException | None = None) -> T:
    """Run a flow and return its result. Once cancelled, what the flow still has to do is done in a task of its own."""
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
