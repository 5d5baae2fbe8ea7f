"""The canonical text of a value: the same in every process, different for values that differ.

What reads the same in a URL is the same: 42 and "42", and a model instance and its primary key.
"""

import dataclasses
import datetime
import decimal
import enum
import uuid
from collections.abc import Mapping, Sequence, Set

LONGEST_DECIMAL = 100  # digits before or after the point; beyond that, it is written with an exponent
# How the characters are written that mean something: of a string, and of one in a container.
_ALONE = str.maketrans({"%": "%25"})
_WITHIN = str.maketrans({char: f"%{ord(char):02X}" for char in "%(),="})


def canonical(value: object, escapes: Mapping[int, str] = _ALONE) -> str:
    """The text that stands for a value in a lock's name.

    Args:
        escapes: how characters of a string are written, by their code points.

    Raises:
        TypeError: it has none, since its repr may differ between processes.
    """
    if isinstance(value, str):
        return value.translate(escapes)
    if isinstance(value, enum.Enum):
        return canonical(value.value, escapes)
    if value is None or isinstance(value, bool):
        return f"%{value}"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(float(value) + 0.0)  # -0.0 equals 0.0
    if isinstance(value, decimal.Decimal):
        return _decimal(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat() if value.utcoffset() is None else value.astimezone(datetime.UTC).isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return f"{value // datetime.timedelta(microseconds=1)}us"
    if isinstance(value, bytes | bytearray):
        return f"%b{value.hex()}"
    if not isinstance(value, type):
        if hasattr(value, "_meta") and hasattr(value, "pk"):
            return canonical(_primary_key(value), escapes)
        if dataclasses.is_dataclass(value):
            return _container({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    return _container(value)


def _decimal(value: decimal.Decimal) -> str:
    """Equal decimals are written alike, and whole ones like integers; exactly, whatever the context's precision."""
    if not value.is_finite():
        return str(value)
    digits = len(value.as_tuple().digits)
    exact = decimal.Context(prec=digits, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
    plain = value.normalize(exact) if value else decimal.Decimal(0)
    return f"{plain:f}" if abs(plain.adjusted()) < LONGEST_DECIMAL else str(plain)


def _primary_key(instance: object) -> object:
    key = getattr(instance, "pk", None)
    if key is None or (isinstance(key, tuple) and None in key):
        raise TypeError(f"an unsaved {type(instance).__name__} has no primary key to name it by; save it first")
    return key


def _container(value: object) -> str:
    if isinstance(value, Mapping):
        written = {_item(key): _item(value[key]) for key in value}
        if len(written) < len(value):
            raise TypeError(f"two keys of a {type(value).__name__} read the same")
        return "%d(" + ",".join(sorted(f"{key}={item}" for key, item in written.items())) + ")"
    if isinstance(value, Set):
        return "%s(" + ",".join(sorted(map(_item, value))) + ")"
    if isinstance(value, Sequence):
        return "%l(" + ",".join(map(_item, value)) + ")"
    raise TypeError(f"a {type(value).__name__} has no canonical form; pass its id or a string instead")


def _item(value: object) -> str:
    return canonical(value, _WITHIN) or "%"  # so that no item and an empty one are not the same
