"""The payment service as the shop sees it: somewhere else, slow, and covered by no transaction of the database."""

import json
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from django.conf import settings

from shop.models import Event, Ticket


def charge(event: Event, buyer: str) -> str:
    """Takes the price from the buyer. Returns the payment's number."""
    if not settings.PAYMENT_URL:
        time.sleep(2)  # enough to see the lock on its page
        return secrets.token_hex(8)
    order = {"event": event.pk, "buyer": buyer, "amount": event.price, "till": os.getpid()}
    return str(_post("payments", order)["id"])


def refund(payment: str) -> None:
    if settings.PAYMENT_URL:
        _post("refunds", {"payment": payment})


def invoice(ticket: Ticket) -> str:
    """Sends the buyer an invoice. Returns its number."""
    if not settings.PAYMENT_URL:
        time.sleep(2)
        return secrets.token_hex(8)
    order = {"ticket": ticket.pk, "event": ticket.event_id, "amount": ticket.price, "till": os.getpid()}
    return str(_post("invoices", order)["id"])


def statement(event: Event) -> str:
    """Has the payment service look through all that was paid for an event. Returns the statement's number."""
    if not settings.PAYMENT_URL:
        time.sleep(2)
        return secrets.token_hex(8)
    return str(_post("statements", {"event": event.pk, "till": os.getpid()})["id"])


def _post(path: str, form: Mapping[str, object]) -> Any:
    url = f"{settings.PAYMENT_URL}/{path}"
    with urlopen(url, urlencode(form).encode(), timeout=10) as answer:  # noqa: S310 - the URL is from the settings
        return json.load(answer)
