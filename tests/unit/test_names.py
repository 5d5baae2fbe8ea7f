"""Names, templates and keys."""

import binascii
import hashlib
import itertools
import string
import tracemalloc

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from django_cluster_lock.names import (
    LONGEST_NAME,
    SLOTS,
    TAG_WIDTH,
    bounded,
    check_name,
    check_prefix,
    fields_of,
    fill,
    has_unfilled_field,
    index_key,
    keys_of,
    name_and_tag,
    slot_of,
    slot_tag,
)

NAMES = st.text(min_size=1) | st.text("{}%h:2571ab", min_size=1)
TAGS = st.none() | st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1)


def test_the_tag_of_a_slot_is_the_first_string_that_hashes_to_it():
    """Stored indexes go by these tags: the table in the package may never change."""
    tags = {}
    for length in range(1, TAG_WIDTH + 1):
        for letters in itertools.product(b"0123456789abcdefghijklmnopqrstuvwxyz", repeat=length):
            tags.setdefault(binascii.crc_hqx(bytes(letters), 0) % SLOTS, bytes(letters))
            if len(tags) == SLOTS:
                break
    assert [slot_tag(slot) for slot in range(SLOTS)] == [tags[slot] for slot in range(SLOTS)]


@given(st.binary() | st.text("{}a").map(str.encode))
@example(b"{}a{b}")
@example(b"a{b{c}d}")
def test_slot_is_redis_pys(key):
    assert slot_of(key) == key_slot(key)


@given(NAMES, TAGS)
@example("{" * 10_000, None)
@example("\0\r\n ", "a b")
@example("{a}{b}", "shop")
def test_all_keys_of_a_lock_share_a_slot(name, tag):
    keys = keys_of("shop", name, tag)
    slots = {key_slot(key) for key in (keys.record, keys.index, keys.wake + b"token")}
    assert slots == {keys.slot}
    assert keys.index == index_key("shop", keys.slot)


@given(NAMES)
def test_a_tag_is_taken_as_it_is(name):
    assert keys_of("shop", name, "order:7%").slot == key_slot(b"cart:{order:7%}")


@given(st.lists(st.tuples(NAMES, TAGS), max_size=20))
@example([("a", None), ("a", "a"), ("{a}:a", None), ("a:a", None), ("%61", None), ("%7B", None), ("{", None)])
def test_different_locks_have_different_keys_and_members(locks):
    locks = set(locks)
    keys = [keys_of("shop", name, tag) for name, tag in locks]
    assert len({each.record for each in keys}) == len({each.wake for each in keys}) == len(locks)
    assert len({each.member for each in keys}) == len(locks)


@given(NAMES, TAGS)
@example("%41{b}:c", "a:b")
@example("x" * 10_000, None)
def test_member_tells_name_and_tag(name, tag):
    assert name_and_tag(keys_of("shop", name, tag).member) == (bounded(name), tag)


def test_keys_are_readable():
    keys = keys_of("shop", "invoice:42")
    assert (keys.record, keys.wake, keys.member) == (
        b"shop:lock:{invoice:42}",
        b"shop:wake:{invoice:42}:",
        b"invoice:42",
    )
    keys = keys_of("shop", "total{7}", "order:7")
    assert (keys.record, keys.wake, keys.member) == (
        b"shop:lock:{order:7}:total%7B7%7D",
        b"shop:wake:{order:7}:total%7B7%7D:",
        b"{order:7}:total%7B7%7D",
    )


def test_a_long_name_has_short_keys_and_its_name_in_the_index():
    name = "é" * 500
    keys = keys_of("shop", name)
    assert len(keys.record) < 100
    assert keys.member == name.encode()


def test_the_keys_of_a_name_too_long_to_be_stored_go_by_the_whole():
    """As in the first release, so that its workers and these exclude each other."""
    name = "é" * 5000
    digest = hashlib.sha256(name.encode()).hexdigest()
    keys = keys_of("shop", name)
    assert keys.record == b"shop:lock:{%%h%s}" % digest.encode()
    assert keys.member == f"{'é' * (LONGEST_NAME - 65)}…{digest}".encode()


def test_a_short_name_cannot_be_a_digest():
    long = next(name for name in (f"{number:0201}" for number in range(10_000)) if b"%h25" in keys_of("p", name).record)
    digest = keys_of("p", long).record.removeprefix(b"p:lock:{").rstrip(b"}").decode()
    for name in (digest, f"%{digest.removeprefix('%h25')}", digest.removeprefix("%h")):
        assert keys_of("p", name).record != keys_of("p", long).record


@pytest.mark.parametrize(
    ("name", "tag", "error", "told"),
    [
        ("", None, ValueError, "lock name '' is empty"),
        ("\ud800", None, ValueError, "has a lone surrogate"),
        ("a", "", ValueError, "tag of lock 'a', '' is empty"),
        ("a", "{b}", ValueError, "has a brace"),
        ("a", "b" * 1001, ValueError, "the tag of lock 'a' is longer than 1000 bytes"),
        ("a", "\ud800", ValueError, "has a lone surrogate"),
        ("a", 7, TypeError, "the tag of lock 'a' is a str, not int: 7"),
    ],
)
def test_keys_refused(name, tag, error, told):
    with pytest.raises(error, match=told):
        keys_of("shop", name, tag)


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        (42, TypeError, "a lock's name is a str, not int: 42"),
        ("", ValueError, "is empty"),
        ("\ud800", ValueError, "has a lone surrogate"),
    ],
)
def test_names_refused(name, error, told):
    with pytest.raises(error, match=told):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "{}", "{7}", '{"a": 1}', "{a b}", "a}b{c"])
def test_names_accepted(name):
    assert check_name(name) == name
    assert not has_unfilled_field(name)


@pytest.mark.parametrize("name", ["stock:{sku}", "stock:{order.pk}", "stock:{größe}"])
def test_names_that_look_like_templates(name):
    assert check_name(name) == name
    assert has_unfilled_field(name)


@given(st.text("ab…é{%", min_size=900, max_size=1100))
@example("x" * 1_000_000)
@example("{" * LONGEST_NAME)
def test_a_name_is_bounded(name):
    short = bounded(name)
    assert len(short) <= LONGEST_NAME
    assert bounded(short) == short
    keys = keys_of("shop", name)
    assert keys == keys_of("shop", short), "what is shown of it names the same lock"
    assert keys.name == short
    assert sum(map(len, keys[:5])) < 20_000
    if len(name) > LONGEST_NAME:
        assert short != bounded(f"{name}.")
        assert keys.record != keys_of("shop", f"{name}.").record


def test_what_is_kept_of_names_is_small():
    keys_of("shop", "warm up")
    tracemalloc.start()
    try:
        for number in range(500):
            keys_of("shop", f"{number}{'x' * 100_000}")
        for number in range(500):
            keys_of("shop", f"{number}{'x' * (LONGEST_NAME - 10)}", "tag")
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()


def test_prefix():
    assert check_prefix("shop") == "shop"
    with pytest.raises(ValueError, match="contains a brace"):
        check_prefix("shop{1}")


@pytest.mark.parametrize(
    ("template", "values", "name"),
    [
        ("stock", {}, "stock"),
        ("stock:{sku}", {"sku": "A1", "other": object()}, "stock:A1"),
        ("stock:{sku}", {"sku": ""}, "stock:"),
        ("{a}:{b}", {"a": "x:y", "b": "z"}, "x%3Ay:z"),
        ("{a}-{b}.pdf", {"a": "x-y", "b": "z.a_b"}, "x%2Dy-z%2Ea_b.pdf"),
        ("{a}, {a}", {"a": "é ,"}, "é%20%2C, é%20%2C"),
        ("{{x}}:{a}", {"a": "{y}"}, "{x}:%7By%7D"),
        ("{a}", {"a": None}, "%25None"),
        ("{a}é-{b}", {"a": "1é-2", "b": "3"}, "1é%2D2é-3"),
    ],
)
def test_fill(template, values, name):
    assert fill(template, values) == name


TEMPLATES = st.lists(
    st.tuples(st.text(string.printable + "éß", max_size=3), st.sampled_from("abc")), min_size=1, max_size=4
).flatmap(
    lambda parts: st.text(max_size=3).map(
        lambda end: "".join(f"{braced(text)}{{{field}}}" for text, field in parts) + braced(end)
    )
)
FILLINGS = st.fixed_dictionaries(dict.fromkeys("abc", st.text(max_size=3) | st.text(":-é%{}a1 ", max_size=4)))


def braced(text):
    return text.replace("{", "{{").replace("}", "}}")


@given(TEMPLATES, st.lists(FILLINGS, max_size=10))
@example("{a}é:{b}", [{"a": "1é:2", "b": "3", "c": ""}, {"a": "1", "b": "2é:3", "c": ""}])
def test_different_values_give_different_names(template, fillings):
    try:
        fields = fields_of(template)
    except ValueError as error:
        assert "put a separator" in str(error)  # noqa: PT017 - nothing else may be wrong with it
        assume(False)
    fillings = [values for values in fillings if "".join(values[field] for field in fields)]
    names = {fill(template, values) for values in fillings}
    assert len(names) == len({tuple(values[field] for field in fields) for values in fillings})


def test_fields():
    assert fields_of("stock:{sku}:{size}:{sku}") == ("sku", "size", "sku")
    assert fields_of("stock") == ()


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("", "a template is empty"),
        ("a:{b!r}", "leave {b} without conversion and format"),
        ("a:{b:>3}", "leave {b} without conversion and format"),
        ("a:{}", "{} is not the name of an argument"),
        ("a:{0}", "{0} is not the name of an argument"),
        ("a:{b.c}", "{b.c} is not the name of an argument"),
        ("a:{b[0]}", "{b[0]} is not the name of an argument"),
        ("{a}{b}", "put a separator such as ':' before {b}"),
        ("{a}and_{b}", "put a separator such as ':' before {b}"),
        ("{a}é{b}", "put a separator such as ':' before {b}"),
        ("{a}%{b}", "put a separator such as ':' before {b}"),
        ("a:{b", "write a brace that stands for itself twice"),
        ("a}", "write a brace that stands for itself twice"),
    ],
)
def test_templates_refused(template, told):
    with pytest.raises(ValueError) as raised:
        fields_of(template)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("template", "values", "error", "told"),
    [
        ("a:{sku}", {}, TypeError, "template 'a:{sku}' needs a value for 'sku'; given: none"),
        ("a:{sku}", {"b": 1, "c": 2}, TypeError, "template 'a:{sku}' needs a value for 'sku'; given: 'b', 'c'"),
        ("a:{b}", {"b": object()}, TypeError, "template 'a:{b}', value 'b': a object has no canonical form"),
        ("{a}", {"a": ""}, ValueError, "template '{a}' gives an empty name"),
    ],
)
def test_values_refused(template, values, error, told):
    with pytest.raises(error) as raised:
        fill(template, values)
    assert str(raised.value).startswith(told)
