"""Databases that cannot keep fences, found without asking them."""

from collections.abc import Iterator

from django.db import connections, router

from django_cluster_lock.fences.models import Fence
from django_cluster_lock.fences.sql import DIALECTS


def faults() -> Iterator[str]:
    """What is wrong with each database that is to have the table."""
    for using in connections:
        if router.allow_migrate_model(using, Fence):
            connection = connections[using]
            if connection.vendor not in DIALECTS:
                yield f"DATABASES[{using!r}] is of the kind {connection.vendor!r}, for which there are no fences."
            elif not connection.settings_dict["AUTOCOMMIT"]:
                yield f"DATABASES[{using!r}] has AUTOCOMMIT off, so that no transaction there is lock.atomic()'s own."
