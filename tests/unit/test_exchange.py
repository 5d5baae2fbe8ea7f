"""One call, carried through whatever a cluster does meanwhile; the nodes are answered for by hand."""

from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from django_cluster_lock import exchange, layout, protocol, scripts
from django_cluster_lock.acknowledgement import ASK_AGAIN, INFO, ROLE
from django_cluster_lock.actions import BRIEFLY, Answer, Forget, NoAnswer, Pause, Refusal, Retain, Send, SendAll
from django_cluster_lock.connections.topology import Topology
from django_cluster_lock.errors import LockError, LockUnavailable
from django_cluster_lock.flights import outbox
from django_cluster_lock.layout import LAYOUT, LEARNING_TAKES
from django_cluster_lock.names import keys_of, outbox_keys
from django_cluster_lock.protocol import Batch, Block, Call
from django_cluster_lock.scripts import answers

A, B, C = ("10.0.0.1", 7000), ("10.0.0.2", 7000), ("10.0.0.3", 7000)
NODES = b"""\
a 10.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-8191
b 10.0.0.2:7000@17000 master - 0 0 2 connected 8192-16383
ra 10.0.0.4:7000@17000 slave a 0 0 1 connected
rb 10.0.0.5:7000@17000 slave b 0 0 2 connected
c 10.0.0.3:7000@17000 master - 0 0 4 connected
rc 10.0.0.6:7000@17000 slave c 0 0 4 connected
"""
PROMOTED = b"""\
b 10.0.0.2:7000@17000 myself,master - 0 0 2 connected 8192-16383
rb 10.0.0.5:7000@17000 slave b 0 0 2 connected
a 10.0.0.1:7000@17000 slave ra 0 0 1 connected
ra 10.0.0.3:7000@17000 master - 0 0 4 connected 0-8191
"""
SLOTS = [
    [0, 8191, [b"10.0.0.1", 7000, b"a", []]],
    [8192, 16383, [b"10.0.0.2", 7000, b"b", []]],
]
UNKNOWN = Refusal("ERR Unknown subcommand or wrong number of arguments for 'SHARDS'.")  # before Redis 7
TOLD = [SLOTS, NODES, UNKNOWN, b""]
LAYOUT_WANTED = tuple(LAYOUT)
OF_A = [keys for keys in (keys_of("unit", str(number)) for number in range(50)) if keys.slot <= 8191]
OF_B = [keys for keys in (keys_of("unit", str(number)) for number in range(50)) if keys.slot > 8191]
OWN = [b"own", 7]
STEP = 0.02  # seconds that an answer takes


def address(part):
    return [b"10.0.0.%d" % part, b"7000"]


def role(*replicas, written=100, behind=()):
    """The answer to ROLE of a primary with these replicas; some have not yet what it has written."""
    return [b"master", written, [[*address(part), b"%d" % (written - (part in behind))] for part in replicas]]


def told_by(node, layout):
    """The layout as a node tells it: it marks its own line."""
    if not isinstance(layout, list) or not isinstance(layout[1], bytes):
        return layout
    plain = layout[1].replace(b"myself,", b"")
    where = b" %s:%d@" % (node[0].encode(), node[1])
    rows = [
        row.replace(b" master", b" myself,master").replace(b" slave", b" myself,slave") if where in row else row
        for row in plain.splitlines()
    ]
    return [layout[0], b"\n".join(rows), *layout[2:]]


class Cluster:
    """Nodes whose answers are written down beforehand; the clock runs with what they are asked.

    Attributes:
        answers: to each request for a script, in order: a list of values, a `Refusal`, a `NoAnswer`, or None for
            a node that is silent from then on.
        sent: the requests for scripts.
        pauses: in seconds.
        layouts: whom it was asked of.
        replicas: which replicas are connected to each node, by the last part of their address.
        role: what nodes answer to ROLE, if not that.
        asked: all requests but those for the layout, of scripts and of replicas.
        closed: what idle connections were to be closed.
    """

    def __init__(self, *answers, layout=TOLD, known=True):
        self.answers, self.layout = list(answers), layout
        self.routes = Topology([A, B])
        self.now = 1000.0
        if known:
            self.know(TOLD)
        self.sent, self.pauses, self.layouts = [], [], []
        self.replicas = {A: [4], B: [5], C: [6]}
        self.role = None
        self.asked, self.info = [], {}
        self.closed = []

    def know(self, layout, *nodes):
        """Have the layout learned, by the word of these nodes or of all."""
        for node in nodes or (A, B, C):
            assert self.routes.learn(told_by(node, layout), node, self.now - 1)
        self.routes.learned_at = self.now - 1

    def carry(self, call):
        flow = (
            exchange.exchange_all(call, self.routes)
            if isinstance(call, Batch)
            else exchange.exchange(call, self.routes)
        )
        return self.run(flow)

    def run(self, flow):
        outcome = None
        while True:
            try:
                throws = isinstance(outcome, BaseException)
                action = flow.throw(outcome) if throws else flow.send(outcome)
            except StopIteration as stop:
                return stop.value
            outcome = self.perform(action)

    def perform(self, action):
        if isinstance(action, Pause):
            self.pauses.append(action.seconds)
            self.now += action.seconds
            return self.now
        if isinstance(action, Forget | Retain):
            self.closed.append(action)
            return None
        if isinstance(action, SendAll):
            return [self.perform(send) for send in action.sends]
        started, self.now = self.now, self.now + STEP
        if tuple(action.commands) == LAYOUT_WANTED:
            self.layouts.append(action.node)
            told = self.layout.get(action.node) if isinstance(self.layout, dict) else self.layout
            return (
                Answer(told_by(action.node, told), started, self.now) if told else NoAnswer("silent", self.now, started)
            )
        self.asked.append(action)
        if action.commands == [INFO]:
            told = self.info.get(action.node)
            told = told(self) if callable(told) else told
            return Answer([told], started, self.now) if told else NoAnswer("silent", self.now, started)
        self.sent.append(action)
        role = [self.tell(action)] if action.commands[-1] in (ROLE, INFO) else []
        values = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(values, NoAnswer):
            return NoAnswer(values.reason, self.now, values.sent and started)
        if isinstance(values, Refusal):
            values = [values for _ in action.commands]
        return Answer([*values, *role], started, self.now)

    def tell(self, action):
        """What a node tells of its replicas."""
        if self.role and action.commands[-1] == ROLE:
            return self.role
        return role(*self.replicas.get(action.node, ()))

    @property
    def nodes(self):
        return [send.node for send in self.sent]

    def names(self, place=-1):
        """The commands of one request, but for the question for replicas that ends it."""
        commands = self.sent[place].commands
        return [command[0] for command in (commands[:-1] if commands[-1] in (ROLE, INFO) else commands)]


UNHEARD = NoAnswer("timed out", 0.0, sent=1.0)
UNREACHED = NoAnswer("refused", 0.0)


def calling(keys=OF_A[0], *, within=5.0, script=scripts.ACQUIRE, **kwargs):
    args = (b"T", b"10000", b"0", keys.member, b"", b"", b"", b"")
    return Call(keys, script, args, 1000.0 + within, **{"replicas": None, **kwargs})


def test_one_request_for_one_answer():
    cluster = Cluster([OWN, 1])
    reply = cluster.carry(calling())
    assert (reply.status, reply.details, reply.acks, reply.needed) == (b"own", [7], 1, 1)
    assert (reply.sent, reply.now, reply.first_sent, reply.unanswered) == (1000.0, 1000.0 + STEP, 1000.0, False)
    [send] = cluster.sent
    keys = OF_A[0]
    assert send.node == A
    assert send.commands == [
        (b"EVALSHA", scripts.ACQUIRE.sha, b"2", keys.record, keys.index, *calling().args),
        (b"WAIT", b"1", b"1000"),
        (b"ROLE",),
    ]
    assert (send.blocks, send.deadline) == (1.0, 1005.0)
    assert cluster.pauses == cluster.layouts == []


# Who acknowledges


def shard(*lines):
    """The layout of a cluster whose first shard has these nodes, as lines that follow those of the others."""
    others = [line for line in NODES.splitlines() if not line.startswith((b"a ", b"ra "))]
    return [SLOTS, b"\n".join([*lines, *others]), UNKNOWN, b""]


IS_PRIMARY = b"a 10.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-8191"
FOLLOWS = b"ra 10.0.0.4:7000@17000 slave a 0 0 1 connected"
IS_DOWN = b"rd 10.0.0.7:7000@17000 slave,fail a 0 0 1 disconnected"
ONE_MORE = b"rd 10.0.0.7:7000@17000 slave a 0 0 1 connected"
DIED = b"d 10.0.0.7:7000@17000 master,fail - 0 0 1 disconnected"
FOLLOWS_THE_DEAD = b"rd 10.0.0.8:7000@17000 slave d 0 0 1 connected"


def acknowledged(cluster, call=None):
    reply = cluster.carry(call or calling())
    return reply.acks, reply.needed


def learned(*answers, layout, **kwargs):
    cluster = Cluster(*answers, layout=layout, **kwargs)
    cluster.know(layout)
    return cluster


def test_a_replica_that_is_down_has_to_acknowledge():
    cluster = learned([OWN, 1], layout=shard(IS_PRIMARY, FOLLOWS, IS_DOWN))
    assert acknowledged(cluster) == (1, 2)
    assert cluster.sent[0].commands[1] == (b"WAIT", b"2", b"1000")
    assert cluster.carry(calling()).objection == "not connected: 10.0.0.7:7000"


def test_what_a_dead_primary_left_behind_has_to_acknowledge():
    """Before Redis 7.2 nothing tells where it belongs: it counts for the shard that has too few nodes."""
    layout = shard(IS_PRIMARY, DIED, FOLLOWS_THE_DEAD)
    assert acknowledged(learned([OWN, 0], layout=layout)) == (0, 2)
    assert acknowledged(learned([OWN, 1], layout=layout), calling(OF_B[0])) == (1, 1)


def test_what_a_dead_primary_left_behind_counts_where_its_slots_went():
    before = shard(DIED.replace(b",fail", b"") + b" 0-8191", FOLLOWS_THE_DEAD, FOLLOWS.replace(b"slave a", b"slave d"))
    before[0] = [[0, 8191, [b"10.0.0.7", 7000, b"d", []]], SLOTS[1]]
    cluster = Cluster([OWN, 1])
    assert cluster.routes.learn(before, A)
    assert cluster.routes.learn(shard(IS_PRIMARY, FOLLOWS, DIED, FOLLOWS_THE_DEAD), A)
    assert acknowledged(cluster) == (1, 3)
    assert acknowledged(cluster, calling(OF_B[0])) == (1, 1)


def told(*groups, ids=True):
    """The answer to CLUSTER SHARDS: for each shard the ids of its nodes, primaries first where they end with a star."""
    nodes = [
        [
            [b"id", name.strip("*").encode(), b"role", b"master" if name.endswith("*") else b"replica", b"port", 7000]
            for name in group
        ]
        for group in groups
    ]
    return [[b"slots", [], b"nodes", each, *([b"id", b"x"] if ids else [])] for each in nodes]


@pytest.mark.parametrize("ids", [True, False], ids=["with ids", "without"])
def test_a_server_that_knows_the_shards_is_believed(ids):
    layout = shard(IS_PRIMARY, DIED, FOLLOWS_THE_DEAD)
    layout[2] = told(["d*", "a*", "rd"], ["b*", "rb"], ["c*", "rc"], ids=ids)
    layout[3] = b"redis_version:7.2.4\r\n"
    assert acknowledged(learned([OWN, 0], layout=layout)) == (0, 2)
    layout[2] = told(["a*"], ["d*", "rd"], ["b*", "rb"], ["c*", "rc"], ids=ids)
    cluster = learned([OWN], layout=layout)
    cluster.replicas[A] = []
    assert acknowledged(cluster) == (0, 0)
    layout[2] = told(["d*", "a*"], ["rd"], ["b*", "rb"], ["c*", "rc"], ids=ids)  # it has not told yet where it belongs
    assert acknowledged(learned([OWN, 0], layout=layout)) == (0, 2)


def copies(*, history=b"h", offset=100, role=b"slave"):
    """What a replica tells of itself."""
    return b"role:%s\r\nmaster_replid:%s\r\nslave_repl_offset:%d\r\n" % (role, history, offset)


WRITES = b"role:master\r\nmaster_replid:h\r\nmaster_repl_offset:100\r\n"
MEMBER = ("10.0.0.4", 7000)


def test_a_replica_that_has_just_come_counts_at_once():
    """It was not waited for, so that it and the others are asked how far they have copied."""
    cluster = Cluster([OWN, 1], layout=shard(IS_PRIMARY, FOLLOWS, ONE_MORE))
    cluster.replicas[A] = [4, 7]
    cluster.info = {A: WRITES, MEMBER: copies(), ("10.0.0.7", 7000): copies(offset=99)}
    assert acknowledged(cluster) == (1, 2)
    assert cluster.layouts == [A], "the primary knows it first"
    assert len(cluster.sent) == 1, "nothing is sent twice"
    cluster = Cluster([OWN, OWN, 1], layout=shard(IS_PRIMARY, FOLLOWS, ONE_MORE))
    cluster.replicas[A] = [4, 7]
    cluster.info = {A: WRITES, MEMBER: copies(), ("10.0.0.7", 7000): copies()}
    replies = cluster.carry(Batch([calling(OF_A[0]), calling(OF_A[1])]))
    assert [(reply.acks, reply.needed) for reply in replies] == [(2, 2)] * 2


def test_a_node_of_the_cluster_that_is_connected_is_a_member():
    """A primary that has just been replaced is connected before the layout calls it a replica."""
    cluster = learned([OWN, 0], layout=shard(IS_PRIMARY, FOLLOWS, DIED.replace(b",fail", b"")))
    cluster.replicas[A] = [4, 7]
    cluster.info = {A: WRITES, MEMBER: copies(), ("10.0.0.7", 7000): copies(offset=5)}
    assert acknowledged(cluster) == (1, 2)


@pytest.mark.parametrize(
    ("lines", "needed"),
    [
        ([IS_PRIMARY, b"d 10.0.0.7:7000@17000 slave a 0 0 1 connected", FOLLOWS_THE_DEAD], 2),
        ([IS_PRIMARY, FOLLOWS, FOLLOWS_THE_DEAD.replace(b" d ", b" - ")], 2),
        ([IS_PRIMARY, FOLLOWS, FOLLOWS_THE_DEAD.replace(b" d ", b" gone ")], 2),
    ],
    ids=["of a replica", "of nobody", "of a node that was forgotten"],
)
def test_whomever_a_replica_follows(lines, needed):
    assert acknowledged(learned([OWN, 0], layout=shard(*lines)))[1] == needed


def test_a_primary_that_has_just_been_replaced_is_remembered():
    """It is not down, and nobody tells yet that it follows its successor."""
    before = shard(DIED.replace(b",fail", b"") + b" 0-8191", FOLLOWS.replace(b"slave a", b"slave d"), IS_PRIMARY[:-7])
    before[0] = [[0, 8191, [b"10.0.0.7", 7000, b"d", []]], SLOTS[1]]
    cluster = Cluster([OWN, 1])
    cluster.know(before, B)
    cluster.know(shard(IS_PRIMARY, FOLLOWS, DIED.replace(b",fail", b"")))
    assert acknowledged(cluster)[1] == 2


def test_what_a_node_says_of_others_does_not_replace_what_they_said():
    """Its view may be an old one."""
    cluster = learned([OWN, 1], layout=shard(IS_PRIMARY, FOLLOWS, ONE_MORE))
    cluster.know(TOLD, B)
    assert acknowledged(cluster)[1] == 2
    cluster.know(TOLD, A)
    assert acknowledged(cluster)[1] == 1


class TestForeign:
    """A replica that is no member of the cluster, a backup or a migration."""

    def test_it_does_not_stand_for_a_member(self):
        cluster = Cluster([OWN, 1])
        cluster.replicas[A] = [9]
        cluster.info = {A: WRITES, MEMBER: copies(offset=99)}
        assert acknowledged(cluster) == (0, 1)
        assert cluster.carry(calling()).objection == "not connected: 10.0.0.4:7000"

    def test_beside_it_a_member_is_asked_itself(self):
        cluster = Cluster([OWN, 1])
        cluster.replicas[A] = [4, 9]
        cluster.info = {A: WRITES, MEMBER: copies()}
        assert acknowledged(cluster) == (1, 1)
        assert len(cluster.sent) == 1, "nothing is sent twice"

    def test_the_layout_is_asked_for_once_for_its_sake(self):
        cluster = Cluster([OWN, 2])
        cluster.replicas[A] = [4, 9]
        for _ in range(3):
            assert acknowledged(cluster) == (1, 1)
        assert cluster.layouts == [A]

    def test_a_member_has_a_moment_to_copy(self):
        cluster = Cluster([OWN, 1])
        cluster.replicas[A] = [4, 9]
        cluster.info = {A: WRITES, MEMBER: lambda cluster: copies(offset=100 if cluster.pauses else 99)}
        assert acknowledged(cluster) == (1, 1)
        assert cluster.pauses == [ASK_AGAIN[0]]

    def test_all_acknowledgements_are_those_of_members_too(self):
        cluster = Cluster([OWN, 2])
        cluster.replicas[A] = [4, 9]
        assert acknowledged(cluster) == (1, 1)
        assert len(cluster.asked) == 1

    def test_one_by_the_address_of_a_member_does_not_stand_for_it(self):
        """A backup on the same machine, behind a bridge."""
        cluster = Cluster([OWN, 1])
        cluster.replicas[A] = [4, 4]
        cluster.info = {A: WRITES, MEMBER: copies(offset=99)}
        assert acknowledged(cluster) == (0, 1)

    @pytest.mark.parametrize(("number", "acks"), [(1, 0), (2, 1)])
    def test_a_number_that_users_choose_counts_members_as_far_as_there_are_any(self, number, acks):
        cluster = Cluster([OWN, 1])
        cluster.replicas[A] = [9]
        assert acknowledged(cluster, calling(replicas=number)) == (acks, number)

    def test_of_more_acknowledgements_than_foreign_ones_the_rest_are_members(self):
        cluster = learned([OWN, 2], layout=shard(IS_PRIMARY, FOLLOWS, ONE_MORE))
        cluster.replicas[A] = [4, 7, 9]
        assert acknowledged(cluster, calling(replicas=1)) == (1, 1)


class TestOtherAddress:
    """A member that its primary knows by another address than the cluster does, behind a translation of addresses."""

    def test_it_tells_itself_how_far_it_has_copied(self):
        cluster = Cluster([OWN, 1])
        cluster.replicas[A] = [9]
        cluster.info = {A: WRITES, MEMBER: copies()}
        assert acknowledged(cluster) == (1, 1)

    def test_two_behind_one_address(self):
        cluster = learned([OWN, 2], layout=shard(IS_PRIMARY, FOLLOWS, ONE_MORE))
        cluster.replicas[A] = [9, 9]
        cluster.info = {A: WRITES, MEMBER: copies(), ("10.0.0.7", 7000): copies()}
        assert acknowledged(cluster) == (2, 2)

    @pytest.mark.parametrize(
        "told",
        [copies(history=b"other"), copies(role=b"master"), copies(offset=99), copies()[:-5] + b"x", b"odd", None],
    )
    def test_what_has_not_copied_this_does_not_count(self, told):
        cluster = Cluster([OWN, 1])
        cluster.replicas[A] = [9]
        cluster.info = {A: WRITES, MEMBER: told}
        assert acknowledged(cluster) == (0, 1)


@pytest.mark.parametrize(
    "told",
    [
        Refusal("NOPERM no permissions to run role"),
        Refusal("ERR unknown command 'ROLE'"),
        [b"master", [[b"10.0.0.4", b"7000", b"stable_sync"]]],
    ],
    ids=["denied", "unknown", "told otherwise"],
)
def test_info_is_asked_where_role_does_not_tell(told):
    cluster = Cluster([OWN, 1])
    cluster.role = told
    online = "slave0:ip=10.0.0.4,port=7000,state=online,offset=5,lag=0"
    loading = "slave1:ip=10.0.0.9,port=7000,state=wait_bgsave,offset=0,lag=0"
    info = f"# Replication\r\nrole:master\r\n{online}\r\n{loading}\r\nmaster_repl_offset:5\r\n".encode()
    cluster.tell = lambda action: cluster.role if action.commands[-1] == ROLE else info
    cluster.info[A] = info
    for _ in range(2):
        assert acknowledged(cluster) == (1, 1)
    assert [send.commands[-1] for send in cluster.sent] == [ROLE, INFO], "nothing is sent twice"


@pytest.mark.parametrize(
    "told",
    [
        [b"master", 1, [[[b"x"], b"1", b"2"]]],
        [b"master", 1, [[None, b"1", b"2"]]],
        [b"master", b"1", [[b"10.0.0.4", b"7000", b"2"]]],
        [b"master", None, [[b"10.0.0.9", b"7000", b"2"]]],
        [b"master", 1, 5],
        [b"master", 1, [b"x"]],
        [b"master", 1, {}],
    ],
)
def test_odd_answers_to_the_question_for_replicas(told):
    cluster = Cluster([OWN, 1])
    cluster.role = told
    reply = cluster.carry(calling())
    assert reply.needed == 1


@pytest.mark.parametrize("told", [[b"slave", b"10.0.0.2", 7000, b"connected", 5], [], None, 5, b""])
def test_a_node_that_is_no_primary_any_more_acknowledges_nothing(told):
    cluster = Cluster([OWN, 1])
    cluster.tell = lambda action: told
    assert acknowledged(cluster) == (0, 1)


class TestStandalone:
    ALONE = Refusal("ERR This instance has cluster support disabled")

    def test_what_was_once_connected_counts_for_good(self):
        alone = [self.ALONE] * 3
        cluster = Cluster([OWN, 1], [OWN, 0], [OWN, 0])
        cluster.routes = Topology([A])
        assert cluster.routes.learn([*alone, b"role:master\r\nconnected_slaves:1\r\n"], A, cluster.now)
        cluster.routes.learned_at = cluster.now
        assert acknowledged(cluster) == (1, 1)
        assert cluster.routes.learn([*alone, b"role:master\r\nconnected_slaves:0\r\n"], A, cluster.now)
        cluster.replicas[A] = []
        assert acknowledged(cluster) == (0, 1)

    def test_a_second_replica_counts_at_once(self):
        cluster = Cluster([OWN], [OWN, 2])
        cluster.routes = Topology([A])
        cluster.routes.learn([*[self.ALONE] * 3, b"role:master\r\nconnected_slaves:0\r\n"], A, cluster.now)
        cluster.routes.learned_at = cluster.now
        cluster.replicas[A] = [4, 5]
        assert acknowledged(cluster) == (0, 2)
        assert acknowledged(cluster) == (2, 2)

    def test_one_that_is_listed_twice_is_one(self):
        cluster = Cluster([OWN, 1])
        cluster.routes = Topology([A])
        cluster.routes.learn([*[self.ALONE] * 3, b"role:master\r\nconnected_slaves:1\r\n"], A, cluster.now)
        cluster.routes.learned_at = cluster.now
        cluster.replicas[A] = [4, 4]
        assert acknowledged(cluster) == (1, 1)


def test_a_lease_that_rests_on_one_node_is_told_once(caplog):
    cluster = learned([OWN], layout=shard(IS_PRIMARY))
    cluster.replicas[A] = []
    for _ in range(2):
        assert acknowledged(cluster) == (0, 0)
    assert [record.message for record in caplog.records] == ["lock.no_replicas"]


def test_replicas_that_nobody_waits_for():
    cluster = Cluster([OWN])
    reply = cluster.carry(calling(replicas=0))
    assert (reply.acks, reply.needed) == (0, 0)
    assert cluster.names() == [b"EVALSHA"]
    assert cluster.sent[0].blocks == 0


def test_a_wait_that_is_refused_acknowledges_nothing():
    reply = Cluster([OWN, Refusal("NOPERM no permissions to run wait")]).carry(calling())
    assert (reply.acks, reply.needed) == (0, 1)
    assert reply.objection == "NOPERM no permissions to run wait"


def test_release_declares_the_record_alone():
    cluster = Cluster([b"released"])
    assert cluster.carry(calling(script=scripts.RELEASE, replicas=0)).status == b"released"
    assert cluster.sent[0].commands[0][2:4] == (b"1", OF_A[0].record)


def test_the_layout_is_learnt_where_it_is_not_known():
    cluster = Cluster([OWN, 1], known=False)
    assert cluster.carry(calling(OF_B[0])).status == b"own"
    assert cluster.layouts[-1] == B, "who has to acknowledge is told by the node itself"
    assert cluster.nodes == [B]


class Crowd:
    """Calls that come at once, before the layout is known. Each goes on by one action at a time."""

    def __init__(self, count):
        self.cluster = Cluster([OWN, 1], known=False)
        self.flows = [exchange.exchange(calling(OF_B[0], replicas=0), self.cluster.routes) for _ in range(count)]
        self.actions = [next(flow) for flow in self.flows]

    def go_on(self, place):
        action = self.flows[place].send(self.cluster.perform(self.actions[place]))
        self.actions[place] = self.flows[place].send(None) if isinstance(action, Retain) else action

    def asks(self, place):
        action = self.actions[place]
        return isinstance(action, Send) and tuple(action.commands) == LAYOUT_WANTED


def test_a_crowd_learns_the_layout_once():
    crowd = Crowd(3)
    assert [crowd.asks(place) for place in range(3)] == [True, False, False]
    crowd.go_on(1)
    assert isinstance(crowd.actions[1], Pause)
    for place in range(3):
        crowd.go_on(place)
    assert [action.node for action in crowd.actions] == [B, B, B]
    assert len(crowd.cluster.layouts) == 1


@pytest.mark.parametrize("end", ["interrupted", "dropped", "silent", "hanging"])
def test_who_learned_for_others_and_did_not(end):
    crowd = Crowd(3)
    if end == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            crowd.flows[0].throw(KeyboardInterrupt)
    elif end == "dropped":
        crowd.flows[0] = None
    elif end == "silent":
        silent = NoAnswer("silent", crowd.cluster.now, 1.0)
        crowd.actions[0] = crowd.flows[0].throw(silent)  # the next node is asked
        crowd.go_on(0)
        crowd.flows[0] = None
    while not crowd.asks(1) and isinstance(crowd.actions[1], Pause):
        crowd.go_on(1)
    assert crowd.asks(1) == (end != "silent")
    assert crowd.cluster.now < 1000 + LEARNING_TAKES + 0.5
    assert isinstance(crowd.actions[2], Pause)


def test_who_waits_for_the_layout_does_so_within_its_time():
    crowd = Crowd(1)
    with pytest.raises(LockUnavailable):
        crowd.cluster.carry(calling(OF_B[0], within=0))
    assert crowd.cluster.now < 1000 + BRIEFLY + 0.2


def test_what_is_connected_to_a_read_only_node_is_closed():
    """Its name may stand for another server by now."""
    cluster = Cluster([Refusal("READONLY You can't write against a read only replica."), 0], [OWN, 1])
    assert cluster.carry(calling()).status == b"own"
    assert Forget(A) in cluster.closed


def test_connections_to_nodes_that_are_no_longer_in_the_layout_are_closed():
    cluster = Cluster([OWN, 1], known=False)
    cluster.carry(calling())
    assert set(cluster.closed) == {Retain(frozenset([A, B]))}  # each time the layout was told


def test_a_node_that_was_silent_gets_more_time_to_tell_the_layout():
    """A connection may take longer than usual, on a loaded machine and by TLS."""
    cluster = Cluster([OWN, 1], known=False, layout={})
    limits = {A: [], B: []}
    perform = cluster.perform

    def noted(action):
        if isinstance(action, Send):
            limits[action.node].append(action.at_most)
        return perform(action)

    cluster.perform = noted
    with pytest.raises(LockUnavailable):
        cluster.carry(calling())
    for asked in limits.values():
        assert asked[:4] == [BRIEFLY, 2 * BRIEFLY, 3 * BRIEFLY, 4 * BRIEFLY]
        assert max(asked) == 4 * BRIEFLY


def test_no_node_tells_the_layout():
    cluster = Cluster([OWN, 1], known=False, layout={})
    with pytest.raises(LockUnavailable, match="silent") as caught:
        cluster.carry(calling(within=1.0))
    assert not caught.value.unanswered
    assert {A, B} == set(cluster.layouts)
    assert cluster.sent == []
    assert cluster.now < 1000 + 1.0 + 0.5


def test_every_node_refuses_to_let_us_in():
    cluster = Cluster([OWN, 1], known=False, layout=[Refusal("invalid username-password pair")] * 4)
    with pytest.raises(LockUnavailable, match="invalid username-password"):
        cluster.carry(calling())
    assert cluster.pauses == [], "it will not change by trying again"


# Answers that lead on


def test_a_server_without_the_script_gets_it_in_full():
    cluster = Cluster(Refusal("NOSCRIPT No matching script."), [OWN, 1])
    assert cluster.carry(calling()).status == b"own"
    assert cluster.nodes == [A, A]
    assert cluster.sent[1].commands[0][:2] == (b"EVAL", scripts.ACQUIRE.text)
    assert cluster.pauses == cluster.layouts == []


@pytest.mark.parametrize(
    ("told", "node"),
    [
        ("10.0.0.2:7000", B),
        (":7001", ("10.0.0.1", 7001)),
        ("2001:db8::1:7000", ("2001:db8::1", 7000)),
        ("[2001:db8::1]:7000", ("2001:db8::1", 7000)),
        ("node.example:7000", ("node.example", 7000)),
    ],
)
def test_moved(told, node):
    cluster = Cluster(Refusal(f"MOVED {OF_A[0].slot} {told}"), [OWN, 1])
    assert cluster.carry(calling()).status == b"own"
    assert cluster.nodes == [A, node]
    # What moved once is not the only thing that did. A node that the layout lacks is asked itself who belongs to it.
    assert cluster.layouts[1:] == ([] if node == B else [node])
    assert cluster.pauses == []


def test_a_lease_on_a_node_of_which_nothing_is_known_waits_for_replicas_too():
    cluster = Cluster(Refusal(f"MOVED {OF_A[0].slot} 10.0.0.9:7000"), [OWN, 0], layout={})
    reply = cluster.carry(calling())
    assert cluster.nodes[:2] == [A, ("10.0.0.9", 7000)]
    assert cluster.names() == [b"EVALSHA", b"WAIT"]
    assert (reply.acks, reply.needed) == (0, 1)


def test_the_layout_is_asked_for_again_at_once_when_it_lacks_a_node():
    cluster = Cluster(Refusal(f"MOVED {OF_A[0].slot} 10.0.0.9:7000"), [OWN, 1])
    cluster.routes.learned_at = cluster.now
    cluster.carry(calling())
    assert cluster.layouts


def test_the_layout_is_not_asked_for_again_at_once_when_it_only_was_wrong():
    cluster = Cluster(Refusal(f"MOVED {OF_A[0].slot} 10.0.0.2:7000"), [OWN, 1])
    cluster.routes.learned_at = cluster.now
    cluster.carry(calling())
    assert cluster.layouts == []


def test_ask_is_for_one_request_and_teaches_nothing():
    cluster = Cluster(Refusal(f"ASK {OF_A[0].slot} 10.0.0.3:7000"), [b"OK", OWN, 1])
    assert cluster.carry(calling()).status == b"own"
    assert cluster.nodes == [A, C]
    assert cluster.names() == [b"ASKING", b"EVALSHA", b"WAIT"]
    assert cluster.layouts == []
    assert cluster.routes.primary(OF_A[0].slot) == A


def test_a_node_asked_for_a_moving_slot_gets_the_script_in_full_by_the_same_way():
    moving = Refusal(f"ASK {OF_A[0].slot} 10.0.0.3:7000")
    back = Refusal(f"MOVED {OF_A[0].slot} 10.0.0.1:7000")
    cluster = Cluster(moving, [b"OK", Refusal("NOSCRIPT"), 0], back, moving, [b"OK", OWN, 1])
    assert cluster.carry(calling()).status == b"own"
    assert cluster.names() == [b"ASKING", b"EVAL", b"WAIT"]


def test_nodes_that_send_to_each_other_for_ever_come_to_an_end():
    there, back = (Refusal(f"MOVED {OF_A[0].slot} 10.0.0.{number}:7000") for number in (2, 1))
    cluster = Cluster(*[there, back] * 200, there)
    with pytest.raises(LockUnavailable, match="MOVED") as caught:
        cluster.carry(calling(within=3.0))
    assert not caught.value.unanswered
    assert 1003.0 <= cluster.now < 1003.5
    assert len(cluster.sent) < 30, "after a few at once, with pauses"


def test_redirections_are_followed_by_what_is_sent_once():
    cluster = Cluster(Refusal(f"MOVED {OF_A[0].slot} 10.0.0.2:7000"), Refusal("NOSCRIPT"), [b"released"])
    assert cluster.carry(calling(script=scripts.RELEASE, replicas=0, once=True, within=0)).status == b"released"


# What passes


@pytest.mark.parametrize(
    "refusal",
    [
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN The cluster is down",
        "LOADING server is loading the dataset in memory",
        "BUSY server is busy running a script",
        "MASTERDOWN Link with MASTER is down",
        "READONLY You can't write against a read only replica.",
        "NOREPLICAS Not enough good replicas to write.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "MISCONF Errors writing to the AOF file: No space left on device",
    ],
)
class TestTransient:
    def test_is_tried_again_after_a_pause(self, refusal):
        cluster = Cluster(Refusal(refusal), Refusal(refusal), [OWN, 1])
        reply = cluster.carry(calling())
        assert (reply.status, reply.unanswered) == (b"own", False)
        assert cluster.pauses == sorted(cluster.pauses)
        assert len(cluster.pauses) == 2
        assert cluster.layouts

    def test_until_the_deadline(self, refusal):
        cluster = Cluster(Refusal(refusal))
        with pytest.raises(LockUnavailable) as caught:
            cluster.carry(calling(within=2.0))
        assert caught.value.detail == refusal
        assert not caught.value.unanswered
        assert 1002.0 <= cluster.now < 1002.5
        assert max(cluster.pauses) <= exchange.LONGEST_PAUSE

    def test_so_is_what_is_sent_once_since_nothing_ran(self, refusal):
        cluster = Cluster(Refusal(refusal), Refusal(refusal), [OWN, 1])
        assert cluster.carry(calling(once=True)).status == b"own"
        assert len(cluster.sent) == 3

    def test_not_after_a_request_without_an_answer(self, refusal):
        cluster = Cluster(Refusal(refusal), UNHEARD)
        with pytest.raises(LockUnavailable, match=UNHEARD.reason) as caught:
            cluster.carry(calling(once=True))
        assert caught.value.unanswered
        assert len(cluster.sent) == 2

    def test_not_past_the_deadline(self, refusal):
        cluster = Cluster(Refusal(refusal))
        with pytest.raises(LockUnavailable):
            cluster.carry(calling(once=True, within=-1000.0))
        assert len(cluster.sent) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        "NOPERM User limited has no permissions to run the 'evalsha' command",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "invalid username-password pair",
        "ERR unknown",
    ],
)
def test_what_repeating_will_not_change_ends_it_at_once(refusal):
    cluster = Cluster(Refusal(refusal))
    with pytest.raises(LockUnavailable) as caught:
        cluster.carry(calling())
    assert caught.value.detail == refusal
    assert not caught.value.unanswered
    assert (len(cluster.sent), cluster.pauses) == (1, [])


# Silence


def test_a_request_without_an_answer_is_repeated_and_remembered():
    cluster = Cluster(UNHEARD, [OWN, 1])
    reply = cluster.carry(calling())
    assert reply.unanswered
    assert reply.first_sent == 1000.0
    assert reply.sent > reply.first_sent, "validity counts from the attempt that was answered"
    assert cluster.layouts
    assert len(cluster.pauses) == 1


def test_a_request_that_never_went_out_is_not_unanswered():
    cluster = Cluster(UNREACHED, [OWN, 1])
    reply = cluster.carry(calling())
    assert not reply.unanswered
    assert reply.first_sent == reply.sent


@pytest.mark.parametrize(("silence", "unanswered"), [(UNHEARD, True), (UNREACHED, False)])
@pytest.mark.parametrize("once", [True, False])
def test_silence_until_the_deadline(silence, unanswered, once):
    cluster = Cluster(silence)
    with pytest.raises(LockUnavailable, match=silence.reason) as caught:
        cluster.carry(calling(within=2.0, once=once))
    assert caught.value.unanswered is unanswered
    assert (len(cluster.sent) == 1) is (once and unanswered)
    assert cluster.now < 1002.5


def test_no_attempt_follows_a_layout_that_came_after_the_deadline():
    cluster = Cluster(UNHEARD)
    with pytest.raises(LockUnavailable) as caught:
        cluster.carry(calling(within=1.5 * STEP))
    assert cluster.now >= 1000 + 1.5 * STEP
    assert len(cluster.layouts) == len(cluster.sent) == 1
    assert "timed out" in str(caught.value)


def test_silence_is_remembered_through_a_refusal():
    cluster = Cluster(UNHEARD, Refusal("WRONGTYPE"))
    with pytest.raises(LockUnavailable, match="WRONGTYPE") as caught:
        cluster.carry(calling())
    assert caught.value.unanswered


def test_a_promoted_replica_is_found():
    promoted = [[[0, 8191, [b"10.0.0.3", 7000, b"ra", []]], SLOTS[1]], PROMOTED, UNKNOWN, b""]
    cluster = Cluster(UNHEARD, [OWN, 1], layout={B: promoted})
    cluster.replicas[C] = [1]
    assert cluster.carry(calling()).status == b"own"
    assert cluster.nodes == [A, C]


# Sleeps


def test_a_sleep_comes_before_the_question_on_the_same_connection():
    cluster = Cluster([[b"wake", b"1"], OWN, 1])
    reply = cluster.carry(calling(block=Block(b"wake", 2.5)))
    assert reply.details == [7]
    [send] = cluster.sent
    assert send.commands[0] == (b"BLPOP", b"wake", b"2.500")
    assert cluster.names() == [b"BLPOP", b"EVALSHA", b"WAIT"]
    assert send.blocks == 3.5


def test_a_sleep_that_ran_out_is_an_answer_too():
    assert Cluster([None, OWN, 1]).carry(calling(block=Block(b"wake", 2.5))).status == b"own"


def test_a_sleep_that_is_refused_does_not_make_a_waiter_spin():
    cluster = Cluster([Refusal("ASK 5 10.0.0.3:7000"), [b"queued", 5000, 1, b"host", b"1", b"main", None], 1])
    assert cluster.carry(calling(block=Block(b"wake", 2.5))).status == b"queued"
    assert cluster.pauses == [exchange.LONGEST_PAUSE]


def test_a_sleep_that_is_refused_delays_no_grant():
    cluster = Cluster([Refusal("ASK 5 10.0.0.3:7000"), OWN, 1])
    assert cluster.carry(calling(block=Block(b"wake", 2.5))).status == b"own"
    assert cluster.pauses == []


@pytest.mark.parametrize("first", [UNHEARD, Refusal("LOADING"), Refusal("NOSCRIPT"), Refusal("MOVED 5 10.0.0.2:7000")])
def test_no_attempt_but_the_first_sleeps(first):
    cluster = Cluster(first, [OWN, 1])
    assert cluster.carry(calling(block=Block(b"wake", 2.5))).status == b"own"
    assert b"BLPOP" in cluster.names(0)
    assert b"BLPOP" not in cluster.names(1)


# Several calls


def batch(*keys, **kwargs):
    return Batch([calling(lock, **kwargs) for lock in keys])


def test_one_request_and_one_wait_to_each_node():
    cluster = Cluster([[b"own", 1], [b"own", 3], 1], [[b"own", 2], 1])
    replies = cluster.carry(batch(OF_A[0], OF_B[0], OF_A[1]))
    assert [reply.details for reply in replies] == [[1], [2], [3]]
    assert [reply.acks for reply in replies] == [1, 1, 1]
    assert cluster.nodes == [A, B]
    assert cluster.names(0) == [b"EVALSHA", b"EVALSHA", b"WAIT"]


def test_one_node_is_dead_and_one_refuses_one_call():
    """The others have their answers, and nothing is asked for twice."""
    a, other_a, b = OF_A[0], OF_A[1], OF_B[0]
    cluster = Cluster([[b"own", 1], Refusal("WRONGTYPE"), 1], UNHEARD, UNHEARD)
    first, second, third = cluster.carry(batch(a, other_a, b, within=2.0))
    assert first.details == [1]
    assert isinstance(second, LockUnavailable)
    assert (second.name, second.unanswered) == (other_a.name, False)
    assert isinstance(third, LockUnavailable)
    assert (third.name, third.unanswered) == (b.name, True)
    assert Counter(cluster.nodes)[A] == 1


def test_those_refused_go_on_one_by_one():
    cluster = Cluster([Refusal("NOSCRIPT"), [b"own", 2], 1], [[b"own", 1], 1])
    replies = cluster.carry(batch(OF_A[0], OF_A[1]))
    assert [reply.details for reply in replies] == [[1], [2]]
    assert cluster.names(1) == [b"EVAL", b"WAIT"]


def test_one_call_teaches_a_node_the_script_for_all():
    missing = Refusal("NOSCRIPT No matching script.")
    cluster = Cluster([missing, missing, missing, 1], [OWN, 1], [[b"own", 8], [b"own", 9], 1])
    replies = cluster.carry(Batch([calling(keys) for keys in OF_A[:3]]))
    assert [reply.details for reply in replies] == [[7], [8], [9]]
    names = [cluster.names(place) for place in range(3)]
    assert names == [[b"EVALSHA"] * 3 + [b"WAIT"], [b"EVAL", b"WAIT"], [b"EVALSHA"] * 2 + [b"WAIT"]]
    assert cluster.pauses == []


def test_a_node_asked_for_a_moving_slot_is_waited_for_by_its_own_replicas():
    two = NODES.replace(b"rc 10.0.0.6:7000@17000 slave c", b"rb2 10.0.0.6:7000@17000 slave b")
    cluster = Cluster(Refusal(f"ASK 1 {B[0]}:{B[1]}"), [b"OK", OWN, 2])
    cluster.routes.learn([SLOTS, two, UNKNOWN, b""], A)
    cluster.replicas[B] = [5, 6]
    reply = cluster.carry(calling())
    assert cluster.sent[-1].commands[-2:] == [(b"WAIT", b"2", b"1000"), ROLE]
    assert (reply.acks, reply.needed) == (2, 2)


@pytest.mark.parametrize("call", [calling(), Batch([calling()])], ids=["call", "batch"])
def test_a_layout_that_grew_old_is_learnt_anew(call):
    one_more = NODES + b"rd 10.0.0.7:7000@17000 slave a 0 0 3 connected\n"
    cluster = Cluster([OWN, 1], layout=[SLOTS, one_more, UNKNOWN, b""])
    cluster.carry(call)
    assert cluster.layouts == []
    cluster.now += layout.LAYOUT_LASTS
    cluster.carry(call)
    assert cluster.layouts == [A]  # which has just answered: another one might keep the call waiting
    assert cluster.routes.required(A) == 2


RELEASING = calling(script=scripts.RELEASE, replicas=0)


@pytest.mark.parametrize("call", [RELEASING, Batch([RELEASING])], ids=["call", "batch"])
def test_who_ends_a_lease_is_not_kept_waiting_for_the_layout(call):
    cluster = Cluster([b"released"])
    cluster.now += layout.LAYOUT_LASTS
    cluster.carry(call)
    assert cluster.layouts == []


@pytest.mark.parametrize("call", [calling(replicas=0), Batch([calling(replicas=0)])], ids=["call", "batch"])
def test_an_old_layout_is_learnt_anew_where_no_replica_counts_too(call):
    cluster = Cluster([OWN])
    cluster.now += layout.LAYOUT_LASTS
    cluster.carry(call)
    assert cluster.layouts == [A]


def test_a_layout_is_not_asked_for_past_the_deadline():
    """Of all the nodes that might tell it, one at least is asked."""
    cluster = Cluster([OWN, 1], layout={}, known=False)
    replies = cluster.carry(Batch([calling(within=0), calling(OF_B[0], within=0)]))
    assert [type(reply) for reply in replies] == [LockUnavailable] * 2
    assert len(cluster.layouts) <= 3


def test_those_moved_go_where_they_went():
    cluster = Cluster([Refusal(f"MOVED {OF_A[0].slot} 10.0.0.2:7000"), [b"own", 2], 1], [[b"own", 1], 1])
    replies = cluster.carry(batch(OF_A[0], OF_A[1]))
    assert [reply.details for reply in replies] == [[1], [2]]
    assert cluster.nodes == [A, B]


def test_those_without_an_answer_are_repeated_and_remembered():
    cluster = Cluster(UNHEARD, [[b"own", 1], 1], [[b"own", 2], 1])
    replies = cluster.carry(batch(OF_A[0], OF_A[1]))
    assert [(reply.details, reply.unanswered, reply.first_sent) for reply in replies] == [
        ([1], True, 1000.0),
        ([2], True, 1000.0),
    ]


def test_what_is_sent_once_is_not_repeated_in_a_batch():
    cluster = Cluster(UNHEARD)
    replies = cluster.carry(batch(OF_A[0], OF_A[1], once=True))
    assert [reply.unanswered for reply in replies] == [True, True]
    assert len(cluster.sent) == 1


def test_a_batch_before_the_layout_is_known():
    cluster = Cluster([[b"own", 1], 1], [[b"own", 2], 1], known=False)
    replies = cluster.carry(batch(OF_A[0], OF_B[0]))
    assert [reply.details for reply in replies] == [[1], [2]]
    assert sorted(cluster.layouts) == [A, B]  # each tells who belongs to its own shard


def test_what_interrupts_a_request_reaches_the_flow():
    seen = []

    def flow():
        try:
            yield calling()
        except KeyboardInterrupt as error:
            seen.append(error)
            yield calling(script=scripts.RELEASE, replicas=0)
            raise

    carried = exchange.carry(flow(), Cluster(OWN).routes)
    assert isinstance(carried.send(None), Send)
    cancel = carried.throw(KeyboardInterrupt())
    assert cancel.commands[0][1] == scripts.RELEASE.sha
    with pytest.raises(KeyboardInterrupt):
        carried.send(Answer([b"released"], 0.0, 0.1))
    assert len(seen) == 1


ANY = st.recursive(
    st.none() | st.integers() | st.binary(max_size=4) | st.just(Refusal("WRONG answer")),
    lambda values: st.lists(values, max_size=8),
    max_leaves=12,
)
STATUSES = sorted({status for statuses in answers.ANSWERS.values() for status in statuses})
ODD = ANY | st.builds(lambda status, details: [status, *details], st.sampled_from(STATUSES), st.lists(ANY, max_size=8))
GRANT = protocol.Grant(OF_A[0], b"T", 7, 1005.0, unanswered=False)
TERMS = protocol.Terms(3.0, 0.2, 0, (b"host", b"1", b"main", b""), 1.0)
OUTBOX = outbox.Outbox(OF_A[0], outbox_keys("unit", OF_A[0]), b"join")


def landed():
    arguments = (b"T", TERMS), b"1", []
    reply = yield from outbox.land(OUTBOX, outbox.Landing("id:0"), *arguments, outcome=b"", deadline=1000.1)
    return outbox.parked_of(reply) if reply.status in (b"settle", b"next") else None


FLOWS = [
    lambda: protocol.acquire(OF_A[0], b"T", TERMS, now=1000.0, until=1000.1, blocking=True),
    lambda: protocol.acquire(OF_A[0], b"T", TERMS, now=1000.0, until=1000.1, blocking=False),
    lambda: protocol.release(GRANT, deadline=1000.1, valid_until=1005.0),
    lambda: protocol.release_all([GRANT] * 2, deadline=1000.1, valid_until=1005.0),
    lambda: protocol.renew(GRANT, TERMS, deadline=1000.1),
    lambda: outbox.claim(OUTBOX, b"T", TERMS, "id:0", now=1000.0),
    lambda: outbox.start(OUTBOX, b"T", TERMS, "id:0", now=1000.0, claim_terms=TERMS),
    landed,
    lambda: outbox.queued_for(OUTBOX, deadline=1000.1),
    lambda: outbox.course(OUTBOX, "id:0", deadline=1000.1),
]


class Odd(Cluster):
    """Nodes that answer something else than they are asked, as a proxy may, or a server that is no Redis."""

    def perform(self, action):
        if isinstance(action, Send) and tuple(action.commands) != LAYOUT_WANTED:
            self.now += STEP
            return Answer([self.answers[0] for _ in action.commands], self.now - STEP, self.now)
        return super().perform(action)


@pytest.mark.parametrize("flow", FLOWS)
@settings(max_examples=25, deadline=None)
@given(ODD)
@example([])
@example(None)
@example([b"own"])
@example([b"queued", 5, 1, 5])
@example([b"free", 5])
@example([b"settle", b"id:0", b"1", b"message", b"id:1"])
def test_odd_answers_are_errors_of_the_lock(flow, odd):
    cluster = Odd(odd)
    with suppress(LockError):
        cluster.run(exchange.carry(flow(), cluster.routes))


def test_an_odd_answer_is_told():
    cluster = Cluster([[b"HTTP", 400]])
    with pytest.raises(LockUnavailable, match=r"makes no sense: \[b'HTTP', 400\]") as caught:
        cluster.carry(calling(replicas=0))
    assert caught.value.unanswered
    first, second = Cluster([OWN, 5]).carry(Batch([calling(replicas=0), calling(OF_A[1], replicas=0)]))
    assert first.status == b"own"
    assert isinstance(second, LockUnavailable)
