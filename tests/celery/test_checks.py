"""The system checks of flights: tasks whose duplicates have nothing to join, and functions that became no task."""

import itertools
import subprocess
import sys

import pytest
from celery import Celery, Task, _state, shared_task
from django.core.checks import Error, Warning  # noqa: A004 - Django's word

from django_cluster_lock import checks, single_flight
from django_cluster_lock.flights import faults

numbers = itertools.count()


def make():
    """A function that no other test has marked."""

    def function(a):
        pass

    function.__name__ = function.__qualname__ = f"function_{next(numbers)}_"
    return function


@pytest.fixture
def found(monkeypatch):
    """The messages about a function, in a project whose only app has the result backend given."""

    def look(backend, decorate, **conf):
        function = make()
        monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
        with Celery("checked", set_as_current=False) as app:
            app.conf.update(result_backend=backend, **conf)
            monkeypatch.setattr(faults, "_apps", lambda: [app])
            kept = decorate(app, function)
            finalized = app.finalized
            told = [each for each in checks.check_flights() if function.__qualname__ in each.msg]
            assert app.finalized == finalized
        assert all(each.hint for each in told), kept
        return [(type(each), each.id.rpartition(".")[2]) for each in told]

    return look


def below(app, function):
    return app.task(shared=False)(single_flight(function))


def above(app, function):
    return single_flight(app.task(shared=False)(function))


def made(app, function):
    task = below(app, function)
    assert task.name
    return task


def shared(app, function):
    return shared_task(single_flight(function))


EVERY = pytest.mark.parametrize("decorate", [below, above, made, shared])


@EVERY
@pytest.mark.parametrize("backend", [None, "disabled://"])
def test_E024(found, backend, decorate):
    assert found(backend, decorate) == [(Error, "E024")]


@EVERY
def test_W002(found, decorate):
    assert found("rpc://", decorate) == [(Warning, "W002")]


@EVERY
@pytest.mark.parametrize("backend", ["redis://127.0.0.1:1/0", "cache+memory://", "django-db"])
def test_a_backend_that_others_can_read(found, backend, decorate):
    assert found(backend, decorate) == []


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_nothing_to_join(found, policy):
    assert found(None, lambda app, it: app.task(shared=False)(single_flight(on_duplicate=policy)(it))) == []


@pytest.mark.parametrize("evaluated", [False, True])
def test_no_result_wanted(found, evaluated):
    def decorate(app, function):
        task = app.task(shared=False, ignore_result=True)(single_flight(function))
        return evaluated and task.name

    assert found(None, decorate) == []


def test_no_results_wanted_at_all(found):
    assert found("rpc://", below, task_ignore_result=True) == []


def test_W003(found):
    assert found("cache+memory://", lambda _, function: single_flight(function)) == [(Warning, "W003")]


class Deaf(Task):
    abstract = True

    def __init_subclass__(cls, **options):
        """It does not call that of `Task`."""


class Hearing(Task):
    abstract = True

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)


@pytest.mark.parametrize(("base", "expected"), [(Deaf, [(Warning, "W003")]), (Hearing, [])])
@pytest.mark.parametrize("make", ["made", "pending", "shared"])
def test_W003_of_a_base_that_keeps_its_tasks_from_us(found, make, base, expected):
    def decorate(app, function):
        options = {"base": base, "name": function.__name__}
        task = (shared_task(**options) if make == "shared" else app.task(shared=False, **options))(
            single_flight(function)
        )
        return make == "made" and task.name

    assert found("cache+memory://", decorate) == expected


def test_W003_of_a_class_whose_base_keeps_it_from_us(found):
    def decorate(app, function):
        return app.register_task(type("Own", (Deaf,), {"name": "own", "run": staticmethod(single_flight(function))})())

    assert found("cache+memory://", decorate) == [(Warning, "W003")]


@pytest.mark.parametrize("options", [{"autoretry_for": (KeyError,)}, {"bind": True}], ids=str)
def test_a_function_that_celery_wraps_is_a_task(found, options):
    def decorate(app, function):
        task = app.task(shared=False, **options)(single_flight(function))
        assert task.name
        return task

    assert found("cache+memory://", decorate) == []


def test_a_project_without_flights_loads_no_celery():
    code = """
import sys
from django.conf import settings
settings.configure(CLUSTER_LOCKS={"default": {"LOCATION": "redis://10.0.0.1", "KEY_PREFIX": "x"}},
                   INSTALLED_APPS=["django_cluster_lock"])
import django
django.setup()
from django.core.checks import run_checks
print(run_checks(tags=["cluster_lock"]), "celery" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"
