"""Invoices and reports: the work that the tasks do."""

from django.db.models import Sum

from shop import payments
from shop.models import Event, Ticket


def bill(ticket_id: int) -> str:
    """Sends the buyer an invoice, unless that is done. Returns its number.

    Between looking and noting there is the payment service, which no transaction can span. Called twice at the same
    time, it sends two invoices: the caller has to see to it that it is not.
    """
    ticket = Ticket.objects.select_related("event").get(pk=ticket_id)
    if not ticket.invoice:
        ticket.invoice = payments.invoice(ticket)
        ticket.save(update_fields=["invoice"])
    return ticket.invoice


def report(event_id: int) -> dict[str, object]:
    """Makes the report of an event, which takes a while. It does no harm to make it twice, it only costs twice."""
    event = Event.objects.get(pk=event_id)
    statement = payments.statement(event)
    income = event.tickets.aggregate(sum=Sum("price"))["sum"] or 0
    return {"statement": statement, "tickets": event.tickets.count(), "income": f"{income:.2f}"}
