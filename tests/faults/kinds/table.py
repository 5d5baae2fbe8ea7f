"""All kinds, and the rule for each: whether promise 1 is to hold under it. Promise 2 is to hold under every one."""

from tests.faults.kinds import clocks, data, failovers, network, processes, replicas, replies, slots

KINDS = (
    processes.PrimaryKilled,
    processes.PrimaryStopped,
    processes.PrimaryStalled,
    processes.PrimaryHangs,
    processes.ShardHangs,
    processes.ReplicaKilled,
    processes.ReplicaStopped,
    processes.ReplicaBehind,
    replicas.OneAfterTheOther,
    replicas.LastOneBehind,
    replicas.BehindThenBack,
    replicas.Strangers,
    replicas.ReplicaAdded,
    replicas.ForgottenReplica,
    processes.HolderKilled,
    processes.HolderStopped,
    processes.WaiterKilled,
    processes.WaiterStopped,
    network.Partition,
    network.PrimaryCut,
    network.ReplicaCut,
    network.CutThenKilled,
    network.ClientsCut,
    failovers.Failover,
    failovers.Forced,
    failovers.Takeover,
    failovers.TwoFailovers,
    failovers.RolesSwapped,
    failovers.SplitBrain,
    slots.SlotMoved,
    slots.SlotMigrated,
    replies.RepliesLost,
    replies.RepliesCut,
    replies.RequestsLost,
    replies.RequestsLate,
    replies.RequestsDoubled,
    replies.NodeSlow,
    data.ScriptsFlushed,
    data.ConnectionsKilled,
    data.Exhausted,
    data.Busy,
    data.Full,
    clocks.ClockStepped,
    # Outside of what promise 1 assumes:
    clocks.ClockStrayed,
    failovers.LaggingTakeover,
    processes.PrimaryEmptied,
    data.Evicted,
    data.Flushed,
)
assert [kind.holds for kind in KINDS] == sorted((kind.holds for kind in KINDS), reverse=True)


def on(layout, words=()):
    """The kinds that can be done there, of those that have one of the words in their name."""
    return [kind for kind in KINDS if layout in kind.layouts and any(word in kind.name for word in words or [""])]
