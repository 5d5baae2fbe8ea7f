"""The exceptions: what they say, what catches them, and what survives a journey."""

import copy
import logging
import pickle

import pytest
import redis.exceptions
from celery import Celery
from celery.backends.base import BaseBackend

from django_cluster_lock import errors
from django_cluster_lock.errors import (
    DuplicateFlight,
    LockBusy,
    LockError,
    LockLost,
    LockNotHeld,
    LockNotReplicated,
    LockTimeout,
    LockUnavailable,
    NotFencedOff,
    StaleFence,
)
from django_cluster_lock.snapshots import Owner

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, LockError)]
ARGS = ("invoice:42", "1 of 2 replicas acknowledged it", "web1, pid 7")


def test_all_are_here():
    assert len(ALL) == 10


@pytest.mark.parametrize("kind", ALL)
def test_message_has_name_holder_detail_and_next_step(kind):
    text = str(kind(*ARGS))
    assert text == f"Lock 'invoice:42' {kind.problem} (held by {ARGS[2]}): {ARGS[1]}.{' ' * bool(kind.hint)}{kind.hint}"
    assert str(kind("invoice:42")).startswith(f"Lock 'invoice:42' {kind.problem}.")
    assert str(kind(ARGS[0], f"{ARGS[1]}.", ARGS[2])) == text
    assert kind is LockError or kind.hint.endswith(".")


@pytest.mark.parametrize("kind", ALL)
def test_a_message_is_one_line_that_no_holder_can_forge(kind):
    text = str(kind("a\nb", "told\r\n\x1b[31mred", str(Owner("web\n1", "7", "\x1b]0;t\x07", "task\u202e"))))
    assert text.isprintable()
    assert r"web\n1, pid 7, \x1b]0;t\x07, task task\u202e" in text
    assert str(kind("a", holder="web\n1")).isprintable()


def test_no_log_record_has_a_line_of_somebody_elses(caplog):
    logger = logging.getLogger("django_cluster_lock")
    logger.warning("%s: %s %d", "a\nb", LockBusy("a"), 7, extra={"lock": "a\nroot: all is fine", "reason": "\x1b[2J"})
    (record,) = caplog.records
    assert record.getMessage() == rf"a\nb: {LockBusy('a')} 7"
    assert (record.lock, record.reason) == (r"a\nroot: all is fine", r"\x1b[2J")


def test_nothing_is_said_of_other_shards():
    """It is not known where it is raised: a wrong password keeps every lock from being reached."""
    assert "not affected" not in str(LockUnavailable("a"))


def through_celery(error):
    with Celery(set_as_current=False) as app:
        backend = BaseBackend(app, serializer="json")
        stored = backend.decode(backend.encode(backend.prepare_exception(error)))
        return backend.exception_to_python(stored)


@pytest.mark.parametrize(
    "travel",
    [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy, through_celery],
    ids=["pickle", "copy", "deepcopy", "celery"],
)
@pytest.mark.parametrize("args", [ARGS, ARGS[:1]], ids=["all", "name"])
@pytest.mark.parametrize("kind", ALL)
def test_survives_whole(kind, args, travel):
    error = kind(*args)
    arrived = travel(error)
    assert type(arrived) is kind
    assert arrived.args == error.args
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        (LockBusy, (redis.exceptions.LockError,)),
        (LockTimeout, (LockBusy,)),
        (LockLost, (redis.exceptions.LockNotOwnedError,)),
        (LockNotHeld, (redis.exceptions.LockError,)),
        (LockNotReplicated, (LockUnavailable,)),
    ],
)
def test_is_caught_by(kind, parents):
    for parent in parents:
        with pytest.raises(parent):
            raise kind("a")


@pytest.mark.parametrize("kind", [LockUnavailable, LockNotReplicated, StaleFence, NotFencedOff, DuplicateFlight])
def test_no_form_takes_it_for_a_validation_error(kind):
    assert not issubclass(kind, ValueError)


def test_has_what_redis_locks_errors_carry():
    error = LockBusy(*ARGS)
    assert (error.lock_name, error.message) == ("invoice:42", str(error))
