"""Fences in the database: the Django app whose table lets ``lock.atomic()`` refuse a stale holder's transaction.

Its own app, so that projects without ``lock.atomic()`` have no table. The rest of the package imports it where needed.
"""

from django.apps import apps as registry  # `apps` is a module of this package
from django.core.exceptions import ImproperlyConfigured


def installed() -> bool:
    """Whether the app is in INSTALLED_APPS."""
    return registry.is_installed(__name__)


def require() -> None:
    """Raises ImproperlyConfigured where the app is not installed."""
    if not installed():
        raise ImproperlyConfigured(
            f'Fences are kept in a table of the app {__name__!r}: add "{__name__}" to INSTALLED_APPS, '
            "then run 'manage.py migrate'."
        )
