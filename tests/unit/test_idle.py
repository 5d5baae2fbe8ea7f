"""Which of the connections that nobody uses is taken, and which is closed."""

import pytest

from django_cluster_lock.connections.idle import LIFE, Idle

NODE, OTHER = ("a", 1), ("b", 2)


class Wire:
    used_at = 0.0
    closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def wires():
    return [Wire() for _ in range(3)]


def test_the_one_used_last_is_taken_first(wires):
    idle = Idle()
    for now, wire in enumerate(wires):
        idle.give(NODE, wire, now)
    assert idle.take(OTHER) is None
    assert [idle.take(NODE) for _ in range(4)] == [*reversed(wires), None]


def test_what_a_crowd_left_over_is_closed_by_and_by(wires):
    idle = Idle()
    for wire in wires:
        idle.give(NODE, wire, 0)
    for now in (LIFE / 2, LIFE, LIFE + 1, LIFE + 2, LIFE * 3):
        idle.give(NODE, idle.take(NODE), now)
    assert [wire.closed for wire in wires] == [True, True, False]
    assert idle.take(NODE) is wires[2]


def test_those_to_a_node_are_dropped_together(wires):
    idle = Idle()
    for node, wire in zip((NODE, NODE, OTHER), wires, strict=True):
        idle.give(node, wire, 0)
    assert idle.drop(NODE) == wires[:2]
    assert idle.drop(NODE) == []
    assert idle.drop_all() == wires[2:]
    assert idle.take(OTHER) is None
