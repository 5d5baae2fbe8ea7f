"""All states of a shard up to a bound, by the real flows; and controls, each of which the search has to notice."""

import pytest
import redis

from django_cluster_lock import exchange, protocol, scripts
from django_cluster_lock.names import keys_of
from tests.model import twin
from tests.model.controls import CONTROLS
from tests.model.flows import TERMS
from tests.model.search import search
from tests.model.shard import ALL_SCRIPTS, Shard
from tests.model.states import Model
from tests.model.walk import Walks, walk
from tests.model.world import LEASE, MARK, UNIT, Kind, Record

pytestmark = pytest.mark.slow

TAG = "model"
SEED = 1  # of the walks
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
        pytest.param(Kind(2, faults=0, mishaps=2, times=1), {"detaches": True}, 15_000, id="attaching"),
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
            tries=control.tries, detaches=control.detaches,
        )  # fmt: skip
    assert found.broken
    assert len(found.trace) == control.steps, found.trace


WALKS = [
    pytest.param(Kind(3), 400, id="three-nodes"),
    pytest.param(Kind(2), 500, id="two-nodes"),
    pytest.param(Kind(2, 1, servers="7.0"), 500, id="a-foreign-replica"),
    pytest.param(Kind(2, faults=0), 300, id="no-faults"),
]


@pytest.mark.parametrize(("kind", "steps"), WALKS)
def test_no_walk_breaks_a_promise(kind, steps):
    walked = walk(kind, steps, SEED, 80, tries=3, detaches=True)
    assert not walked.broken, "\n".join((*walked.trace, walked.broken.told))
    assert walked.steps == steps
    assert walked.grants >= 4, "the walks say nothing"


@pytest.mark.parametrize("name", [name for name, control in CONTROLS.items() if control.steps_of_walks])
def test_a_walk_finds_a_control(name):
    control = CONTROLS[name]
    with control.changed():
        walked = walk(
            control.kind, control.steps_of_walks, SEED, 40, promises=control.promises, scripts=control.scripts,
            keeps=control.keeps, tries=control.tries, detaches=control.detaches,
        )  # fmt: skip
    assert walked.broken
    assert control.steps <= len(walked.trace) <= control.steps + 3


def test_a_seed_gives_the_same_walks():
    control = CONTROLS["a renewal makes a lease"]
    how = {"promises": control.promises, "scripts": control.scripts, "tries": control.tries}
    first, again, other = (walk(control.kind, 500, seed, **how) for seed in (SEED, SEED, SEED + 1))
    assert first == again
    assert first.trace
    assert first != other


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
        shard = Shard(client, known=(*ALL_SCRIPTS, scripts.ATTACH))
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
    farther = Model(Kind(2, faults=0, mishaps=2, times=1), detaches=True)
    Walks(farther, SEED).run(800, 40)
    cancelled = Record(b"A1", 0, LEASE, ((b"B1", MARK),))  # too far away for either
    call = "attach", b"B1", b"A1"
    runs = {*model.ran, *farther.ran, (cancelled, call, *twin.attach(cancelled, *call[1:]))}
    assert len(runs) > 100
    for before, (name, token, other), told, after in sorted(runs, key=repr):
        (keys,) = shard.keys.values()
        put(shard, keys, before)
        call = call_of(keys, name, token, other)
        _, ran = shard.run(exchange.command(call))
        assert ran.status == told[0], (before, name, token)
        if ran.status in (b"own", b"ok"):
            assert fence_of(shard, ran.answer[1]) == told[1]
        assert read(shard, ran.after) == after, (before, name, token, ran.after)
        found.append((name, ran.status))
    assert {
        ("acquire", b"own"), ("acquire", b"busy"), ("acquire", b"over"),
        ("attach", b"own"), ("attach", b"lost"), ("attach", b"over"),
        ("renew", b"ok"), ("renew", b"lost"),
        ("release", b"released"), ("release", b"not owner"),
    } <= set(found)  # fmt: skip


def call_of(keys, name, token, other):
    if name == "acquire":
        return protocol.attempt(keys, token, TERMS, now=0.0, deadline=0.0, queues=False)
    if name == "attach":
        return protocol.Call(keys, scripts.ATTACH, (other, token, TERMS.ttl, *TERMS.owner), 0.0)
    if name == "renew":
        return protocol.renewal(protocol.Grant(keys, token, 0, 0.0, False), TERMS)
    return protocol.give_up(keys, token, mark=other)


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
