"""Ways to count and to write wrongly, each of which the search has to notice: so it is worth something."""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from unittest import mock

from django_cluster_lock.connections import topology
from django_cluster_lock.connections.membership import DOWN
from tests.model import twin
from tests.model.world import LEASE, Kind

THREE_NODES = Kind(faults=3, mishaps=0, times=0)
DETACHED = Kind(2, faults=0, mishaps=1, times=0)


@dataclass(frozen=True)
class Control:
    """A way to go wrong.

    Args:
        changed: returns a context in which the package has it.
        scripts: those of the lock in Python, some of them changed.
        kind: the shard that shows it.
        keeps: it takes a renewal or a release to show it.
        detaches: it takes a lease that is detached and attached.
        tries: leases that each client has to try for.
        promises: what is watched.
        steps: the events of the shortest way to break it.
        steps_of_walks: how many steps walks may take to break it; 0 where that takes too many for the suite.
    """

    changed: object = nullcontext
    scripts: dict = field(default_factory=lambda: twin.SCRIPTS)
    kind: Kind = THREE_NODES
    keeps: bool = False
    detaches: bool = False
    tries: int = 1
    promises: tuple = ("exclusion",)
    steps: int = 7
    steps_of_walks: int = 1000


def counting(keep):
    """Count only some of a shard's members: those for which `keep` holds, of a primary's id and a member's line."""
    counted = topology.members_by_primary

    def members(*args, **kwargs):
        groups = counted(*args, **kwargs)
        return {primary: tuple(line for line in group if keep(primary, line)) for primary, group in groups.items()}

    return lambda: mock.patch.object(topology, "members_by_primary", members)


@contextmanager
def acknowledgements_of_anybody():
    """Take the number that WAIT gives for the members'."""
    with mock.patch.object(topology.Topology, "recognizes", return_value=True):
        yield


def anybody_releases(data, token, mark):
    """Release whatever lease there is."""
    return twin.release(data, data.token if data else token, mark)


def a_renewal_makes_a_lease(data, token, mark):
    """Renew a lease of which nothing is known any more."""
    if data is not None:
        return twin.renew(data, token, mark)
    (_, fence), made = twin.acquire(data, token, mark)
    return (b"ok", fence), made


def an_attach_keeps_the_token(data, token, old):
    """Attach a lease as it is, as the first release did: with its token and its fence."""
    told, _ = twin.attach(data, token, old)
    return ((b"own", data.fence), data._replace(left=LEASE)) if told[0] == b"own" else (told, data)


def an_attach_asks_for_no_token(data, token, old):
    """Attach whatever lease there is."""
    return twin.attach(data, token, data.token if data else old)


def an_attach_keeps_the_fence(data, token, old):
    """Give an attached lease a new token alone."""
    told, after = twin.attach(data, token, old)
    return ((b"own", data.fence), after._replace(fence=data.fence)) if told[0] == b"own" else (told, after)


CONTROLS = {
    # What the first release did: the replicas that follow the primary, as that primary knows.
    "only its own replicas count": Control(counting(lambda primary, line: line.follows == primary), steps_of_walks=0),
    "only replicas that are up count": Control(counting(lambda primary, line: not line.flags & DOWN), steps_of_walks=0),
    "former primaries do not count": Control(
        counting(lambda primary, line: not line.is_primary),
        kind=Kind(2, faults=3, mishaps=0, times=0),
        steps=10,
        steps_of_walks=0,
    ),
    "former primaries that are down do not count": Control(
        counting(lambda primary, line: not (line.is_primary and line.flags & DOWN)),
        kind=Kind(2, faults=3, mishaps=0, times=0),
        steps=11,
        steps_of_walks=0,
    ),
    "anybody's acknowledgement counts": Control(
        acknowledgements_of_anybody, kind=Kind(2, 1, faults=2, mishaps=0, times=0), steps=6, steps_of_walks=0
    ),
    "anybody releases": Control(
        scripts=twin.SCRIPTS | {"release": anybody_releases},
        kind=Kind(2, faults=0, mishaps=1, times=0),
        keeps=True,
        tries=2,
        steps=4,
    ),
    "a renewal makes a lease": Control(
        scripts=twin.SCRIPTS | {"renew": a_renewal_makes_a_lease},
        kind=Kind(2, faults=0, mishaps=1, times=4),
        keeps=True,
        promises=("strangers",),
        steps=6,
    ),
    "an attach keeps the token": Control(
        scripts=twin.SCRIPTS | {"attach": an_attach_keeps_the_token}, kind=DETACHED, detaches=True, tries=2, steps=4
    ),
    "an attach asks for no token": Control(
        scripts=twin.SCRIPTS | {"attach": an_attach_asks_for_no_token}, kind=DETACHED, detaches=True, tries=2, steps=4
    ),
    "an attach keeps the fence": Control(
        scripts=twin.SCRIPTS | {"attach": an_attach_keeps_the_fence},
        kind=DETACHED,
        detaches=True,
        promises=("fences",),
        steps=3,
    ),
}
