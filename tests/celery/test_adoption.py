"""However a task is made, and in whichever order it is decorated, it becomes one of single flight."""

import subprocess
import sys
from types import FunctionType

import pytest
from celery import Celery, Task, current_app, shared_task
from celery.worker.request import Request

from django_cluster_lock import single_flight
from django_cluster_lock.flights.keys import name_of
from django_cluster_lock.flights.policy import POLICY
from tests.celery.workload import based, join

pydantic = pytest.importorskip("pydantic")


@pytest.fixture
def app():
    with Celery("adoption", set_as_current=False) as app:
        app.conf.update(task_always_eager=False, broker_url="memory://", result_backend="cache+memory://")
        yield app


@pytest.fixture
def current(app):
    before = current_app._get_current_object()
    app.set_current()
    yield app
    before.set_current()


def is_adopted(task):
    policy = getattr(task, POLICY, None)
    return policy is not None and policy.key == "{number}" and type(task).__call__ is not Task.__call__


flying = single_flight(key="{number}")


def plain(number):
    return number


def bound(self, number):
    return number


def fresh(function):
    """A copy without the mark that an earlier test may have left."""
    return FunctionType(function.__code__, globals(), function.__name__)


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize("options", [{}, {"bind": True}, {"autoretry_for": (KeyError,)}], ids=str)
@pytest.mark.parametrize("outermost", ["single_flight", "task"])
def test_app_task(app, finalized, options, outermost):
    if finalized:
        app.finalize()
    make, function = app.task(name="t", shared=False, **options), fresh(bound if "bind" in options else plain)
    task = flying(make(function)) if outermost == "single_flight" else make(flying(function))
    assert is_adopted(app.tasks["t"])
    assert task.name == "t"


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_task_that_exists_already(app, evaluated):
    task = app.task(name="t", shared=False)(fresh(plain))
    if evaluated:
        assert task.name == "t"
    assert flying(task) is task
    assert is_adopted(app.tasks["t"])


@pytest.mark.parametrize("outermost", ["single_flight", "shared_task"])
@pytest.mark.parametrize("options", [{}, {"bind": True}], ids=str)
def test_shared_task_in_every_app(current, options, outermost):
    name = f"shared-{outermost}-{'bind' in options}"
    function = fresh(bound if options else plain)
    if outermost == "single_flight":
        flying(shared_task(name=name, **options)(function))
    else:
        shared_task(name=name, **options)(flying(function))
    assert is_adopted(current.tasks[name])
    with Celery("another", set_as_current=False) as another:
        assert is_adopted(another.tasks[name])


def test_class_based(app):
    class Base(Task):
        name = "base"

        @single_flight(key="{number}")
        def run(self, number):
            return number

    class Inherits(Base):
        name = "inherits"

    class Overrides(Base):
        name = "overrides"

        def run(self, number):
            return number

    tasks = [app.register_task(cls()) for cls in (Base, Inherits, Overrides)]
    assert [is_adopted(task) for task in tasks] == [True, True, False]
    assert tasks[2](5) == 5


def test_a_bases_own_methods_are_called(app, flights):
    calls = []

    class Base(Task):
        abstract = True

        def apply_async(self, args=None, kwargs=None, **options):
            calls.append("apply_async")
            options.setdefault("queue", "nobody")
            return super().apply_async(args, kwargs, **options)

        def __call__(self, *args, **kwargs):
            calls.append("call")
            return super().__call__(*args, **kwargs)

    class Mine(Request):
        pass

    task = app.task(name="t", shared=False, base=Base, Request=Mine)(flying(fresh(plain)))
    first = task.delay(flights.key)
    assert task.delay(flights.key).id == first.id
    assert calls == ["apply_async"]
    assert task(f"{flights.key}-other") == f"{flights.key}-other"
    assert calls == ["apply_async", "call"]
    assert issubclass(task.Request, Mine)


def test_a_base_with_its_own_call_in_a_worker(flights, prefork):
    results = [based.delay(flights.key, gated=True) for _ in range(2)]
    flights.until("start")
    flights.open()
    assert results[0].get(20) == results[1].get(20)
    assert [event["id"] for event in flights.events("base") + flights.events("start")] == [results[0].id] * 2
    flights.until_free(based)


def test_pydantic_models_and_their_dumps_are_the_same_key(app, flights):
    class Order(pydantic.BaseModel):
        number: str
        amount: int = 1

    @app.task(name="t", shared=False, pydantic=True)
    @single_flight
    def pay(order: Order) -> None:
        return None

    order = Order(number=flights.key)
    policy = getattr(pay, POLICY)
    assert name_of(pay, policy, [order], {}) == name_of(pay, policy, [], {"order": order.model_dump()})
    assert pay.delay(order.model_dump()).id == pay.delay(order=order.model_dump()).id


def test_arguments_are_checked_at_the_call(app, flights):
    task = app.task(name="t", shared=False)(flying(fresh(plain)))
    with pytest.raises(TypeError, match="argument"):
        task.delay()
    with pytest.raises(TypeError, match="argument"):
        task.delay(1, 2)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="decorates a task's function"):
        single_flight(key="{x}")(42)
    with pytest.raises(TypeError, match="has no parameter 'x'"):
        single_flight(key="{x}")(plain)
    with pytest.raises(TypeError, match=r"write '\{number\}' for its argument"):
        single_flight(key="number")(plain)
    with pytest.raises(TypeError, match="after the task's call has returned"):

        @single_flight
        async def later():
            pass


@pytest.mark.parametrize(
    "options",
    [
        {"on_duplicate": "ignore"},
        {"on_lost": "raise"},
        {"on_unavailable": "skip"},
        {"queue_timeout": 0},
        {"timeout": -1},
        {"max_hold": True},
    ],
    ids=str,
)
def test_a_bad_argument_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        single_flight(**options)


def test_what_does_not_exist_is_unknown():
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        single_flight(limit=2)


def test_a_web_process_does_not_load_the_worker():
    code = "import sys, django_cluster_lock as d; d.single_flight; print('celery.worker.request' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "False\n"


def test_started_is_not_stored_for_duplicates(app):
    @app.task(name="t", shared=False, track_started=True)
    @flying
    def task(number):
        return number

    assert task.track_started is False
    assert type(app.tasks["t"])._single_flight_track_started is True
    assert join.track_started is False
