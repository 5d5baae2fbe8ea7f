"""The layouts of servers whose locks are put to the test."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How many servers there are, and how clients reach them.

    Attributes:
        shards, replicas: how many shards there are, and how many replicas each of them has.
        cluster: whether they form a cluster; else one name leads to the primary.
        words: what the report calls it.
    """

    name: str
    shards: int
    replicas: int
    cluster: bool
    words: str


ONE = Layout("3+3", 3, 1, cluster=True, words="A cluster of three primaries and three replicas")
TWO = Layout("3+6", 3, 2, cluster=True, words="A cluster of three primaries and six replicas, two a shard")
PAIR = Layout("pair", 1, 1, cluster=False, words="A standalone primary and its replica behind one name")
LAYOUTS = {layout.name: layout for layout in (ONE, TWO, PAIR)}
CLUSTERS = (ONE, TWO)
