"""Lock names: their templates, their keys in Redis, and the slots of a cluster.

Every key of one lock shares one slot, whatever the name: the hash tag is the lock's ``tag`` or its whole name,
percent-encoded where a brace or a percent sign would give it another meaning.
"""

import binascii
import hashlib
import re
import string
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from typing import NamedTuple
from urllib.parse import unquote

from django_cluster_lock.values import canonical

SLOTS = 16384
TAG_WIDTH = 4  # bytes of a tag in the table, with the spaces after it
LONGEST_IN_KEY = 200  # bytes; a longer name stands in its keys as a digest
LONGEST_NAME = 1000  # characters; of a longer one the rest stands as a digest wherever it is stored or shown
LONGEST_TAG = 1000  # bytes
FLIGHT = "flight:"  # what the names of single flight's locks begin with
_FORMATTER = string.Formatter()
_CUT = re.compile(rf".{{{LONGEST_NAME - 65}}}…([0-9a-f]{{64}})", re.DOTALL)
_FORGOTTEN_FSTRING = re.compile(r"\{[^\W\d][\w.]*\}")


class Keys(NamedTuple):
    """Where one lock lives: its keys (bytes), its entry in the index of its slot, and that slot.

    ``guard`` is the key that has the fence of the last guarded write.
    """

    name: str
    record: bytes
    index: bytes  # type: ignore[assignment]  # a tuple's method of that name is of no use here
    wake: bytes
    member: bytes
    slot: int
    guard: bytes


class OutboxKeys(NamedTuple):
    """Where the messages are that are parked behind a flight, and what is known of runs that have ended.

    ``ended`` is the start of the keys of ended messages.
    """

    order: bytes
    messages: bytes
    outboxes: bytes
    latest: bytes
    ended: bytes


def slot_of(key: bytes) -> int:
    """The cluster slot of a key, hash tag considered (Redis Cluster specification, "Hash tags")."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return _hash(key)


def _hash(tag: bytes) -> int:
    return binascii.crc_hqx(tag, 0) % SLOTS


def slot_tag(slot: int) -> bytes:
    """Return a short string that hashes to a slot."""
    return _slot_tags()[slot * TAG_WIDTH : (slot + 1) * TAG_WIDTH].rstrip()


@lru_cache(maxsize=1)
def _slot_tags() -> bytes:
    """Read the table of slot tags: to find them takes 50 ms, which no first lock should have to wait for."""
    return resources.files(__package__).joinpath("slot_tags.txt").read_bytes()


def index_key(prefix: str, slot: int) -> bytes:
    """The key of the index of one slot's locks."""
    return b"%sindex:{%s}" % (_start(prefix), slot_tag(slot))


def outboxes_key(prefix: str, slot: int) -> bytes:
    """The key of the index of one slot's locks behind which messages are parked."""
    return b"%soutboxes:{%s}" % (_start(prefix), slot_tag(slot))


@lru_cache
def _start(prefix: str) -> bytes:
    """What the keys of an alias begin with."""
    return f"{check_prefix(prefix)}:".encode()


def check_prefix(prefix: str) -> str:
    """The prefix, or a ValueError when a brace in it would move every lock into one slot."""
    if _has_brace(prefix):
        raise ValueError(f"KEY_PREFIX {prefix!r} contains a brace, which Redis Cluster takes for a hash tag")
    return prefix


def check_name(name: str) -> str:
    """Return the name as a lock has it: `bounded`.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, or cannot be encoded.
    """
    if not isinstance(name, str):
        raise TypeError(f"a lock's name is a str, not {type(name).__name__}: {name!r}")
    _encoded("lock name", name)
    return bounded(name)


def bounded(name: str) -> str:
    """Return the name, or of one that is too long its beginning and the digest of the whole.

    That is a name as well, and names the same lock: it is what Redis, the database, logs and the commands show.
    """
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(_percent_encoded(name)).hexdigest()
    return f"{name[: LONGEST_NAME - len(digest) - 1]}…{digest}"


def has_unfilled_field(name: str) -> bool:
    """Tell whether a name looks like a template whose values are missing."""
    return _FORGOTTEN_FSTRING.search(name) is not None


def keys_of(prefix: str, name: str, tag: str | None = None) -> Keys:
    """Return the keys of a lock.

    Args:
        prefix: the alias's KEY_PREFIX.
        name: any string that UTF-8 can encode.
        tag: the hash tag it shares with other keys, used verbatim; None for one of its own.

    Raises:
        TypeError: the tag is no string.
        ValueError: the tag has a brace, or is too long; it or the name is empty or cannot be encoded.
    """
    # Long names are made out anew each time, so that what is kept of names stays small.
    return _kept_keys_of(prefix, name, tag) if len(name) <= LONGEST_IN_KEY else _keys_of(prefix, bounded(name), tag)


def _keys_of(prefix: str, name: str, tag: str | None) -> Keys:
    whole = _percent_encoded(name)
    # No name is written with %h in it, so that none can be taken for the digest of another.
    if cut := _CUT.fullmatch(name) if len(name) == LONGEST_NAME else None:
        short = b"%h" + cut.group(1).encode()
    elif len(whole) > LONGEST_IN_KEY:
        short = b"%h" + hashlib.sha256(whole).hexdigest().encode()
    else:
        short = whole
    start = _start(prefix)
    if tag is None:
        slot, place, member = _hash(short), b"{%s}" % short, whole
    else:
        shared = _checked_tag(tag, name)
        slot, place, member = _hash(shared), b"{%s}:%s" % (shared, short), b"{%s}:%s" % (shared, whole)
    record, wake, guard = start + b"lock:" + place, b"%swake:%s:" % (start, place), start + b"fence:" + place
    return Keys(name, record, index_key(prefix, slot), wake, member, slot, guard)


_kept_keys_of = lru_cache(maxsize=4096)(_keys_of)


def _percent_encoded(name: str) -> bytes:
    return _encoded("lock name", name.replace("%", "%25").replace("{", "%7B").replace("}", "%7D"))


def name_and_tag(member: bytes) -> tuple[str, str | None]:
    """What an entry of the index stands for: the reverse of `keys_of`'s member."""
    whole = member.decode()
    if not whole.startswith("{"):
        return unquote(whole), None
    tag, _, name = whole[1:].partition("}:")
    return unquote(name), tag


@lru_cache(maxsize=4096)
def outbox_keys(prefix: str, keys: Keys) -> OutboxKeys:
    """The further keys of a flight's lock."""
    start = _start(prefix)
    place = keys.record.removeprefix(start + b"lock:")
    order, messages, outboxes = start + b"order:" + place, start + b"parked:" + place, outboxes_key(prefix, keys.slot)
    return OutboxKeys(order, messages, outboxes, start + b"latest:" + place, b"%sended:%s:" % (start, place))


def is_flight(name: str) -> bool:
    """Whether a lock is that of a single-flight task's key."""
    return name.startswith(FLIGHT)


class _Template(NamedTuple):
    """The texts and fields of a template, and what the characters are written as that no value may have."""

    parts: tuple[tuple[str, str | None], ...]
    escapes: Mapping[int, str]


@lru_cache(maxsize=1024)
def _parse(template: str) -> _Template:
    try:
        parts = [(text, field, spec, conversion) for text, field, spec, conversion in _FORMATTER.parse(template)]
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; write a brace that stands for itself twice") from None
    if not parts:
        raise ValueError("a template is empty")
    for position, (text, field, spec, conversion) in enumerate(parts):
        if field is None:
            continue
        if spec or conversion:
            raise ValueError(f"template {template!r}: leave {{{field}}} without conversion and format")
        if not field.isidentifier():
            raise ValueError(f"template {template!r}: {{{field}}} is not the name of an argument")
        if position and not _separators(text):
            raise ValueError(
                f"template {template!r}: put a separator such as ':' before {{{field}}}, "
                "or different values could give the same name"
            )
    reserved = {"%", ":", "{", "}"}.union(*(_separators(text) for text, *_ in parts))
    return _Template(tuple((text, field) for text, field, _, _ in parts), _percented(reserved))


def _separators(text: str) -> set[str]:
    """The characters that no value is written with if the text stands beside it."""
    return {char for char in text if not (char.isalnum() or char in "_%")}


def fields_of(template: str) -> tuple[str, ...]:
    """The names of the values a template needs.

    Raises:
        ValueError: the template cannot give distinct values distinct names.
    """
    return tuple(field for _, field in _parse(template).parts if field is not None)


def fill(template: str, values: Mapping[str, object]) -> str:
    """The name a template gives for these values: distinct values give distinct names.

    Each value is written canonically; then every character of it that the template uses between its fields,
    and ``% : { }``, is percent-encoded, so that no value can reach over its field's end.

    Raises:
        TypeError: a value is missing, or has no canonical form.
        ValueError: the template cannot give distinct values distinct names, or gives an empty one.
    """
    parts, escapes = _parse(template)
    name = []
    for text, field in parts:
        name.append(text)
        if field is not None:
            written = _written(template, field, values)
            name.append(written if written.isalnum() else written.translate(escapes))
    filled = "".join(name)
    if not filled:
        raise ValueError(f"template {template!r} gives an empty name for {dict(values)!r}")
    return filled


def _written(template: str, field: str, values: Mapping[str, object]) -> str:
    if field not in values:
        given = ", ".join(map(repr, values)) or "none"
        raise TypeError(f"template {template!r} needs a value for {field!r}; given: {given}")
    try:
        return canonical(values[field])
    except TypeError as error:
        raise TypeError(f"template {template!r}, value {field!r}: {error}") from None


def _checked_tag(tag: str, name: str) -> bytes:
    if not isinstance(tag, str):
        raise TypeError(f"the tag of lock {name!r} is a str, not {type(tag).__name__}: {tag!r}")
    if _has_brace(tag):
        raise ValueError(f"tag {tag!r} of lock {name!r} has a brace, where Redis Cluster would end the tag")
    encoded = _encoded(f"tag of lock {name!r},", tag)
    if len(encoded) > LONGEST_TAG:
        raise ValueError(f"the tag of lock {name!r} is longer than {LONGEST_TAG} bytes: {tag[:60]!r}...")
    return encoded


def _encoded(what: str, value: str) -> bytes:
    if not value:
        raise ValueError(f"{what} {value!r} is empty")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {value!r} has a lone surrogate, which UTF-8 cannot encode") from None


def _has_brace(value: str) -> bool:
    return "{" in value or "}" in value


def _percented(chars: Iterable[str]) -> dict[int, str]:
    """The table by which `str.translate` percent-encodes these characters."""
    return {ord(char): "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogatepass")) for char in chars}
