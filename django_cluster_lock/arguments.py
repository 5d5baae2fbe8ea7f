"""The arguments of a lock, checked: each function gives the value, or raises an error that says what is wrong."""

import math
import threading
from collections.abc import Iterable

LONGEST_TOKEN = 200  # bytes


def given_names(name: object) -> tuple[str, ...]:
    """The names, each once."""
    if isinstance(name, str):
        return (name,)
    if isinstance(name, bytes) or not isinstance(name, Iterable):
        raise TypeError(f"a lock's name is a str, or several in a list, not {type(name).__name__}: {name!r}")
    names = tuple(dict.fromkeys(name))
    if not names:
        raise ValueError("a lock needs a name; the list of names is empty")
    return names


def given_token(token: object) -> bytes:
    """The token as it goes to Redis."""
    if not isinstance(token, str | bytes) or not token:
        raise TypeError(f"a token is a str or bytes, and not empty; it cannot be {token!r}")
    return token if isinstance(token, bytes) else token.encode(errors="surrogateescape")


def own_token(token: object) -> bytes:
    """Return a token of the caller's own as it goes to Redis, which keeps it in several places."""
    given = given_token(token)
    if len(given) > LONGEST_TOKEN:
        raise ValueError(f"a token has {LONGEST_TOKEN} bytes at most, not {len(given)}")
    return given


def positive(argument: str, seconds: object) -> float:
    """The seconds, or an error that names the argument."""
    limit = threading.TIMEOUT_MAX  # nothing waits for longer: 292 years
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= limit:
        raise ValueError(f"{argument} must be a positive number of seconds, not {seconds!r}")
    return float(seconds)


def wait_of(blocking_timeout: object) -> float:
    """How many seconds to wait; None means as long as it takes."""
    if blocking_timeout is None:
        return math.inf
    if isinstance(blocking_timeout, bool) or not isinstance(blocking_timeout, int | float) or not blocking_timeout >= 0:
        raise ValueError(f"blocking_timeout must be None or a number of seconds from 0 on, not {blocking_timeout!r}")
    return float(blocking_timeout)
