"""All kinds, and the rule for each: whether promise 1 is to hold under it. Promise 2 is to hold under every one."""

from tests.faults.kinds import clocks, data, failovers, network, processes, replies, slots

KINDS = (
    processes.PrimaryKilled,
    processes.PrimaryStopped,
    processes.PrimaryStalled,
    processes.ReplicaKilled,
    processes.ReplicaStopped,
    processes.ReplicaBehind,
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
    slots.SlotMoved,
    slots.SlotMigrated,
    replies.RepliesLost,
    replies.RepliesCut,
    replies.RequestsLost,
    replies.RequestsLate,
    replies.RequestsDoubled,
    data.ScriptsFlushed,
    data.ConnectionsKilled,
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
