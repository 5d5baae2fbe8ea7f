"""The public names come from the package, whatever has been imported before."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import django_cluster_lock

OPTIONAL = {"celery", "django_redis"}


def submodules():
    for module in pkgutil.walk_packages(django_cluster_lock.__path__, "django_cluster_lock."):
        yield module.name


def test_no_submodule_hides_a_public_name():
    for name in submodules():
        importlib.import_module(name)
    for name in django_cluster_lock.__all__:
        value = getattr(django_cluster_lock, name)
        assert not isinstance(value, type(sys)), name
        assert name in dir(django_cluster_lock)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'cache_lokc'"):
        django_cluster_lock.cache_lokc  # noqa: B018


def test_import_needs_no_settings_no_celery_and_no_redis():
    code = "import sys, django_cluster_lock; print([m for m in ('redis', 'celery', 'django.conf') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == "[]\n"
