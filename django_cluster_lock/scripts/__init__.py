"""The Lua scripts of the lock, each with its contract in its head.

They are sent as EVALSHA, and as EVAL to a server that does not have them: a failover leaves the promoted
replica without them, and loading them on every primary would fail while any one of them is down.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its text, the digest Redis knows it by, and how many keys it declares."""

    name: str
    key_count: int
    text: bytes
    sha: bytes


def _load(name: str, key_count: int, *shared: str) -> Script:
    folder = resources.files(__name__)
    text = b"\n".join(folder.joinpath(f"{part}.lua").read_bytes() for part in ("common", *shared, name))
    return Script(name, key_count, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


ACQUIRE = _load("acquire", 2)
RENEW = _load("renew", 1)
RELEASE = _load("release", 1, "handing")
TRANSFER = _load("transfer", 2)
SWEEP = _load("sweep", 2)
LOOK = _load("look", 1)

# Of single flight. Their further keys are the outbox's.
CLAIM = _load("claim", 2, "outbox")
START = _load("start", 2, "outbox")
LAND = _load("land", 2, "handing", "outbox")
DRAIN = _load("drain", 2, "outbox")
CONFIRM = _load("confirm", 2, "outbox")
ENDED = _load("ended", 1)
