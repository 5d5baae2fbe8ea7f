"""Each check by its id: its message, that it stops `load` if it is an error, and that it starts no server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connections
from redis.credentials import UsernamePasswordCredentialProvider

import django_cluster_lock
from django_cluster_lock import conf
from django_cluster_lock.checks import TAG
from tests.celery import test_checks as flights

AT = 'CLUSTER_LOCKS["default"]'
GOOD = {"LOCATION": "redis://10.0.0.1:6379", "KEY_PREFIX": "shop"}


constant = 42


@pytest.fixture(autouse=True)
def _without_other_tests_flights(monkeypatch):
    monkeypatch.setattr("django_cluster_lock.flights.faults.problems", list)


@pytest.fixture
def messages(settings):
    """The messages of the checks for a value of CLUSTER_LOCKS, as ids and texts."""

    def run(value, *, deploy=False, **others):
        settings.CLUSTER_LOCKS = value
        for name, other in others.items():
            setattr(settings, name, other)
        found = checks.run_checks(tags=[TAG], include_deployment_checks=deploy)
        return [(message.id.removeprefix("django_cluster_lock."), message.msg) for message in found]

    return run


@pytest.fixture
def faults(messages):
    """The messages for one alias. What is an error stops `load` with the same words, and nothing else does."""

    def run(**config):
        found = messages({"default": {key: value for key, value in (GOOD | config).items() if value is not None}})
        errors = [(number, text) for number, text in found if number.startswith("E")]
        if errors:
            with pytest.raises(ImproperlyConfigured) as raised:
                conf.load()
            number, text = errors[0]
            assert str(raised.value) == f"{text} {conf.HINTS[number]} (django_cluster_lock.{number})"
        else:
            conf.load()
        return found

    return run


def test_a_good_setting_has_no_faults(faults):
    assert faults() == []


def test_every_check_has_a_hint_and_a_test():
    assert all(hint.strip().endswith(".") for hint in conf.HINTS.values())
    tested = {name.split("_")[1] for name in {**globals(), **vars(flights)} if name.startswith(("test_E0", "test_W0"))}
    assert tested == set(conf.HINTS)


def test_every_check_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([EW]\d+)`", page, re.MULTILINE)) == set(conf.HINTS)


def test_E001(messages, settings):
    del settings.CLUSTER_LOCKS
    found = checks.run_checks(tags=[TAG])
    assert [(each.id, each.msg, each.hint) for each in found] == [
        ("django_cluster_lock.E001", "CLUSTER_LOCKS is not set.", conf.HINTS["E001"])
    ]
    with pytest.raises(ImproperlyConfigured, match="CLUSTER_LOCKS is not set"):
        conf.load()


def test_E002(messages):
    assert messages(["redis://10.0.0.1"]) == [
        ("E002", "CLUSTER_LOCKS is of type list, not a dictionary of aliases."),
    ]
    with pytest.raises(ImproperlyConfigured, match="not a dictionary of aliases"):
        conf.load()


def test_E002_for_an_alias(messages):
    # The settings of an alias, written where the aliases belong.
    assert messages({"default": GOOD, "KEY_PREFIX": "shop"}) == [
        ("E002", 'CLUSTER_LOCKS["KEY_PREFIX"] is of type str, not a dictionary of settings.'),
    ]


def test_E003(messages):
    assert messages({"defualt": GOOD}) == [
        ("E003", "CLUSTER_LOCKS has no alias 'default' (did you mean 'defualt'?)."),
    ]
    with pytest.raises(ImproperlyConfigured, match="CLUSTER_LOCKS has no alias 'billing'\\."):
        conf.load("billing")


def test_E004(faults):
    assert faults(Timeout=3, BACKEND="x") == [
        ("E004", f"{AT} has the unknown key 'Timeout' (did you mean 'TIMEOUT'?)."),
        ("E004", f"{AT} has the unknown key 'BACKEND'."),
    ]


@pytest.mark.parametrize("nothing", [None, "", []])
def test_E005_neither(faults, nothing):
    assert faults(LOCATION=nothing) == [("E005", f"{AT} has neither LOCATION nor CACHE.")]


def test_E005_both(faults):
    assert faults(CACHE="default") == [("E005", f"{AT} has both LOCATION and CACHE.")]


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ({"host": "10.0.0.1", "password": "s3cret"}, "is of type dict"),
        ([("10.0.0.1", 6379)], "has something of type tuple"),
        (42, "is of type int"),
        (" , ", "is empty"),
    ],
)
def test_E006(faults, location, told):
    assert faults(LOCATION=location) == [("E006", f'{AT}["LOCATION"] {told}, not a URL.')]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sentinel://10.0.0.1:26379/mymaster", "sentinel://10.0.0.1:26379/mymaster"),
        ("unix:///var/run/redis.sock", "unix:///var/run/redis.sock"),
        ("valkey://10.0.0.1", "valkey://10.0.0.1"),
        ("10.0.0.1:6379", "10.0.0.1:6379"),
        ("redis://app:s3/cr@t@10.0.0.1:6379?password=s3cret", "redis://***@10.0.0.1:6379"),
        ("redis://:s3?cret@10.0.0.1:port", "redis://***@10.0.0.1:port"),
        ("redis://10.0.0.1:port", "redis://10.0.0.1:port"),
        ("redis://10.0.0.1?socket_timeout=soon", "redis://10.0.0.1"),
        ("redis://[::1", "redis://[::1"),
    ],
)
def test_E007(faults, url, shown):
    assert faults(LOCATION=["redis://10.0.0.1:6379", url]) == [
        ("E007", f'{AT}["LOCATION"] has {shown!r}, which is no URL of a Redis server.'),
    ]


def test_E008(faults):
    assert faults(LOCATION=["embedded://", "redis://10.0.0.1:6379"]) == [
        ("E008", f"{AT}[\"LOCATION\"] has 'embedded://' among other servers."),
    ]


@pytest.fixture
def production(monkeypatch, settings):
    settings.DEBUG = False
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.delenv("CLUSTER_LOCK_EMBEDDED", raising=False)
    monkeypatch.delattr("django.core.mail.outbox")


def test_E009(faults, production):
    assert faults(LOCATION="embedded://") == [
        (
            "E009",
            f"{AT}[\"LOCATION\"] is 'embedded://', but DEBUG is off and no tests are running.",
        ),
    ]


@pytest.mark.parametrize("url", ["redis://10.0.0.1:6379/3", "redis://10.0.0.1:6379?db=3"])
def test_E010(faults, url):
    shown = url.partition("?")[0]
    assert faults(LOCATION=url) == [
        ("E010", f'{AT}["LOCATION"] has {shown!r}, which names database 3.'),
    ]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("redis://a:s3cret@10.0.0.1", "redis://b:s3cret@10.0.0.2", "username"),
        ("redis://:s3cret@10.0.0.1", "redis://10.0.0.2", "password"),
        ("rediss://10.0.0.1", "redis://10.0.0.2?client_name=x", "client_name, ssl"),
    ],
)
def test_E011(faults, first, second, names):
    assert faults(LOCATION=[first, second]) == [
        ("E011", f'The URLs of {AT}["LOCATION"] differ in {names}.'),
    ]


def test_E012_unknown(faults):
    assert faults(LOCATION=None, CACHE="defualt") == [
        (
            "E012",
            (f"{AT}[\"CACHE\"] is 'defualt', but CACHES has no such alias (did you mean 'default'?)."),
        ),
    ]


@pytest.mark.parametrize("backend", ["django.core.cache.backends.locmem.LocMemCache", "no.such.Backend"])
def test_E012_other_backend(faults, settings, backend):
    settings.CACHES = {"default": {"BACKEND": backend}}
    assert faults(LOCATION=None, CACHE="default") == [
        (
            "E012",
            f"{AT}[\"CACHE\"] is 'default', whose backend {backend!r} is not known to use Redis.",
        ),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"CLIENT_CLASS": "django_redis.client.SentinelClient"},
        {"CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory"},
        {"SENTINELS": [("10.0.0.1", 26379)]},
    ],
)
def test_E013(faults, settings, options):
    settings.CACHES = {
        "default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://mymaster", "OPTIONS": options}
    }
    assert faults(LOCATION=None, CACHE="default") == [
        ("E013", f"{AT}[\"CACHE\"] is 'default', which uses Redis Sentinel."),
    ]


def test_E014(faults):
    assert faults(KEY_PREFIX=None) == [("E014", f"{AT} has no KEY_PREFIX.")]


@pytest.mark.parametrize("prefix", ["", "shop{1}", "shop}", 5, b"shop"])
def test_E015(faults, prefix):
    assert faults(KEY_PREFIX=prefix) == [("E015", f'{AT}["KEY_PREFIX"] is {prefix!r}.')]


def test_E016(messages):
    two = {"LOCATION": ["redis://10.0.0.2", "redis://10.0.0.1"], "KEY_PREFIX": "shop"}
    assert messages({"default": GOOD, "other": two}) == [
        ("E016", "CLUSTER_LOCKS: 'default' and 'other' have the same servers and the same KEY_PREFIX 'shop'."),
    ]
    assert messages({"default": GOOD, "other": two | {"KEY_PREFIX": "bank"}}) == []
    assert messages({"default": GOOD, "other": two | {"LOCATION": "redis://10.0.0.2"}}) == []


@pytest.mark.parametrize("timeout", [0, -1, "30", True, float("inf"), float("nan")])
def test_E017(faults, timeout):
    assert faults(TIMEOUT=timeout) == [("E017", f'{AT}["TIMEOUT"] is {timeout!r}.')]


def test_E017_for_none(messages):
    assert messages({"default": GOOD | {"TIMEOUT": None}}) == [
        ("E017", f'{AT}["TIMEOUT"] is None.'),
    ]


@pytest.mark.parametrize("wait", [-1, "10", False])
def test_E018(faults, wait):
    assert faults(BLOCKING_TIMEOUT=wait) == [("E018", f'{AT}["BLOCKING_TIMEOUT"] is {wait!r}.')]


@pytest.mark.parametrize("replicas", [-1, "all", 1.0, True])
def test_E019(faults, replicas):
    assert faults(REPLICAS=replicas) == [("E019", f'{AT}["REPLICAS"] is {replicas!r}.')]


@pytest.mark.parametrize("skew", [-1, 2.1, "1", True])
def test_E020(faults, skew):
    assert faults(CLOCK_SKEW=skew) == [("E020", f'{AT}["CLOCK_SKEW"] is {skew!r}.')]


def test_E021(faults):
    assert faults(OPTIONS={"sockettimeout": 1, "decode_responses": True, "ssl_validate_ocsp": True}) == [
        (
            "E021",
            (f"{AT}[\"OPTIONS\"] has the unknown option 'sockettimeout' (did you mean 'socket_timeout'?)."),
        ),
        (
            "E021",
            f"{AT}[\"OPTIONS\"] has the option 'decode_responses', which is of no use to a lock.",
        ),
        (
            "E021",
            f"{AT}[\"OPTIONS\"] has the option 'ssl_validate_ocsp', which is of no use to a lock.",
        ),
    ]


def test_E021_in_a_url(faults):
    assert faults(LOCATION="redis://:s3cret@10.0.0.1?protocol=3") == [
        (
            "E021",
            (f"'redis://***@10.0.0.1' in {AT}[\"LOCATION\"] has the option 'protocol', which is of no use to a lock."),
        ),
    ]


def test_E021_in_a_cache(faults, settings):
    settings.CACHES = {
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": "rediss://10.0.0.1",
            "OPTIONS": {"CONNECTION_POOL_KWARGS": {"ssl_validate_ocsp": True}},
        }
    }
    assert faults(LOCATION=None, CACHE="default") == [
        ("E021", f"{AT}[\"CACHE\"] is 'default', which has the option 'ssl_validate_ocsp'."),
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"socket_timeout": None}, "has socket_timeout None, not a number of seconds above 0."),
        ({"socket_connect_timeout": 0}, "has socket_connect_timeout 0, not a number of seconds above 0."),
        (
            {"ssl_cert_reqs": "CERT_NONE"},
            "has connection options that cannot be used: Invalid SSL Certificate Requirements Flag: CERT_NONE.",
        ),
        (
            {"socket_keepalive_options": {"x": 1}},
            (
                "has connection options that cannot be used: socket_keepalive_options sets 'x' to 1, which TCP "
                "refuses ('str' object cannot be interpreted as an integer)."
            ),
        ),
        (
            {"socket_keepalive_options": {99999: 1}},
            (
                "has connection options that cannot be used: socket_keepalive_options sets 99999 to 1, which TCP "
                "refuses ([Errno 92] Protocol not available)."
            ),
        ),
        (
            {"socket_keepalive_options": 5},
            (
                "has connection options that cannot be used: socket_keepalive_options is 5, not a dictionary of TCP "
                "options."
            ),
        ),
        *(
            (
                {"max_connections": most},
                (
                    f"has connection options that cannot be used: max_connections is {most!r}, not a whole number of "
                    "4 or more."
                ),
            )
            for most in (3, "64", None, True, 64.0)
        ),
        (
            {"client_name": ["shop"]},
            "has connection options that cannot be used: client_name is of type list, not a string.",
        ),
        ({"ssl": "False"}, "has connection options that cannot be used: ssl is 'False', neither True nor False."),
        (
            {"credential_provider": UsernamePasswordCredentialProvider("app", "s3cret"), "username": "app"},
            "has connection options that cannot be used: credential_provider comes beside a username or password.",
        ),
        (
            {"address_remap": "no.such.function"},
            (
                "has connection options that cannot be used: address_remap 'no.such.function' cannot be imported "
                "(No module named 'no')."
            ),
        ),
        (
            {"address_remap": f"{__name__}.constant"},
            f"has connection options that cannot be used: address_remap '{__name__}.constant' cannot be called.",
        ),
    ],
)
def test_E022(faults, options, told):
    assert faults(OPTIONS=options) == [("E022", f"{AT} {told}")]


def test_E022_no_dictionary(faults):
    assert faults(OPTIONS=["s3cret"]) == [
        ("E022", f'{AT}["OPTIONS"] is of type list, not a dictionary.'),
    ]


def test_E022_between_a_url_and_options(faults):
    provider = UsernamePasswordCredentialProvider("app", "s3cret")
    (number, text) = faults(LOCATION="redis://:s3cret@10.0.0.1", OPTIONS={"credential_provider": provider})[0]
    assert number == "E022"
    assert "credential_provider comes beside a username or password" in text


def test_E023(messages):
    embedded = {"default": GOOD | {"LOCATION": "embedded://"}}
    assert messages(embedded, deploy=True) == [
        ("E023", f"{AT}[\"LOCATION\"] is 'embedded://' in a deployment."),
    ]
    assert messages(embedded) == []
    assert messages({"default": GOOD}, deploy=True) == []


@pytest.mark.parametrize("value", [None, [], {"default": None}])
def test_deployment_check_leaves_other_mistakes_to_the_others(messages, value):
    assert [number for number, _ in messages(value, deploy=True)] in (["E001"], ["E002"])


@pytest.mark.parametrize("interval", [0, -1, "60", True])
def test_E025(faults, interval):
    assert faults(SWEEP_INTERVAL=interval) == [("E025", f'{AT}["SWEEP_INTERVAL"] is {interval!r}.')]


def test_W001(faults):
    assert faults(TIMEOUT=5, OPTIONS={"socket_timeout": 5}) == [
        ("W001", f"{AT} has socket_timeout 5, not less than its TIMEOUT 5."),
    ]
    assert faults(TIMEOUT=5, OPTIONS={"socket_timeout": 4.9}) == []


def test_the_command_shows_message_hint_and_id(settings):
    settings.CLUSTER_LOCKS = {"default": GOOD | {"TIMEOUT": 0}}
    with pytest.raises(Exception, match=r"E017.*TIMEOUT") as raised:
        call_command("check")
    assert conf.HINTS["E017"] in str(raised.value)


class WithoutFences:
    def allow_migrate(self, db, app_label, **hints):
        return app_label != "cluster_lock_fences"


def test_E026(messages, monkeypatch):
    locks = {"default": GOOD}
    assert messages(locks) == []
    monkeypatch.setitem(connections.settings["default"], "AUTOCOMMIT", False)
    others = connections.configure_settings({"odd": {"ENGINE": "django.db.backends.dummy"}, "default": {}})
    monkeypatch.setitem(connections.settings, "odd", others["odd"])
    assert messages(locks) == [
        ("E026", "DATABASES['default'] has AUTOCOMMIT off, so that no transaction there is lock.atomic()'s own."),
        ("E026", "DATABASES['odd'] is of the kind 'unknown', for which there are no fences."),
    ]
    assert messages(locks, DATABASE_ROUTERS=[WithoutFences()]) == []
    del connections["odd"]


def test_E026_is_about_the_app_of_fences(messages, without_fences, monkeypatch):
    monkeypatch.setitem(connections.settings["default"], "AUTOCOMMIT", False)
    assert messages({"default": GOOD}) == []


SETTINGS = """
SECRET_KEY = "x"
DEBUG = True
INSTALLED_APPS = ["django.contrib.staticfiles", "django_cluster_lock"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
CLUSTER_LOCKS = {"default": {"LOCATION": "embedded://"}}
STATIC_URL, STATIC_ROOT = "static/", "static"
"""


@pytest.mark.parametrize("command", [["check"], ["migrate"], ["collectstatic", "--no-input"]], ids=lambda it: it[0])
def test_commands_leave_the_embedded_cluster_alone(tmp_path, command):
    (tmp_path / "project.py").write_text(SETTINGS)
    state = tmp_path / "state"
    path = [str(tmp_path), str(Path(django_cluster_lock.__file__).parents[1])]
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "DJANGO_SETTINGS_MODULE": "project",
        "CLUSTER_LOCK_EMBEDDED_DIR": str(state),
    }
    done = subprocess.run(
        [sys.executable, "-m", "django", *command], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not state.exists()
