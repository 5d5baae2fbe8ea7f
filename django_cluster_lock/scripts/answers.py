"""What each script may answer: its status, and the types of what follows. More may follow from a later release."""

from collections.abc import Sequence
from types import NoneType
from typing import TypeAlias

Shape: TypeAlias = tuple[type | tuple[type, ...], ...]

_TEXT = (bytes, NoneType)  # a field that a record need not have
_HOLDER: Shape = (int, int, _TEXT, _TEXT, _TEXT, _TEXT)  # ms left of the lease, 1 if the first in the queue, who
_ENTRY: Shape = (bytes, bytes, _TEXT)  # its message may be gone
ENTRIES: Shape = (bytes, bytes, _TEXT)  # any number of them

ANSWERS: dict[str, dict[bytes, Shape]] = {
    "acquire": {b"own": (int,), b"queued": _HOLDER, b"busy": _HOLDER, b"over": ()},
    "attach": {b"own": (int,), b"lost": (), b"over": ()},
    "renew": {b"ok": (int,), b"lost": ()},
    "release": {b"released": (), b"handed": (), b"not owner": ()},
    "sweep": {b"kept": (), b"removed": ()},
    "look": {b"held": (bytes, int, int, _TEXT, _TEXT, _TEXT, _TEXT), b"free": ()},
    "guard": {b"done": (), b"failed": (bytes,), b"stale": (bytes,), b"late": ()},
    "claim": {
        b"own": (int,),
        b"busy": (*_HOLDER, bytes),
        b"next": _ENTRY,
        b"parked": (),
        b"gone": (),
        b"over": (),
    },
    "start": {
        b"own": (int,),
        b"busy": _HOLDER,
        b"parked": _HOLDER,
        b"next": _ENTRY,
        b"passed": (bytes,),
        b"apart": (),
        b"ended": (),
        b"over": (),
    },
    "land": {b"settle": ENTRIES, b"next": _ENTRY, b"kept": (), b"handed": (), b"released": (), b"lost": ()},
    "drain": {b"next": _ENTRY, b"busy": (), b"empty": ()},
    "confirm": {b"ok": ()},
    "ended": {b"ended": (), b"running": (), b"open": ()},
}


def read(script: str, value: object) -> tuple[bytes, Sequence[object]] | None:
    """Return the status that a script answered and what follows it; None if it cannot have answered that."""
    status, details = (value[0], value[1:]) if type(value) is list and value else (value, ())
    if type(status) is not bytes:
        return None
    shape = ANSWERS[script].get(status)
    if not shape:
        return None if shape is None else (status, details)
    if shape is ENTRIES:
        shape *= (len(details) + 2) // 3
    return (status, details) if len(details) >= len(shape) and all(map(isinstance, details, shape)) else None
