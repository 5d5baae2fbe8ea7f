"""The canonical text of a value: the same in every process, different for values that differ.

What reads the same in a URL is the same: 42 and "42", and a model instance and its primary key.
"""

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Mapping, Sequence, Set


def canonical(value: object) -> str:
    """The text that stands for a value in a lock's name.

    Raises:
        TypeError: it has none, since its repr may differ between processes.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, enum.Enum):
        return canonical(value.value)
    if value is None or isinstance(value, bool):
        return f"%{value}"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, decimal.Decimal):
        return str(value.normalize())
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat() if value.tzinfo else value.isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return f"{value // datetime.timedelta(microseconds=1)}us"
    if isinstance(value, bytes | bytearray):
        return f"%b{value.hex()}"
    if hasattr(value, "_meta") and hasattr(value, "pk"):
        return _primary_key(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return canonical({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    return _container(value)


def _text(value: str) -> str:
    return value.replace("%", "%25")


def _primary_key(instance: object) -> str:
    key = getattr(instance, "pk", None)
    if key is None:
        raise TypeError(f"an unsaved {type(instance).__name__} has no primary key to name it by; save it first")
    return canonical(key)


def _container(value: object) -> str:
    if isinstance(value, Mapping):
        return "%d(" + ",".join(sorted(f"{_item(key)}={_item(value[key])}" for key in value)) + ")"
    if isinstance(value, Set):
        return "%s(" + ",".join(sorted(map(_item, value))) + ")"
    if isinstance(value, Sequence):
        return "%l(" + ",".join(map(_item, value)) + ")"
    raise TypeError(f"a {type(value).__name__} has no canonical form; pass its id or a string instead")


def _item(value: object) -> str:
    written = canonical(value)
    if isinstance(value, Mapping | Set) or (isinstance(value, Sequence) and not isinstance(value, str)):
        return written
    return "".join(f"%{ord(char):02X}" if char in "(),=" else char for char in written)
