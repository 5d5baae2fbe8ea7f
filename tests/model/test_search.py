"""All states of a shard up to a bound, by the real flows; and controls, each of which the search has to notice."""

import pytest
import redis

from django_cluster_lock import exchange, protocol
from django_cluster_lock.names import keys_of
from tests.model.controls import CONTROLS
from tests.model.flows import TERMS
from tests.model.search import search
from tests.model.shard import Shard
from tests.model.states import Model
from tests.model.world import LEASE, MARK, UNIT, Kind, Record

pytestmark = pytest.mark.slow

TAG = "model"
LONG_AGO = 10**9  # microseconds
UNIT_MS = UNIT * 1000
TO_THE_END_OF_A_UNIT = LEASE * UNIT_MS - int(TERMS.ttl)  # by which a lease is shorter than whole units
MARK_MS = MARK * UNIT_MS - 60_000  # and a mark


@pytest.mark.parametrize(
    ("kind", "clients", "limit"),
    [
        pytest.param(Kind(3, faults=3, mishaps=0, times=0), {"tries": 1, "keeps": False}, 35_000, id="three-nodes"),
        pytest.param(Kind(2, faults=3, mishaps=0, times=0), {"tries": 1, "keeps": False}, 40_000, id="two-nodes"),
        pytest.param(Kind(2, 1, faults=2, mishaps=0, times=0), {"tries": 1}, 20_000, id="a-foreign-replica"),
        pytest.param(Kind(2, faults=1, mishaps=2, times=1), {}, 15_000, id="requests"),
        pytest.param(Kind(2, faults=1, mishaps=1, times=4), {}, 15_000, id="time"),
    ],
)
def test_no_state_breaks_a_promise(kind, clients, limit):
    found = search(kind, limit, **clients)
    assert not found.broken, "\n".join((*found.trace, found.broken.told))
    assert found.finished or found.states >= limit


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_found(name):
    control = CONTROLS[name]
    with control.changed():
        found = search(
            control.kind, 120_000, promises=control.promises, scripts=control.scripts, keeps=control.keeps,
            tries=control.tries,
        )  # fmt: skip
    assert found.broken
    assert len(found.trace) == control.steps, found.trace


def test_what_asks_too_few_is_found_as_soon_as_it_grants():
    control = CONTROLS["only its own replicas count"]
    with control.changed():
        found = search(control.kind, 1000, promises=("replicas",), keeps=False, tries=1)
    assert found.broken
    assert found.trace[:2] == ["P stands still", "R1 is promoted"]
    assert len(found.trace) == 3


@pytest.fixture
def shard(cluster, prefix):
    key = keys_of("any", "any", TAG).record.decode()
    port = cluster.admin().get_node_from_key(key).port
    with redis.Redis("127.0.0.1", port, password=cluster.embedded.password) as client:
        shard = Shard(client)
        shard.add(keys_of(prefix, "lock", TAG))
        yield shard
        shard.clear()


def test_the_scripts_in_python_do_what_the_real_ones_do(shard):
    model = Model(Kind(2, faults=0, mishaps=1, times=4))
    found = []
    with model.flows.in_the_model():
        states, met = [model.begin()], set()
        while states and len(met) < 25_000:
            for _, after, _ in model.after(states.pop(0)):
                if after not in met:
                    met.add(after)
                    states.append(after)
    runs = sorted(model.ran, key=repr)
    assert len(runs) > 40
    for before, (name, token, mark), told, after in runs:
        (keys,) = shard.keys.values()
        put(shard, keys, before)
        call = call_of(keys, name, token, mark)
        _, ran = shard.run(exchange.command(call))
        assert ran.status == told[0], (before, name, token)
        if ran.status in (b"own", b"ok"):
            assert fence_of(shard, ran.answer[1]) == told[1]
        assert read(shard, ran.after) == after, (before, name, token, ran.after)
        found.append(ran.status)
    assert {b"own", b"busy", b"over", b"ok", b"lost", b"released", b"not owner"} <= set(found)


def call_of(keys, name, token, mark):
    if name == "acquire":
        return protocol.attempt(keys, token, TERMS, now=0.0, deadline=0.0, queues=False)
    if name == "renew":
        return protocol.renewal(protocol.Grant(keys, token, 0, 0.0, False), TERMS)
    return protocol.give_up(keys, token, mark=mark)


def put(shard, keys, record):
    """Make a record of the model the one on the server."""
    shard.lose(keys)
    if record is None:
        return
    fields = {"f": shard.micros + record.fence - (LONG_AGO if record.fence < 0 else 0)}
    if record.token:
        fields |= {"t": record.token, "d": shard.now + record.left * UNIT_MS - TO_THE_END_OF_A_UNIT}
    for place, (token, units) in enumerate(record.marks):
        fields[f"x{place}"] = token + b":%d" % (shard.now + units * UNIT_MS - MARK_MS)
    shard.connection.hset(keys.record, mapping=fields)
    shard.connection.pexpireat(keys.record, shard.now + 100 * UNIT_MS)
    shard.look(keys)


def fence_of(shard, fence):
    """Return the model's number for a fence on the server: those from before it are below 0."""
    since = fence - shard.micros
    return since if since >= 0 else since + LONG_AGO if fence else -1


def read(shard, record):
    """Return a record on the server as the model has it."""
    if not record.fields:
        return None
    marks = [value.rpartition(b":") for field, value in record.fields.items() if field[:1] == b"x"]
    units = [(token, (int(until) - shard.now + MARK_MS) // UNIT_MS) for token, _, until in marks]
    left = (record.deadline - shard.now + TO_THE_END_OF_A_UNIT) // UNIT_MS if record.holder else 0
    return Record(record.holder, fence_of(shard, record.fence), left, tuple(sorted(units)))
