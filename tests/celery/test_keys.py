"""Equal calls have one key, whoever makes it and in whichever process; distinct ones have distinct keys."""

import datetime
import decimal
import inspect
import itertools
import json
import os
import subprocess
import sys
import uuid

import pytest
from celery import Celery

from django_cluster_lock import single_flight
from django_cluster_lock.flights.keys import _binder, name_of
from django_cluster_lock.flights.policy import POLICY

pydantic = pytest.importorskip("pydantic")

app = Celery("keys", set_as_current=False)


@app.task(name="every")
@single_flight
def every(a, b=2, *rest, c=3, **more):
    pass


@app.task(name="bound", bind=True)
@single_flight
def bound(self, a, b=2):
    pass


@app.task(name="template", autoretry_for=(KeyError,))
@single_flight(key="invoice:{a}-{extra}")
def template(a, b=2, **more):
    pass


@app.task(name="some")
@single_flight(key=["a"])
def some(a, b=2):
    pass


@app.task(name="made", bind=True)
@single_flight(key=lambda a, b=2: {a, b})
def made(self, a, b=2):
    pass


@app.task(name="none")
@single_flight
def none():
    pass


def name(task, *args, **kwargs):
    return name_of(task, getattr(task, POLICY), args, kwargs)


def test_names_read_well():
    assert name(bound, 1) == "flight:bound:a=1,b=2"
    assert name(template, 1, extra="x:y") == "flight:template:invoice:1-x%3Ay"
    assert name(some, 7, b=8) == "flight:some:a=7"
    assert name(none) == "flight:none:"


@pytest.mark.parametrize("task", [every, bound, some, made])
def test_positional_keyword_and_default_arguments_are_the_same(task):
    assert len({name(task, 1), name(task, a=1), name(task, 1, 2), name(task, 1, b=2), name(task, b=2, a="1")}) == 1
    assert name(task, 1) != name(task, 2)


def test_every_argument_counts():
    calls = [((1,), {}), ((1, 3), {}), ((1, 2, 3), {}), ((1,), {"c": 4}), ((1,), {"d": 3}), ((1, 2, (3, 4)), {})]
    assert len({name(every, *args, **kwargs) for args, kwargs in calls}) == len(calls)


def test_values_cannot_reach_over_their_argument():
    assert name(bound, "1,b=2", 3) != name(bound, 1, "2,b=3")


def test_tasks_are_kept_apart():
    def function(a):
        pass

    one, two = (app.task(name=task)(single_flight(key="{a}")(function)) for task in ("x:y", "x"))
    assert name(one, "z") != name(two, "y:z")


def test_a_long_name_stands_as_a_digest():
    long = name(some, "x" * 1000)
    assert len(long) < 100
    assert long != name(some, "x" * 1001)


@pytest.mark.parametrize(
    "function",
    [
        lambda bind=1: locals(),
        lambda a, b=[], /, c={}, *rest, d=0, e, **more: locals(),
        lambda self, *, c="x": locals(),
        lambda *args, **kwargs: locals(),
    ],
)
def test_arguments_are_bound_as_in_a_call(function):
    bind = _binder("task", inspect.signature(function))
    named = ("", "a", "c", "e", "de", "cex", ("bind",), ("self", "c"))
    for args, kwargs in itertools.product([(1,) * count for count in range(5)], [dict.fromkeys(n, 2) for n in named]):
        try:
            arguments = function(*args, **kwargs)
        except TypeError:
            with pytest.raises(TypeError, match=r"^task\(\)"):
                bind(*args, **kwargs)
        else:
            assert bind(*args, **kwargs) == arguments


def test_a_value_without_canonical_form_is_refused_by_name():
    with pytest.raises(TypeError, match=r"'b'.*no canonical form"):
        name(bound, 1, object())


def test_what_the_worker_gets_has_the_key_of_what_was_sent():
    from kombu.serialization import dumps, loads

    values = [
        uuid.UUID(int=7), decimal.Decimal("1.50"), datetime.date(2026, 1, 2), (1, [2, None]), {"x": {"y": 1}},
        datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC), datetime.time(1, 2), 1.5, True, "é",
    ]  # fmt: skip
    for value in values:
        content_type, encoding, data = dumps([value], "json")
        assert name(some, value) == name(some, *loads(data, content_type, encoding)), value


def test_every_process_makes_the_same_key():
    code = """
import json, tests.celery.test_keys as t
print(json.dumps([t.name(t.every, {"x", "y", "z"}, d={"k": 1, "l": {3, 4}}), t.name(t.made, "left", "right")]))
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1
    assert len(set(json.loads(printed.pop()))) == 2


def test_a_dictionary_that_stands_for_a_pydantic_model_has_its_defaults_filled_in():
    class Order(pydantic.BaseModel):
        number: int
        country: str = "DE"

    @app.task(name="partial_order", shared=False, pydantic=True)
    @single_flight
    def partial_order(order: Order, other: Order | None = None):
        return order.number

    def name(*args):
        return name_of(partial_order, partial_order.flight_policy, args, {})

    whole = name(Order(number=4))
    assert name({"number": 4}) == name({"number": "4", "country": "DE"}) == whole
    assert name({"number": 4, "country": "FR"}) != whole
    assert name(Order(number=4), {"number": 5}) == name({"number": 4}, Order(number=5)) != whole
    assert name({"country": "DE"}) != whole  # no order: the run refuses it
