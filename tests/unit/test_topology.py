"""What is learnt from a server's answers, without a server."""

import pytest

from django_cluster_lock.actions import Refusal
from django_cluster_lock.connections.topology import Topology
from django_cluster_lock.names import SLOTS

A, B, C = ("10.0.0.1", 7000), ("10.0.0.2", 7000), ("10.0.0.3", 7000)
NODES = b"""\
a 10.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-8191
b 10.0.0.2:7000@17000,b.example master - 0 0 2 connected 8192-16383
c 10.0.0.3:7000@17000 slave a 0 0 1 connected
d 10.0.0.4:7000@17000 slave,fail a 0 0 1 disconnected
e 10.0.0.5:7000@17000 master,fail - 0 0 1 disconnected
"""
CLUSTER_IS_OFF = Refusal("ERR This instance has cluster support disabled")
OLD = Refusal("ERR Unknown subcommand or wrong number of arguments for 'SHARDS'.")  # Redis 6.2
INFO = b"# Replication\r\nrole:master\r\nconnected_slaves:2\r\n"


def slots(*ranges):
    return [[start, end, [host, port, node_id, []]] for start, end, host, port, node_id in ranges]


TWO = slots((0, 8191, b"10.0.0.1", 7000, b"a"), (8192, 16383, b"10.0.0.2", 7000, b"b"))


def test_nothing_is_known_at_first():
    topology = Topology([A, B])
    assert topology.primary(0) is None
    assert topology.required(A) is None
    assert set(topology.candidates()) == {A, B}


def test_primaries_and_all_their_replicas_failed_ones_too():
    topology = Topology([C])
    assert topology.learn([TWO, NODES, OLD, INFO], C)
    assert topology.is_cluster
    assert topology.primaries() == [A, B]
    assert [topology.primary(slot) for slot in (0, 8191, 8192, SLOTS - 1)] == [A, A, B, B]
    assert [len(topology.members(node)) for node in (A, B)] == [2, 1]
    assert set(topology.candidates()) == {A, B, C}


def test_slots_without_a_primary_have_none():
    topology = Topology([A])
    topology.learn([TWO, NODES, OLD, INFO], A)
    assert topology.learn([TWO[:1], NODES, OLD, INFO], A)
    assert topology.primary(8192) is None


def shards_with(*endpoints):
    """An answer to CLUSTER SHARDS of one shard: for each node its id and where clients are to ask it."""
    return [[b"slots", [0, 16383], b"nodes", [[b"id", node, b"port", 7000, b"endpoint", at] for node, at in endpoints]]]


def test_members_are_asked_where_clients_are_to_ask_them():
    topology = Topology([A])
    topology.learn([TWO, NODES, shards_with((b"a", b"a.example"), (b"c", b"c.example"), (b"d", b"?")), INFO], A)
    assert topology.endpoint(C) == ("c.example", 7000)
    assert topology.endpoint(("10.0.0.4", 7000)) == ("10.0.0.4", 7000)
    assert C in [member.node for member in topology.members(A)], "it is the same member, whatever its name"


def test_members_with_one_name_are_asked_by_their_addresses():
    """One of them would be asked twice, and count for two."""
    topology = Topology([A])
    topology.learn([TWO, NODES, shards_with((b"c", b"redis"), (b"d", b"redis"), (b"b", b"10.0.0.5")), INFO], A)
    assert topology.endpoint(C) == C
    assert topology.endpoint(("10.0.0.4", 7000)) == ("10.0.0.4", 7000)
    assert topology.endpoint(B) == B, "another node is there"


@pytest.mark.parametrize("host", [b"", b"?", None])
def test_a_node_that_does_not_tell_its_host_is_where_it_was_asked(host):
    topology = Topology([A])
    assert topology.learn([slots((0, 16383, host, 7001, b"a")), NODES, OLD, INFO], A)
    assert topology.primary(5) == ("10.0.0.1", 7001)


def test_remap_is_for_what_nodes_tell_of_each_other():
    topology = Topology([A], remap=lambda node: ("nat.example", node[1] + 1))
    assert topology.candidates() == [A]
    topology.learn([TWO, NODES, OLD, INFO], A)
    assert topology.primaries() == [("nat.example", 7001)]
    assert topology.redirected("10.0.0.9:8000", A) == ("nat.example", 8001)


@pytest.mark.parametrize(
    ("to", "node"),
    [("10.0.0.9:8000", ("10.0.0.9", 8000)), (":8000", ("10.0.0.1", 8000)), ("[fe80::1]:8000", ("fe80::1", 8000))],
)
def test_redirection(to, node):
    assert Topology([A]).redirected(to, A) == node


@pytest.mark.parametrize("to", ["", "x", "foo", "10.0.0.9:"])
def test_a_redirection_to_nowhere(to):
    assert Topology([A]).redirected(to, A) == A


def test_a_redirection_is_remembered():
    topology = Topology([A])
    topology.learn([TWO, NODES, OLD, INFO], A)
    topology.moved(0, B)
    assert [topology.primary(slot) for slot in (0, 1)] == [B, A]


def test_who_did_not_answer_is_asked_last():
    topology = Topology([A, B, C])
    topology.suspect(A)
    topology.suspect(A)
    topology.suspect(C)
    assert topology.candidates() == [B, C, A]
    topology.learn([TWO, NODES, OLD, INFO], A)
    assert topology.candidates()[-1] == C


def test_a_server_that_is_no_cluster_serves_all_slots():
    topology = Topology([A])
    assert topology.learn([CLUSTER_IS_OFF, CLUSTER_IS_OFF, CLUSTER_IS_OFF, INFO], A)
    assert not topology.is_cluster
    assert topology.primaries() == [A]
    assert topology.required(A) == 2


@pytest.mark.parametrize(
    ("refusal", "info"),
    [
        ("ERR Cluster is disabled. Enabled via passing --cluster_mode=emulated|yes", b""),
        ("ERR unknown command `CLUSTER`, with args beginning with: `SLOTS`, ", b""),
        ("ERR unknown command 'CLUSTER', with args beginning with: 'SLOTS' ", b"# Replication"),
        ("NOPERM no permissions to run the 'cluster|slots' command", b"# Cluster\r\ncluster_enabled:0\r\n"),
        ("ERR command is not allowed", b"cluster_enabled:0\r\n"),
    ],
)
def test_how_servers_say_that_they_are_no_cluster(refusal, info):
    topology = Topology([A])
    assert topology.learn([Refusal(refusal)] * 3 + [info], A)
    assert not topology.is_cluster
    assert topology.required(A) == 0


def test_several_servers_that_are_no_cluster_are_refused():
    topology = Topology([A, B])
    assert not topology.learn([CLUSTER_IS_OFF, CLUSTER_IS_OFF, CLUSTER_IS_OFF, INFO], A)
    assert topology.refused == "10.0.0.1:7000 is in no cluster: of such servers, LOCATION may name one alone"
    assert topology.primary(0) is None
    assert topology.learn([TWO, NODES, OLD, INFO], B)
    assert topology.refused == ""


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ([Refusal("NOPERM no permissions"), NODES, OLD, INFO], "NOPERM no permissions"),
        ([Refusal("LOADING the dataset"), NODES, OLD, INFO], ""),
        ([[], NODES, OLD, INFO], ""),
        ([TWO, Refusal("NOPERM no permissions"), OLD, INFO], "NOPERM no permissions"),
        ([CLUSTER_IS_OFF, CLUSTER_IS_OFF, CLUSTER_IS_OFF, Refusal("NOPERM no permissions")], "NOPERM no permissions"),
        ([CLUSTER_IS_OFF, CLUSTER_IS_OFF, CLUSTER_IS_OFF, b"connected_slaves:many"], ""),
        ([CLUSTER_IS_OFF, CLUSTER_IS_OFF, CLUSTER_IS_OFF, None], ""),
        ([Refusal("NOPERM no permissions"), OLD, OLD, b"cluster_enabled:1"], "NOPERM no permissions"),
        ([slots((0, 16383, b"10.0.0.1", 7000, b"unlisted")), NODES, OLD, INFO], ""),
        ([slots((0, 16384, b"10.0.0.1", 7000, b"a")), NODES, OLD, INFO], ""),
        ([[1], NODES, OLD, INFO], ""),
        ([[[0, 5]], NODES, OLD, INFO], ""),
        ([TWO, b"garbage", OLD, INFO], ""),
    ],
)
def test_an_answer_that_tells_nothing_leaves_what_is_known(values, refused):
    topology = Topology([A])
    topology.learn([TWO, NODES, OLD, INFO], A)
    assert not topology.learn(values, B)
    assert topology.primaries() == [A, B]
    assert topology.refused == refused


def test_as_many_are_required_as_are_recognized(monkeypatch):
    """At every moment, since other threads ask while one learns."""
    topology = Topology([A])
    topology.learn([TWO, NODES, OLD, INFO], A)
    replace, seen = Topology._replace_members, []

    def replace_and_look(self, *args):
        replace(self, *args)
        seen.append((self.required(A), len(self.members(A))))

    monkeypatch.setattr(Topology, "_replace_members", replace_and_look)
    one_more = NODES + b"f 10.0.0.7:7000@17000 slave a 0 0 3 connected\n"
    assert topology.learn([TWO, one_more, OLD, INFO], A)
    assert seen == [(3, 3)]
