"""Reading all over a cluster, with answers made by hand: redirections, silence, refusals."""

from collections import Counter

import pytest

from django_cluster_lock.actions import Answer, NoAnswer, Refusal, SendAll
from django_cluster_lock.connections.topology import Topology
from django_cluster_lock.inspection import reading
from django_cluster_lock.inspection.reading import ask, ranges, record_of

A, B, C = ("a", 1), ("b", 2), ("c", 3)
QUESTIONS = [(slot, (b"GET", b"%d" % slot)) for slot in range(6)]


@pytest.fixture
def topology():
    known = Topology([A])
    for slot in range(6):
        known.moved(slot, (A, B, C)[slot // 2])
    return known


def answered(flow, answer):
    """Runs a flow whose commands ``answer(node, command, asking)`` answers, and counts the writes to each node."""
    writes = Counter()
    outcomes = None
    while True:
        try:
            action = flow.send(outcomes)
        except StopIteration as stop:
            return stop.value, writes
        assert isinstance(action, SendAll)
        outcomes = []
        for send in action.sends:
            writes[send.node] += 1
            values, asking = [], False
            for command in send.commands:
                if command == (b"TIME",):
                    values.append([b"1700000000", b"123456"])
                else:
                    values.append(b"OK" if command == (b"ASKING",) else answer(send.node, command, asking))
                asking = command == (b"ASKING",)
            failure = next((value for value in values if isinstance(value, NoAnswer)), None)
            outcomes.append(failure or Answer(values, 0.0, 0.0))


def test_each_node_is_asked_for_its_slots_and_its_clock(topology):
    told, writes = answered(ask(QUESTIONS, topology), lambda node, command, asking: (node, command[1]))
    assert [each.value for each in told] == [(node, b"%d" % slot) for slot, node in enumerate((A, A, B, B, C, C))]
    assert {each.now for each in told} == {1_700_000_000_123}
    assert [each.node for each in told[::2]] == ["a:1", "b:2", "c:3"]
    assert writes == {A: 1, B: 1, C: 1}


def test_many_questions_go_out_in_chunks(topology, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 2)
    questions = [QUESTIONS[0]] * 5 + [QUESTIONS[5]]
    told, writes = answered(ask(questions, topology), lambda node, command, asking: command[1])
    assert [each.value for each in told] == [b"0"] * 5 + [b"5"]
    assert writes == {A: 3, C: 1}


def test_moved_is_followed_and_remembered(topology):
    def answer(node, command, asking):
        return Refusal("MOVED 1 c:3") if (node, command[1]) == (A, b"1") else node

    told, writes = answered(ask(QUESTIONS, topology), answer)
    assert [each.value for each in told] == [A, C, B, B, C, C]
    assert topology.primary(1) == C
    assert writes[C] == 2


def test_ask_is_followed_and_not_remembered(topology):
    def answer(node, command, asking):
        if (node, command[1]) == (A, b"1"):
            return Refusal("ASK 1 c:3")
        return node, asking

    told, _ = answered(ask(QUESTIONS, topology), answer)
    assert told[1].value == (C, True)
    assert told[0].value == (A, False)
    assert topology.primary(1) == A


def test_a_circle_of_redirections_ends(topology):
    other = {A: "b:2", B: "a:1", C: "a:1"}
    told, writes = answered(ask(QUESTIONS, topology), lambda node, *_: Refusal(f"MOVED 0 {other[node]}"))
    assert all(each.failed for each in told)
    assert sum(writes.values()) <= 9


def test_a_silent_node_hides_nothing_of_the_others(topology, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 1)
    told, writes = answered(ask(QUESTIONS, topology), lambda node, *_: NoAnswer("silent", 0.0) if node == B else node)
    assert [each.value for each in told if not each.failed] == [A, A, C, C]
    assert [each.reason for each in told if each.failed] == ["silent"] * 2
    assert writes[B] == 1


def test_a_slot_that_nobody_serves(topology):
    told, _ = answered(ask([QUESTIONS[0], (99, (b"GET", b"x"))], topology), lambda node, *_: node)
    assert [each.failed for each in told] == [False, True]
    assert told[1].reason == "no node serves it"


def test_refusals_of_single_keys_stand_for_themselves(topology):
    told, _ = answered(
        ask(QUESTIONS, topology), lambda node, command, _: Refusal("NOPERM no") if command[1] == b"3" else node
    )
    assert [each.reason for each in told if each.failed] == ["NOPERM no"]


@pytest.mark.parametrize(
    "fields",
    [
        [b"colour", b"red"],
        [b"f", b"one"],
        [b"f", b"1", b"d", b"soon"],
        [b"a", b"1", b"qh", b"0", b"q0", b"token", b"wtoken", b"0:soon"],
    ],
)
def test_a_hash_that_is_no_record(fields):
    assert record_of(fields) is None


def test_a_record_with_fields_of_a_later_version_is_read():
    assert record_of([b"f", b"7", b"t", b"token", b"new", b"field"]).fence == 7


def test_a_queue_is_read_whatever_its_bounds_say():
    record = record_of([b"a", b"9", b"qh", b"0", b"qt", b"999999999999", b"q10", b"b", b"q9", b"a", b"wa", b"9:50"])
    assert record.queue == (("a", 50), ("b", 0))
    assert record.waiting(40) == [("a", 50)]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([], ()), ([5], ((5, 5),)), ([0, 1, 2, 4], ((0, 2), (4, 4))), (range(16384), ((0, 16383),))],
)
def test_ranges(numbers, expected):
    assert ranges(numbers) == expected
