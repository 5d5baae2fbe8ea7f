"""How CLUSTER_LOCKS is read."""

import subprocess
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from redis.connection import SSLConnection
from redis.credentials import UsernamePasswordCredentialProvider

from django_cluster_lock import conf, servers
from django_cluster_lock.conf import AliasSettings
from django_cluster_lock.connections.options import connection_options

ONE = {"LOCATION": "redis://10.0.0.1:7000", "KEY_PREFIX": "shop"}


@pytest.fixture
def load(settings):
    def run(config, **others):
        settings.CLUSTER_LOCKS = {"default": config}
        for name, value in others.items():
            setattr(settings, name, value)
        return conf.load()

    return run


def test_defaults(load):
    assert load(ONE) == AliasSettings(
        alias="default",
        location=("redis://10.0.0.1:7000",),
        key_prefix="shop",
        cache=None,
        timeout=30,
        blocking_timeout=10,
        replicas=None,
        clock_skew=1,
        options={},
    )


def test_all_keys(load):
    config = {
        "LOCATION": ["redis://10.0.0.1", "redis://10.0.0.2"],
        "KEY_PREFIX": "shop",
        "TIMEOUT": 5,
        "BLOCKING_TIMEOUT": None,
        "REPLICAS": 0,
        "CLOCK_SKEW": 0,
        "OPTIONS": {"password": "s3cret"},
    }
    assert load(config) == AliasSettings(
        "default", ("redis://10.0.0.1", "redis://10.0.0.2"), "shop", None, 5, None, 0, 0, {"password": "s3cret"}
    )


@pytest.mark.parametrize("separator", [",", ";", " , "])
def test_one_string_may_hold_several_urls(load, separator):
    found = load(ONE | {"LOCATION": separator.join(["redis://10.0.0.1", "redis://10.0.0.2"])})
    assert found.location == ("redis://10.0.0.1", "redis://10.0.0.2")


def test_settings_are_read_anew():
    with override_settings(CLUSTER_LOCKS={"default": ONE}):
        assert conf.load().timeout == 30
        with override_settings(CLUSTER_LOCKS={"default": ONE | {"TIMEOUT": 7}}):
            assert conf.load().timeout == 7
        assert conf.load().timeout == 30


def test_another_alias_may_be_wrong(settings):
    settings.CLUSTER_LOCKS = {"default": ONE, "other": ONE | {"TIMEOUT": 0}}
    assert conf.load().key_prefix == "shop"
    with pytest.raises(ImproperlyConfigured, match="E017"):
        conf.load("other")


def test_errors_hide_passwords(settings):
    urls = ["redis://:s3cret@10.0.0.1/1", "rediss://:other-s3cret@10.0.0.2:port"]
    settings.CLUSTER_LOCKS = {"default": {"LOCATION": urls, "OPTIONS": {"pasword": "s3cret"}}}
    texts = [str(problem) for problem in conf.problems()]
    assert len(texts) == 4
    assert "s3cret" not in "".join(texts)


def test_embedded_needs_no_prefix(load):
    assert load({"LOCATION": "embedded://"}).key_prefix == "locks"


@pytest.fixture
def production(monkeypatch, settings):
    settings.DEBUG = False
    monkeypatch.delenv("PYTEST_VERSION")
    monkeypatch.delenv("CLUSTER_LOCK_EMBEDDED", raising=False)
    monkeypatch.delattr("django.core.mail.outbox")


@pytest.mark.parametrize(
    "permit",
    [
        lambda monkeypatch, settings: setattr(settings, "DEBUG", True),
        lambda monkeypatch, settings: monkeypatch.setattr("django.core.mail.outbox", [], raising=False),
        lambda monkeypatch, settings: monkeypatch.setenv("PYTEST_VERSION", "9"),
        lambda monkeypatch, settings: monkeypatch.setenv("CLUSTER_LOCK_EMBEDDED", "1"),
    ],
    ids=["debug", "django's tests", "pytest", "on request"],
)
def test_embedded_is_allowed(production, monkeypatch, settings, permit):
    assert not servers.embedded_allowed()
    permit(monkeypatch, settings)
    assert servers.embedded_allowed()


@pytest.mark.parametrize("value", ["0", "", "yes"])
def test_embedded_is_not_allowed_by_other_values(production, monkeypatch, value):
    monkeypatch.setenv("CLUSTER_LOCK_EMBEDDED", value)
    assert not servers.embedded_allowed()


def of_cache(load, backend, location, options):
    caches = {"sessions": {"BACKEND": backend, "LOCATION": location, "OPTIONS": options}}
    return load({"CACHE": "sessions", "KEY_PREFIX": "shop"}, CACHES=caches)


def test_cache_of_django_redis(load):
    found = of_cache(
        load,
        "django_redis.cache.RedisCache",
        ["redis://10.0.0.1:7000/1", "redis://10.0.0.2:7000/1"],
        {
            "CLIENT_CLASS": "django_redis.client.DefaultClient",
            "USERNAME": "app",
            "PASSWORD": "s3cret",
            "SOCKET_TIMEOUT": 3,
            "SOCKET_CONNECT_TIMEOUT": 2,
            "CONNECTION_POOL_KWARGS": {
                "connection_class": SSLConnection,
                "ssl_cert_reqs": None,
                "socket_timeout": 4,
                "max_connections": 50,
                "decode_responses": True,
            },
        },
    )
    assert found.cache == "sessions"
    assert found.options == {
        "username": "app",
        "password": "s3cret",
        "socket_timeout": 4,
        "socket_connect_timeout": 2,
        "ssl": True,
        "ssl_cert_reqs": None,
    }
    options = connection_options(found)
    assert options.nodes == (("10.0.0.1", 7000), ("10.0.0.2", 7000))
    assert options.tls
    assert "db" not in options.kwargs


def test_cache_of_django(load):
    found = of_cache(
        load,
        "django.core.cache.backends.redis.RedisCache",
        "rediss://app:s3cret@10.0.0.1:7000;rediss://app:s3cret@10.0.0.2:7000",
        {"db": 2, "pool_class": "redis.BlockingConnectionPool", "socket_timeout": 3, "ssl_ca_data": "..."},
    )
    assert found.options == {"socket_timeout": 3, "ssl_ca_data": "..."}
    options = connection_options(found)
    assert options.nodes == (("10.0.0.1", 7000), ("10.0.0.2", 7000))
    assert (options.tls, options.kwargs["username"], options.kwargs["password"]) == (True, "app", "s3cret")


def test_options_add_to_those_of_the_cache(load):
    caches = {
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": "redis://10.0.0.1",
            "OPTIONS": {"PASSWORD": "s3cret", "SOCKET_TIMEOUT": 9},
        }
    }
    found = load({"CACHE": "default", "KEY_PREFIX": "shop", "OPTIONS": {"socket_timeout": 1}}, CACHES=caches)
    assert found.options == {"password": "s3cret", "socket_timeout": 1}


def test_a_subclass_of_a_redis_cache_is_one(load, monkeypatch):
    from django.core.cache.backends.redis import RedisCache

    monkeypatch.setattr(f"{__name__}.Measured", type("Measured", (RedisCache,), {}), raising=False)
    monkeypatch.setitem(sys.modules, "measured_caches", sys.modules[__name__])
    assert of_cache(load, "measured_caches.Measured", "redis://10.0.0.1", {}).location == ("redis://10.0.0.1",)


def options_of(location, **options):
    return connection_options(AliasSettings("default", (location,), "shop", options=options))


def test_a_url_wins_over_options():
    options = options_of("redis://app:s3cret@10.0.0.1?client_name=a", username="x", password="y", client_name="b")
    assert {"username": "app", "password": "s3cret", "client_name": "a"}.items() <= options.kwargs.items()


@pytest.mark.parametrize(
    ("location", "options", "tls"),
    [
        ("redis://10.0.0.1", {}, False),
        ("rediss://10.0.0.1", {}, True),
        ("rediss://10.0.0.1", {"ssl": False}, True),
        ("redis://10.0.0.1", {"ssl": True}, True),
        ("redis://10.0.0.1", {"ssl_cert_reqs": "none"}, True),
        ("redis://10.0.0.1?ssl_cert_reqs=none", {}, True),
        ("redis://10.0.0.1", {"ssl": False, "ssl_cert_reqs": "none"}, False),
    ],
)
def test_tls(location, options, tls):
    found = options_of(location, **options)
    assert found.tls is tls
    kind = type(found.connection(("10.0.0.1", 6379), 1)), type(found.async_connection(("10.0.0.1", 6379), 1))
    assert [each.__name__ for each in kind] == ["SSLConnection" if tls else "Connection"] * 2


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_a_missing_file_is_named(name):
    with pytest.raises(ImproperlyConfigured, match=f"{name} is '/no/such.pem', but there is no such file"):
        options_of("rediss://10.0.0.1", **{name: "/no/such.pem"})


def test_an_attempt_is_limited_by_the_time_left():
    options = options_of("redis://10.0.0.1", socket_timeout=3, socket_connect_timeout=2)
    node = ("10.0.0.1", 6379)
    for within, expected in [(0.5, (0.5, 0.5)), (2.5, (2.5, 2)), (9, (3, 2))]:
        for connection in (options.connection(node, within), options.async_connection(node, within)):
            assert (connection.socket_timeout, connection.socket_connect_timeout) == expected


def test_a_credential_provider_is_asked_by_both_kinds():
    provider = UsernamePasswordCredentialProvider("app", "s3cret")
    options = options_of("redis://10.0.0.1", credential_provider=provider)
    node = ("10.0.0.1", 6379)
    assert options.connection(node, 1).credential_provider is provider
    assert options.async_connection(node, 1).credential_provider is provider


def test_address_remap_is_imported():
    assert options_of("redis://10.0.0.1", address_remap="operator.itemgetter").remap.__name__ == "itemgetter"


def test_embedded_has_its_own_credentials(monkeypatch):
    class Cluster:
        urls = ("redis://:own@127.0.0.1:7000",)

    monkeypatch.setattr("django_cluster_lock.embedded.up", Cluster)
    options = options_of(
        "embedded://", username="app", password="s3cret", ssl=True, ssl_ca_certs="/no/such.pem", socket_timeout=1
    )
    assert (options.nodes, options.tls, options.socket_timeout) == ((("127.0.0.1", 7000),), False, 1)
    assert options.kwargs["password"] == "own"
    assert "username" not in options.kwargs


def test_importing_needs_no_configured_django():
    program = "import django_cluster_lock.conf, django_cluster_lock.names, sys; print('redis' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr
