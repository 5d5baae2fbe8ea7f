"""The Lua scripts of the lock, each with its contract in its head.

They are sent as EVALSHA, and as EVAL to a server that does not have them: a failover leaves the promoted
replica without them, and loading them on every primary would fail while any one of them is down.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its text, the digest Redis knows it by, and how many keys it declares.

    It is `reserved` if it keeps or ends a lease: a connection is always there for that.
    """

    name: str
    key_count: int
    text: bytes
    sha: bytes
    reserved: bool = False


def _load(
    name: str, key_count: int, *shared: str, after: Sequence[str] = (), before: bytes = b"", reserved: bool = False
) -> Script:
    folder = resources.files(__name__)
    parts = (folder.joinpath(f"{part}.lua").read_bytes() for part in ("common", *shared, name, *after))
    text = before + b"\n".join(parts)
    return Script(name, key_count, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode(), reserved)


@lru_cache(maxsize=256)
def guarded(script: str) -> Script:
    """A caller's script behind the guard. It sees its own keys and arguments alone, and keeps the numbers of its lines.

    The guard's keys are not the lock's: they are all among the call's further ones.
    """
    return _load("guard", 0, before=f"local function guarded(KEYS, ARGV) {script}\nend\n".encode())


ACQUIRE = _load("acquire", 2)
ATTACH = _load("attach", 1, reserved=True)
RENEW = _load("renew", 1, reserved=True)
RELEASE = _load("release", 1, "handing", reserved=True)
SWEEP = _load("sweep", 2)
LOOK = _load("look", 1)

# Of single flight. Their further keys are the outbox's. What a claim without a message has no use for comes last.
CLAIM = _load("claim", 2, "places", after=("outbox", "park"))
START = _load("start", 2, "places", "outbox")
LAND = _load("land", 2, "handing", "places", "outbox", reserved=True)
DRAIN = _load("drain", 2, "places", "outbox")
CONFIRM = _load("confirm", 2, "places", "outbox")
ENDED = _load("ended", 1)
