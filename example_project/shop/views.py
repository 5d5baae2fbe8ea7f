from typing import NamedTuple
from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST, require_safe

from django_cluster_lock import cache_lock, locks
from django_cluster_lock.snapshots import LockSnapshot
from shop import tasks
from shop.models import Event
from shop.sales import SoldOut, sell

# One sale of an event at a time, in whichever process. The others wait for their turn; who waits in vain gets a 409.
one_at_a_time = cache_lock("event:{event_id}", blocking_timeout=10)

FLIGHT = "flight:"  # so begin the names of the locks of tasks; then come the task's name and the key
STATES = {"held": "running", "expired": "its lease is over"}  # of a flight, by that of its lock


class Flight(NamedTuple):
    """A task that waits for its run or is being run, by its lock."""

    task: str
    key: str
    state: str
    lock: LockSnapshot

    @classmethod
    def of(cls, lock: LockSnapshot) -> "Flight":
        task, _, key = lock.name.removeprefix(FLIGHT).partition(":")
        return cls(task.rpartition(".")[2], key, STATES.get(lock.state, lock.state), lock)


@require_safe
def events(request: HttpRequest) -> HttpResponse:
    return render(request, "shop/events.html", {"events": Event.objects.all()})


@require_safe
def event(request: HttpRequest, event_id: int) -> HttpResponse:
    found = get_object_or_404(Event, pk=event_id)
    return render(request, "shop/event.html", {"event": found, "tickets": found.tickets.order_by("-id")[:10]})


@require_POST
@one_at_a_time
def buy(request: HttpRequest, event_id: int) -> HttpResponse:
    try:
        ticket = sell(event_id, request.POST.get("buyer") or "anonymous")
    except SoldOut:
        messages.error(request, "Too late: it is sold out.")
    else:
        tasks.bill.delay_on_commit(ticket.pk)
        messages.success(request, f"Ticket {ticket.pk} is yours, {ticket.buyer}. Its invoice follows.")
    return redirect("event", event_id)


@require_POST
def make_report(_: HttpRequest, event_id: int) -> HttpResponse:
    """Has an event's report made. Whoever asks for it meanwhile joins: the same task, the same page."""
    event = get_object_or_404(Event, pk=event_id)
    return redirect("report", event.pk, tasks.report.delay(event.pk).id)


@require_safe
def report(request: HttpRequest, event_id: int, task_id: UUID) -> HttpResponse:
    found = get_object_or_404(Event, pk=event_id)
    result = tasks.report.AsyncResult(str(task_id))
    return render(request, "shop/report.html", {"event": found, "result": result})


@require_safe
def held_locks(request: HttpRequest) -> HttpResponse:
    listing = locks["default"].list()
    held = [lock for lock in listing if not lock.name.startswith(FLIGHT)]
    flights = [Flight.of(lock) for lock in listing if lock.name.startswith(FLIGHT)]
    return render(request, "shop/locks.html", {"locks": held, "flights": flights, "unread": listing.unread})


@require_safe
def api_events(_: HttpRequest) -> HttpResponse:
    return JsonResponse({"events": list(Event.objects.values("id", "name", "place", "price", "capacity", "sold"))})


@csrf_exempt
@require_POST
def api_buy_unguarded(request: HttpRequest, event_id: int) -> HttpResponse:
    """Sells a ticket without the lock. The demo floods it for comparison."""
    try:
        ticket = sell(event_id, request.POST.get("buyer") or "anonymous")
    except SoldOut:
        return JsonResponse({"status": "sold out"}, status=410)
    return JsonResponse({"status": "sold", "ticket": ticket.pk, "fence": ticket.fence}, status=201)


api_buy = one_at_a_time(api_buy_unguarded)
