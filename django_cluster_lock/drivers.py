"""Run a flow of the protocol, on blocking connections or in an event loop.

What interrupts an action is thrown into the flow, which may have something to take back before it ends; a driver
never closes a flow.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeVar

from django_cluster_lock.actions import Actions
from django_cluster_lock.connections.aio import AsyncConnections
from django_cluster_lock.connections.sync import Connections

T = TypeVar("T")
_unfinished: set[asyncio.Task[object]] = set()


def run(flow: Actions[T], connections: Connections) -> T:
    """Runs a flow and gives its result."""
    return _go_on(flow, connections, _nothing)


def run_ahead(flow: Actions[T], connections: Connections) -> Callable[[], T]:
    """Sends what a flow asks for first, so that its caller can do something until the answer is there.

    Returns:
        What runs the rest of the flow and gives its result. It must be called: until then a connection is taken.
    """
    action = next(flow)
    try:
        answer = connections.begin(action)
    except BaseException as interruption:
        _go_on(flow, connections, partial(_fail, interruption))
        raise
    return partial(_go_on, flow, connections, answer)


def _go_on(flow: Actions[T], connections: Connections, perform: Callable[[], object]) -> T:
    """Runs the rest of a flow, from the answer to what it waits for."""
    while True:
        answer: object = None
        error: BaseException | None = None
        try:
            answer = perform()
        except BaseException as raised:
            error = raised
        try:
            action = flow.throw(error) if error else flow.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            del error  # which refers to this frame: else both would wait for the collector of garbage
        perform = partial(connections.perform, action)


def _nothing() -> None:
    """What a flow waits for that has not begun."""


def _fail(error: BaseException) -> NoReturn:
    raise error


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
