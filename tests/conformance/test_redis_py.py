"""redis-py's own tests of its lock, with this one in its place.

They are not in this repository: `tox -e conformance` downloads redis-py's source distribution and tells by an
environment variable where it is.
"""

import os
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import pytest_asyncio

from tests.conformance.adapter import Adapter, AsyncAdapter, AsyncClient, Client

DOWNLOAD = os.environ.get("CLUSTER_LOCK_CONFORMANCE")
if not DOWNLOAD:
    pytest.skip("redis-py's tests of its lock run by: tox -e conformance", allow_module_level=True)


def theirs(path):
    """A module of redis-py's tests, whose relative imports find nothing but a stub."""
    (archive,) = Path(DOWNLOAD).glob("redis-*.tar.gz")
    with tarfile.open(archive) as files:
        member = next(member for member in files.getnames() if member.partition("/")[2] == path)
        source = files.extractfile(member).read().replace(b"@pytest.mark.onlynoncluster", b"")
    package = ModuleType("redis_py_tests")
    package.__path__ = []
    stub = ModuleType("redis_py_tests.conftest")
    stub._get_client = None
    sys.modules |= {package.__name__: package, stub.__name__: stub}
    module = ModuleType(f"redis_py_tests.{Path(path).stem}")
    module.__package__ = package.__name__
    exec(compile(source, member, "exec"), module.__dict__)
    return module


def deselected():
    """Names of tests, each with the suites it is left out of."""
    lines = Path(__file__).with_name("deselected.txt").read_text().splitlines()
    words = [line.split(maxsplit=2) for line in lines if not line.startswith("#")]
    return [(test, ("sync", "async") if suites == "both" else (suites,)) for suites, test, _ in words]


DESELECTED = deselected()


@pytest.fixture(autouse=True)
def locks_on(settings, cluster, prefix):
    settings.CLUSTER_LOCKS = {
        "default": {"LOCATION": cluster.urls, "KEY_PREFIX": prefix, "TIMEOUT": 10, "CLOCK_SKEW": 0}
    }


class TestSync(theirs("tests/test_lock.py").TestLock):
    @pytest.fixture
    def r(self, cluster):
        return Client(cluster.admin())

    @pytest.fixture
    def r_decoded(self, r):
        return r

    def get_lock(self, redis, *args, **kwargs):
        return Adapter(redis, *args, **kwargs)


class TestAsync(theirs("tests/test_asyncio/test_lock.py").TestLock):
    @pytest.fixture
    def r(self, cluster):
        return AsyncClient(cluster.admin())

    @pytest_asyncio.fixture
    async def r_decoded(self, r):
        return r

    def get_lock(self, redis, *args, **kwargs):
        return AsyncAdapter(redis, *args, **kwargs)


for test, suites in DESELECTED:
    for suite in suites:
        theirs_here = {"sync": TestSync, "async": TestAsync}[suite]
        getattr(theirs_here, test)  # it is still there
        setattr(theirs_here, test, None)


def test_few_are_deselected():
    assert len(DESELECTED) <= 10
