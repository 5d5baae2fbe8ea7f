"""What the shop does in the background: each invoice and each report is asked for by many, and made by one."""

from celery import shared_task

from django_cluster_lock import single_flight
from shop import billing
from shop.runs import noted


@shared_task
@single_flight(key="{ticket_id}")
def bill(ticket_id: int) -> str:
    return noted(billing.bill, ticket_id)


@shared_task
@single_flight(key="{event_id}", on_duplicate="join")
def report(event_id: int) -> dict[str, object]:
    return noted(billing.report, event_id)


# The same without the decorator. The demo floods them for comparison.


@shared_task
def bill_unguarded(ticket_id: int) -> str:
    return noted(billing.bill, ticket_id)


@shared_task
def report_unguarded(event_id: int) -> dict[str, object]:
    return noted(billing.report, event_id)
