import secrets
from collections.abc import Sequence

from shop.models import Event, Ticket

PROGRAMME = (
    ("The Thundering Herd", "Great Hall", "48.00"),
    ("Split Brain Quartet", "Chamber Music Hall", "32.50"),
    ("An Evening with a Replica", "Studio", "18.00"),
    ("Last Write Wins", "Great Hall", "55.00"),
    ("Two Generals, One Stage", "Old Theatre", "27.00"),
    ("The Byzantine Choir", "Cathedral", "39.90"),
)


def create_events(capacity: int) -> list[Event]:
    return [
        Event.objects.create(name=name, place=place, price=price, capacity=capacity) for name, place, price in PROGRAMME
    ]


def create_tickets(events: Sequence[Event], number: int) -> list[Ticket]:
    """So many sold tickets of each event, for which no invoice was sent yet."""
    return Ticket.objects.bulk_create(
        Ticket(event=event, buyer=f"buyer {seat}", price=event.price, payment=secrets.token_hex(8))
        for event in events
        for seat in range(1, number + 1)
    )
