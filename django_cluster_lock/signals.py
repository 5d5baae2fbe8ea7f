"""Django signals of the lock. Sent in whichever thread noticed; receivers must not wait."""

from django.dispatch import Signal

lock_lost = Signal()
"""A lease ended before it was released. ``sender`` is the Lease class; ``lease`` and ``reason`` are given."""
