"""The canonical text of values."""

import dataclasses
import datetime
import enum
import itertools
import os
import subprocess
import sys
import uuid
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.utils.functional import SimpleLazyObject
from hypothesis import given
from hypothesis import strategies as st

import django_cluster_lock
from django_cluster_lock.values import canonical


class Color(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Text(enum.StrEnum):
    RED = "red"


class Pair(enum.Enum):
    JOINED = ("a,b",)


@dataclasses.dataclass(frozen=True)
class Order:
    sku: object
    count: object = 1


@dataclasses.dataclass
class Composite:
    """Stands in for a model with a composite primary key."""

    pk: object
    _meta = None


CET = datetime.timezone(datetime.timedelta(hours=1))
NOON = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        ("", ""),
        ("50%, (a=b)", "50%25, (a=b)"),
        (42, "42"),
        (Number.ONE, "1"),
        (Color.RED, "red"),
        (Text.RED, "red"),
        (True, "%True"),
        (None, "%None"),
        (1.5, "1.5"),
        (-0.0, "0.0"),
        (Decimal("1.50"), "1.5"),
        (Decimal(100), "100"),
        (Decimal("1E2"), "100"),
        (Decimal("-0.0"), "0"),
        (Decimal("1E+999999"), "1E+999999"),
        (Decimal("NaN"), "NaN"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (NOON, "2024-05-01T12:00:00+00:00"),
        (NOON.astimezone(CET), "2024-05-01T12:00:00+00:00"),
        (NOON.replace(tzinfo=None), "2024-05-01T12:00:00"),
        (NOON.date(), "2024-05-01"),
        (NOON.time(), "12:00:00"),
        (datetime.timedelta(days=-1, microseconds=1), "-86399999999us"),
        (b"\x00a", "%b0061"),
        (bytearray(b"a"), "%b61"),
        (["a,b", 1, None, [2]], "%l(a%2Cb,1,%None,%l(2))"),
        (("a", "b"), "%l(a,b)"),
        ({"b": 1, "a": {"c": 2}}, "%d(a=%d(c=2),b=1)"),
        ({"b", "a"}, "%s(a,b)"),
        (frozenset({"a"}), "%s(a)"),
        (Order("x"), "%d(count=1,sku=x)"),
        (Composite((7, "a")), "%l(7,a)"),
        (User(pk=7, username="ann"), "7"),
        (SimpleLazyObject(lambda: User(pk=7)), "7"),
    ],
)
def test_text(value, text):
    assert canonical(value) == text


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (object(), "a object has no canonical form"),
        (len, "a builtin_function_or_method has no canonical form"),
        (User, "a ModelBase has no canonical form"),
        (Order, "a type has no canonical form"),
        (AnonymousUser(), "a AnonymousUser has no canonical form"),
        ([object()], "a object has no canonical form"),
        (iter([]), "a list_iterator has no canonical form"),
        (User(), "an unsaved User has no primary key"),
        (Composite((1, None)), "an unsaved Composite has no primary key"),
        ({1: "a", "1": "b"}, "two keys of a dict read the same"),
    ],
)
def test_refused(value, told):
    with pytest.raises(TypeError, match=told):
        canonical(value)


DIFFERENT = [
    None, "None", "%None", "%25None", True, "True", 1, 0, False, "", [], {}, set(), [[]], [""], ["", ""], [None],
    ["None"], "%l()", ["a,b"], ["a", "b"], [["a", "b"]], ["a", ["b"]], {"a": "b"}, {"a=b": ""}, {"a": "b,c=d"},
    {"a": "b", "c": "d"}, {"a"}, {"a", "b"}, {"a,b"}, b"", b"a", "%b61", "61", 1.5, Decimal("1.50001"),
    Decimal("1.0000000000000000000000000000001"), Decimal("1.0000000000000000000000000000002"), Decimal("1E+200"),
    NOON, NOON.replace(tzinfo=None), NOON.replace(microsecond=1), NOON.date(), NOON.time(),
    datetime.timedelta(1), datetime.timedelta(1, microseconds=1), uuid.UUID(int=1), uuid.UUID(int=2),
    [Pair.JOINED], [Order("a", "b")], [Order("a,sku=b", "c")], [Order("b,sku=c", "a")], Order(None),
]  # fmt: skip


def test_different_values_read_differently():
    texts = [canonical(value) for value in DIFFERENT]
    assert len(set(texts)) == len(texts), [
        (a, b) for (a, x), (b, y) in itertools.combinations(zip(DIFFERENT, texts, strict=True), 2) if x == y
    ]


def test_a_field_cannot_reach_into_the_next():
    # The same class, so that only the escaping of what is inside a container keeps them apart.
    assert canonical([Order("a,sku=b", "c")]) != canonical([Order("b", "c,sku=a")])
    assert canonical([Order(sku="b,sku=x", count="a")]) != canonical([Order(sku="x", count="a,sku=b")])


# Only types of which no two values read the same on purpose, as 42 and "42" do; few characters, so that they meet.
TEXTS = st.text("%(),=l2a", max_size=2)
SCALARS = TEXTS | st.none() | st.booleans() | st.binary(max_size=1)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2)
    | st.builds(Order, inner, inner) | st.frozensets(SCALARS, max_size=2),
    max_leaves=4,
)  # fmt: skip


def plain(value):
    """What two values have to share to be the same."""
    if isinstance(value, Order):
        return plain({"sku": value.sku, "count": value.count})
    if isinstance(value, dict):
        return ("d", frozenset((plain(key), plain(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("l", tuple(map(plain, value)))
    if isinstance(value, frozenset):
        return ("s", frozenset(map(plain, value)))
    return (type(value).__name__, value)


@given(st.lists(VALUES, max_size=30))
def test_same_text_means_same_value(values):
    pairs = {(canonical(value), plain(value)) for value in values}
    assert len(pairs) == len({text for text, _ in pairs}) == len({value for _, value in pairs})


@given(st.dictionaries(st.text(), st.integers()))
def test_order_of_a_dict_does_not_matter(value):
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@given(st.decimals(allow_nan=False), st.decimals(allow_nan=False))
def test_decimals_read_the_same_if_they_are_equal(one, other):
    with localcontext() as context:
        context.prec = 3
        assert (canonical(one) == canonical(other)) == (one == other)


@given(st.datetimes(timezones=st.timezones()))
def test_datetimes_read_the_same_if_they_are_the_same_instant(value):
    try:
        elsewhere = value.astimezone(datetime.UTC).astimezone(CET)
    except OverflowError:
        return
    assert canonical(elsewhere) == canonical(value)


def test_every_process_writes_the_same():
    program = (
        "from django_cluster_lock.values import canonical; from decimal import Decimal;"
        "print(canonical([{'b', 'a', 'c', 'd'}, {'z': frozenset({'x', 'y', 'w'}), 'a': {1, None}}, Decimal('1.0')]))"
    )
    path = str(Path(django_cluster_lock.__file__).parents[1])
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([path, *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert texts == {"%l(%s(a,b,c,d),%d(a=%s(%None,1),z=%s(w,x,y)),1)\n"}
