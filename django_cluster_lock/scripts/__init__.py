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


def _load(name: str, key_count: int) -> Script:
    folder = resources.files(__name__)
    text = b"\n".join(folder.joinpath(part).read_bytes() for part in ("common.lua", f"{name}.lua"))
    return Script(name, key_count, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


ACQUIRE = _load("acquire", 2)
RENEW = _load("renew", 1)
RELEASE = _load("release", 1)
TRANSFER = _load("transfer", 2)
SWEEP = _load("sweep", 2)
LOOK = _load("look", 1)
