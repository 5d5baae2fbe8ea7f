"""Selling a ticket: the work that must not be done twice at the same time for one event."""

from django.db import transaction
from django.shortcuts import get_object_or_404

from django_cluster_lock import LockLost, current_lock
from shop import payments
from shop.models import Event, Ticket


class SoldOut(Exception):
    pass


def sell(event_id: int, buyer: str) -> Ticket:
    """Sells one ticket, if there is a free seat.

    Between looking for a seat and taking it there is a payment, which no transaction can span. Called twice at the
    same time, it sells the same seat twice: the caller has to hold the event's lock.
    """
    event = get_object_or_404(Event, pk=event_id)
    if not event.free:
        raise SoldOut(event.name)
    payment = payments.charge(event, buyer)
    lock = current_lock()
    if lock and lock.lost:
        payments.refund(payment)
        raise LockLost(lock.name)
    event.sold += 1
    with transaction.atomic():
        event.save(update_fields=["sold"])
        return Ticket.objects.create(
            event=event, buyer=buyer, price=event.price, payment=payment, fence=lock.fence if lock else None
        )
