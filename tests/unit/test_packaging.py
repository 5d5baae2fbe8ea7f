"""What is installed is whole, and says one version everywhere."""

import importlib.metadata
import importlib.resources
import os
import re
import tomllib
from pathlib import Path

import pytest

import django_cluster_lock

ROOT = Path(__file__).parents[2]
PACKAGE = importlib.resources.files("django_cluster_lock")
SCRIPTS = ["acquire", "guard", "release", "renew", "sweep", "start", "land", "outbox"]


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def distribution():
    try:
        return importlib.metadata.distribution("django-cluster-lock")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from a checkout that is not installed")


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_in_the_package(name):
    text = (PACKAGE / "scripts" / f"{name}.lua").read_text(encoding="utf-8")
    assert text.startswith("--"), "a script opens with its contract"


def test_every_script_of_the_checkout_is_in_the_package():
    in_checkout = {path.name for path in (ROOT / "django_cluster_lock" / "scripts").glob("*.lua")}
    in_package = {entry.name for entry in (PACKAGE / "scripts").iterdir() if entry.name.endswith(".lua")}
    assert in_package == in_checkout


@pytest.mark.parametrize("folder", ["templates", "locale", "management", "fences"])
def test_every_data_file_of_the_checkout_is_in_the_package(folder):
    in_checkout = ROOT / "django_cluster_lock" / folder
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in in_checkout.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
        if not PACKAGE.joinpath(*path.relative_to(ROOT / "django_cluster_lock").parts).is_file()
    ]
    assert missing == []


def test_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_tests_run_against_the_wheel_where_tox_says_so():
    env_dir = os.environ.get("CLUSTER_LOCK_TEST_WHEEL")
    if not env_dir:
        pytest.skip("CLUSTER_LOCK_TEST_WHEEL is not set: not run by tox")
    assert Path(django_cluster_lock.__file__).resolve().is_relative_to(Path(env_dir).resolve())


def test_versions_agree():
    version = distribution().version
    assert version == pyproject()["project"]["version"]
    repeated = [
        path.name for path in (ROOT / "django_cluster_lock").rglob("*.py") if version in path.read_text("utf-8")
    ]
    assert repeated == [], "the version stands in pyproject.toml alone"


def test_changelog_speaks_of_this_version_or_of_what_is_unreleased():
    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1:2] in ([], [pyproject()["project"]["version"]])


def test_extras_are_the_documented_ones():
    assert set(distribution().metadata.get_all("Provides-Extra")) == {"celery", "django-redis", "embedded"}


def test_license_is_in_the_package():
    assert distribution().metadata["License-Expression"] == "BSD-3-Clause"
