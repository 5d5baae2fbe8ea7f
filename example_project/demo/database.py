"""A database for one demo: a file of its own, or one more on the PostgreSQL server that DATABASE_URL names."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management import call_command
from django.db import connection


@contextmanager
def new_database(folder: Path) -> Iterator[None]:
    """Makes it what this process works on. A server's is dropped again, a file stays in its folder."""
    connection.close()
    before = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        connection.settings_dict["NAME"] = str(folder / "shop.sqlite3")
        call_command("migrate", verbosity=0)
        yield
    else:
        connection.settings_dict["TEST"]["NAME"] = f"ticket_shop_{secrets.token_hex(4)}"
        connection.creation.create_test_db(verbosity=0, serialize=False)
        try:
            yield
        finally:
            connection.creation.destroy_test_db(before, verbosity=0)


def database_url() -> str:
    """The DATABASE_URL of what this process works on."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return name
    return urlsplit(settings.DATABASE_URL)._replace(path=f"/{name}").geturl()
