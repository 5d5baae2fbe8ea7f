"""What the types of `single_flight` promise. Never run: mypy reads it."""

from typing import assert_type

from celery import Task, shared_task

from django_cluster_lock import single_flight


@single_flight
def bare(number: int) -> str:
    return str(number)


@single_flight(key=["number"], on_duplicate="skip", timeout=5, queue_timeout=60, on_unavailable="run")
def chosen(number: int) -> str:
    return str(number)


@shared_task
@single_flight(key="{number}")
def below(number: int) -> str:
    return str(number)


@single_flight(key=lambda number: number, on_duplicate="raise", on_lost="tell", max_hold=60)
@shared_task
def above(number: int) -> str:
    return str(number)


assert_type(bare(1), str)
assert_type(chosen(number=1), str)
task: Task[[int], str] = below
assert_type(above.delay(1).id, str)

single_flight(on_duplicate="wait", scope="running")
single_flight(on_duplicate="replace")  # type: ignore[call-overload]
single_flight(scope="landed")  # type: ignore[call-overload]
