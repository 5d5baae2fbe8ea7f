"""What each contestant claims, and so what is wrong about its verdict. A control claims to fail."""

# Promise 1 and all that any user of a lock may expect; promise 2; what callers of flights may expect.
PROMISES = {
    1: ("overlaps", "disorder", "overtaken", "hangs", "lost_without_fault", "useless", "errors"),
    2: ("stale", "errors"),
    "answers": ("unanswered", "misled"),
}


def broken(contestant, verdict):
    """The findings against what a contestant promises."""
    kinds = dict.fromkeys(kind for promise in contestant.promises for kind in PROMISES[promise])
    return [f"{contestant.name}: {kind}: {finding}" for kind in kinds for finding in getattr(verdict, kind)]


def missed(contestant, verdict):
    """What a control, which promises nothing, ought to have shown and has not: the faults were too mild."""
    shown = {"overlaps": verdict.overlaps + verdict.overlaps_outside}
    if contestant.kind:
        shown["stale writes"] = verdict.stale
    return (
        [] if contestant.promises else [f"{contestant.name}: no {name}" for name, found in shown.items() if not found]
    )


def told(contestant, verdict):
    """The essence of it, for programs."""
    return {
        "leases": verdict.leases,
        "commits": verdict.commits,
        "overlaps": len(verdict.overlaps) + len(verdict.overlaps_outside),
        "stale": len(verdict.stale),
        "lost": verdict.leases_lost,
        "late": len(verdict.late),
        "broken": broken(contestant, verdict),
        "missed": missed(contestant, verdict),
    }
