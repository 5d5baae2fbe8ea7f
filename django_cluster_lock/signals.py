"""Django signals of the lock. Sent in whichever thread noticed; receivers must not wait."""

from django.dispatch import Signal

lock_lost = Signal()
"""A renewed lease ended before it was released. ``sender`` is the Lease class; ``lease`` and ``reason`` are given."""

# Of single flight. ``sender`` is the task, ``name`` that of the flight's lock.

flight_started = Signal()
"""A run has taken its key; ``task_id`` is given."""

flight_ended = Signal()
"""A run has ended; given are ``task_id`` and ``state``, Celery's, or None if the worker was told to stop at once."""

flight_joined = Signal()
"""A duplicate gets the outcome of the flight under way; given are ``flight_id`` (empty if that runs inline) and
``holder`` (a `snapshots.Owner`). Like the next three it is sent once for each duplicate, where that is known first."""

flight_skipped = Signal()
"""A duplicate will not be run; given are ``flight_id`` and ``holder``."""

flight_refused = Signal()
"""A duplicate gets `DuplicateFlight`; given are ``flight_id`` and ``holder``."""

flight_queued = Signal()
"""A duplicate will be run after the flight under way (on_duplicate "rerun" or "wait"); given are ``flight_id`` and
``holder``."""

flight_parked = Signal()
"""A worker has put a message aside until the flight under way has ended; given are ``task_id`` and ``holder``."""

flight_settled = Signal()
"""A message was ended with the outcome of the flight that it waited for; ``task_id`` is given."""

flight_recovered = Signal()
"""The key of a run that died was freed, or went to the next; ``task_id`` is given (empty if a sweep found it), and
``status``: "released", "next" (a parked message took over), "handed" (to a waiter), "kept" (the message comes again).
Sent in the worker's parent process, or where the sweep runs."""
