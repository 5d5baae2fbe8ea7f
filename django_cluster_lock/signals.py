"""Django signals of the lock. Sent in whichever thread noticed; receivers must not wait."""

from django.dispatch import Signal

lock_lost = Signal()
"""A renewed lease ended before it was released. ``sender`` is the Lease class; ``lease`` and ``reason`` are given."""

flight_duplicate = Signal()
"""A call, or the start of a run, found its key in flight. ``sender`` is the task; given are the lock's ``name``,
``flight_id`` (empty if that runs inline), ``holder`` (a `snapshots.Owner`) and ``on_duplicate``. Sent once for each.
"""
