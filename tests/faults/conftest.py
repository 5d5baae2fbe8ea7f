import pytest

from tests.actors import Actor, AsyncActor
from tests.faults.proxy import Proxy
from tests.records import Record

SOCKET_TIMEOUT = 0.3


@pytest.fixture(scope="session")
def proxies(cluster):
    proxy = Proxy(cluster.embedded.ports)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(proxies, settings, cluster, prefix):
    """The proxy before the cluster, and the locks behind it."""
    password = cluster.embedded.password
    settings.CLUSTER_LOCKS = {
        "default": {
            "LOCATION": [f"redis://:{password}@127.0.0.1:{proxies.remap(('', port))[1]}" for port in proxies.ports],
            "KEY_PREFIX": prefix,
            "TIMEOUT": 1.5,
            "BLOCKING_TIMEOUT": 5,
            "CLOCK_SKEW": 0.2,
            "OPTIONS": {"address_remap": proxies.remap, "socket_timeout": SOCKET_TIMEOUT},
        }
    }
    proxies.heal()
    proxies.forget()
    yield proxies
    proxies.heal()


@pytest.fixture(params=[Actor, AsyncActor], ids=["sync", "async"])
def actors(request):
    """Makes actors of one face."""
    made = []

    def make():
        made.append(request.param())
        return made[-1]

    yield make
    for actor in made:
        actor.close()


@pytest.fixture
def actor(actors):
    return actors()


@pytest.fixture
def record(proxy, cluster, prefix):
    return Record(cluster, prefix, "a")
