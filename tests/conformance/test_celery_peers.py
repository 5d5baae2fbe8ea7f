"""What users of celery-singleton, celery-once and celery-heimdall rely on, told anew for `single_flight`.

Most of it is tested where it belongs; this is where. Rows without a file are below. What is otherwise on purpose stands
in deviations-celery.txt, and what became of the complaints about locks that are stuck in test_celery_complaints.py.

celery-singleton
| scenario                                        | test                                                             |
|-------------------------------------------------|------------------------------------------------------------------|
| an equal call gets the id of the first          | celery/test_duplicates: a_duplicate_joins_the_flight...          |
| a call at commit is unique from the commit on   | a_call_at_commit_has_its_key_from_the_commit_on                  |
| after success, after an error the key is free   | celery/test_ends: success, failure                               |
| after a failed publish the key is free          | celery/test_ends: a_call_that_cannot...; a_broker_that_cannot... |
| positional equals keyword                       | celery/test_keys: positional_keyword_and_default_arguments...    |
| unique_on: some arguments count                 | what_is_not_in_the_key_does_not_count                            |
| unique_on: an unknown argument is refused       | celery/test_adoption: what_is_no_function_is_refused             |
| arguments that JSON does not know: UUID, dates  | arguments_of_every_kind_that_the_serializer_takes                |
| the order of a dictionary does not count        | the_order_of_a_dictionary_does_not_count                         |
| raise_on_duplicate                              | celery/test_duplicates: a_duplicate_raises_with_the_id...        |
| a retry goes out, and keeps the key             | celery/test_ends: a_retry_runs_under_the_same_id...              |
| tasks without a result are unique too           | a_call_whose_result_is_ignored_joins                             |
| a worker that starts need not clear the locks   | test_celery_complaints: a_worker_that_is_killed...               |

celery-once
| scenario                                        | test                                                             |
|-------------------------------------------------|------------------------------------------------------------------|
| a duplicate raises; gracefully it does not      | celery/test_duplicates: a_duplicate_raises..., a_duplicate_is... |
| keys: some arguments count                      | what_is_not_in_the_key_does_not_count                            |
| keys: none, one run at a time of the task       | a_key_of_no_arguments_is_one_for_the_whole_task                  |
| keys: an optional argument that is left out     | an_optional_argument_of_the_key_may_be_left_out                  |
| different arguments, different tasks: parallel  | test_duplicates: different_keys...; test_keys: tasks_are_kept... |
| a number and its text are the same              | celery/test_keys: positional_keyword_and_default_arguments...    |
| self does not count                             | celery/test_keys: names_read_well                                |
| a retry keeps the lock                          | celery/test_ends: a_waiting_retry_is_joined                      |
| the timeout of the lock                         | a_message_that_is_lost_frees_the_key_after_its_queue_timeout     |
| base classes of one's own                       | celery/test_adoption: a_bases_own_methods_are_called             |
| eager and direct calls                          | celery/test_inline                                               |

celery-heimdall
| scenario                                        | test                                                             |
|-------------------------------------------------|------------------------------------------------------------------|
| unique: a duplicate raises, naming the first    | celery/test_duplicates: a_duplicate_raises_with_the_id...        |
| the key by a callable                           | a_callable_makes_the_key_of_a_call_however_it_is_written         |
| joining the one that runs                       | celery/test_duplicates: a_duplicate_joins_the_flight...          |
| the lock of a run ends with its time            | celery/test_ends: a_killed_child_holds_the_key_for_no_longer...  |
| the locks live on servers of their own          | every one of them: the locks are on a cluster, not the broker  |
"""

import datetime
import decimal
import uuid
from contextlib import suppress

import pytest
from django.db import transaction
from kombu import Connection
from kombu.exceptions import OperationalError

from django_cluster_lock import DuplicateFlight
from tests.celery.workload import app, brief, every_argument, join, optional, raising, whole
from tests.records import until

PATIENCE = 60
NOBODY = "nobody"  # a queue that no worker looks at: what is published there holds its key and never runs


def test_what_is_not_in_the_key_does_not_count(flights, prefork):
    first = optional.delay(flights.key, gated=True)
    flights.until("start")
    assert optional.delay(flights.key, gated=False).id == first.id
    assert optional.apply_async((flights.key, "north"), queue=NOBODY).id != first.id
    flights.open()
    assert first.get(PATIENCE).startswith(flights.key)
    assert len(flights.events("start")) == 1


def test_an_optional_argument_of_the_key_may_be_left_out(flights, prefork):
    """And its key is the same where it is called, where it is run and where it is freed."""
    first = optional.delay(flights.key, gated=True)
    flights.until("start")
    for args, kwargs in [((flights.key, None), {}), ((), {"key": flights.key, "region": None, "options": None})]:
        assert optional.apply_async(args, kwargs).id == first.id
    flights.open()
    first.get(PATIENCE)
    until(lambda: optional.apply_async((flights.key,), queue=NOBODY).id != first.id)


def test_a_key_of_no_arguments_is_one_for_the_whole_task(flights):
    first, second = (whole.apply_async((key,), queue=NOBODY) for key in (flights.key, f"{flights.key}-other"))
    assert first.id == second.id


@pytest.mark.parametrize(
    "value",
    [
        uuid.UUID("3f1e9a0c-5f0b-4c55-9d3b-2f6a7c1d8e90"),
        decimal.Decimal("9.90"),
        datetime.date(2026, 3, 1),
        datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC),
        [1, (2, None)],
        "é\n",
    ],
    ids=str,
)
def test_arguments_of_every_kind_that_the_serializer_takes(flights, prefork, value):
    first = optional.delay(flights.key, options=value, gated=True)
    flights.until("start")
    assert optional.delay(flights.key, options=value).id == first.id
    flights.open()
    assert first.get(PATIENCE).startswith(flights.key)
    assert len(flights.events("start")) == 1


def test_the_order_of_a_dictionary_does_not_count(flights):
    calls = [{"key": flights.key, "x": [1], "y": None}, {"y": None, "x": [1], "key": flights.key}]
    first, second = (every_argument.apply_async((call,), queue=NOBODY) for call in calls)
    assert first.id == second.id


def test_a_call_whose_result_is_ignored_joins(flights, prefork):
    first = join.apply_async((flights.key,), {"gated": True}, ignore_result=True)
    flights.until("start")
    assert join.apply_async((flights.key,), ignore_result=True).id == first.id
    flights.open()
    flights.until_free(join)
    assert len(flights.events("arrived")) == 1


def test_a_callable_makes_the_key_of_a_call_however_it_is_written(flights):
    first = raising.apply_async((flights.key, "succeed"), queue=NOBODY)
    for args, kwargs in [((flights.key, "fail"), {}), ((), {"key": flights.key})]:
        with pytest.raises(DuplicateFlight) as raised:
            raising.apply_async(args, kwargs, queue=NOBODY)
        assert raised.value.flight_id == first.id


def test_a_broker_that_cannot_be_reached_leaves_no_key_behind(flights):
    with Connection("redis://127.0.0.1:1") as nowhere, pytest.raises(OperationalError):
        join.apply_async((flights.key,), connection=nowhere, retry=False)
    assert flights.free(join)


@pytest.mark.django_db(transaction=True)
def test_a_call_at_commit_has_its_key_from_the_commit_on(flights):
    class RolledBack(Exception):
        pass

    with suppress(RolledBack), transaction.atomic():
        join.apply_async_on_commit((flights.key,), queue=NOBODY)
        raise RolledBack
    assert flights.free(join)
    with transaction.atomic():
        join.apply_async_on_commit((flights.key,), queue=NOBODY)
        assert flights.free(join)
    assert not flights.free(join)


def test_a_message_that_is_lost_frees_the_key_after_its_queue_timeout(flights):
    queue = f"{NOBODY}-{flights.key}"
    first = brief.apply_async((flights.key,), queue=queue)
    with app.connection() as connection:
        assert connection.default_channel.queue_purge(queue) == 1
    flights.until_free(brief)
    assert brief.apply_async((flights.key,), queue=queue).id != first.id


def test_the_time_of_a_key_counts_from_when_its_message_is_due(flights):
    brief.apply_async((flights.key,), queue=NOBODY, countdown=60)
    record = flights.record(brief)
    assert int(record.fields()["d"]) - record.now() > 59_000
