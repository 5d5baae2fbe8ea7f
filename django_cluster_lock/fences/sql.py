"""The statements on the table of fences, for each kind of database; everything that differs between them is here.

A fence is about the microseconds of its grant since 1970. So its age needs no clock but that of the database, whatever
happened to the holder's: `AGE` is that of the oldest lease which may still write. A row goes when its own fence is
twice as old at least; whatever lease is older than a row that went is refused by its age.
"""

from collections.abc import Callable
from typing import NamedTuple

from django.db import DatabaseError, NotSupportedError
from django.db.backends.base.base import BaseDatabaseWrapper

TABLE = "cluster_lock_fence"
DAY = 86_400_000_000
KEPT = 7 * DAY  # the least age of a fence that may be forgotten
AGE = KEPT // 2
LONGEST = 2**53  # what is said to be older is not to be found

_ROW = "(digest, name, fence, token, updated_at)"


class Dialect(NamedTuple):
    """One kind of database.

    Args:
        clock: its own clock in microseconds.
        show: shows a fence: the row of the last statement counts as written if the fence passed, and is locked then.
        limits_wait: limits the wait for a row in the transaction, where it could be for ever.
        is_passing: whether an error is one that another attempt at the same transaction may not meet.
    """

    clock: str
    show: tuple[str, ...]
    is_passing: Callable[[BaseException | None], bool]
    limits_wait: str = ""

    @property
    def deleting(self) -> str:
        return f"DELETE FROM {TABLE} WHERE fence < {self.clock} - %(age)s"

    @property
    def counting(self) -> str:
        return f"SELECT COUNT(*) FROM {TABLE} WHERE fence < {self.clock} - %(age)s"


def _passes(fence: str, token: str) -> str:
    """Whether a fence passes a row: it is higher, or it is the same lease's, or it is shown to end that by force."""
    return f"(kept.fence < {fence} OR (kept.fence = {fence} AND (kept.token = {token} OR LENGTH({token}) = 0)))"


def _upsert(clock: str) -> str:
    return f"""
        INSERT INTO {TABLE} AS kept {_ROW}
        SELECT %(digest)s, %(name)s, %(fence)s, %(token)s, %(now)s WHERE %(fence)s > {clock} - {AGE}
        ON CONFLICT (digest) DO UPDATE SET
        name = excluded.name, fence = excluded.fence, token = excluded.token, updated_at = excluded.updated_at
        WHERE {_passes("excluded.fence", "excluded.token")}"""


def _insert() -> str:
    return f"""
        INSERT INTO {TABLE} {_ROW} VALUES (%(digest)s, %(name)s, 0, %(token)s, %(now)s)
        ON DUPLICATE KEY UPDATE digest = digest"""


def _update(clock: str) -> str:
    return f"""
        UPDATE {TABLE} AS kept SET name = %(name)s, fence = %(fence)s, token = %(token)s, updated_at = %(now)s
        WHERE digest = %(digest)s AND %(fence)s > {clock} - {AGE} AND {_passes("%(fence)s", "%(token)s")}"""


def _postgresql_passing(error: BaseException | None) -> bool:
    """Whether it is a serialization failure or a deadlock, in the words of psycopg 3 or 2."""
    return (getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)) in {"40001", "40P01"}


def _sqlite_passing(error: BaseException | None) -> bool:
    """Whether it is SQLITE_BUSY or SQLITE_LOCKED, in one of their variants."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {5, 6}


def _mysql_passing(error: BaseException | None) -> bool:
    """Whether it is a deadlock, or what MariaDB says of a row that has changed since the snapshot."""
    return bool(error and error.args and error.args[0] in {1213, 1020})


_POSTGRESQL_CLOCK = "CAST(EXTRACT(EPOCH FROM CLOCK_TIMESTAMP()) * 1000000 AS bigint)"
_SQLITE_CLOCK = "CAST(STRFTIME('%%s', 'now') AS INTEGER) * 1000000"
_MYSQL_CLOCK = "CAST(UNIX_TIMESTAMP() AS SIGNED) * 1000000"

DIALECTS = {
    "postgresql": Dialect(
        _POSTGRESQL_CLOCK,
        (_upsert(_POSTGRESQL_CLOCK),),
        _postgresql_passing,
        limits_wait="SET LOCAL lock_timeout = '5s'",
    ),
    "sqlite": Dialect(_SQLITE_CLOCK, (_upsert(_SQLITE_CLOCK),), _sqlite_passing),
    # Its count of an upsert's rows does not tell a refused one from a new one. So a first statement only makes and
    # locks the row, without reading a snapshot.
    "mysql": Dialect(_MYSQL_CLOCK, (_insert(), _update(_MYSQL_CLOCK)), _mysql_passing),
}


def dialect_of(connection: BaseDatabaseWrapper) -> Dialect:
    """The statements for a database.

    Raises:
        django.db.NotSupportedError: there are none.
    """
    if connection.vendor not in DIALECTS:
        raise NotSupportedError(
            f"The database {connection.alias!r} is of the kind {connection.vendor!r}; fences are for "
            f"{', '.join(DIALECTS)} (which MariaDB counts as)."
        )
    return DIALECTS[connection.vendor]


def is_passing(error: DatabaseError, connection: BaseDatabaseWrapper) -> bool:
    return dialect_of(connection).is_passing(error.__cause__)
