"""A run as a picture: the faults of each shard over time, and how many leases were granted meanwhile."""

from collections import Counter
from html import escape

WIDTH, LANE, CHART, MARGIN = 1200, 22, 150, 70
COLOURS = {True: "#4477aa", False: "#ee8866"}
LINES = {"auto": "#228833", "redis-py": "#aa3377"}


def svg(run, shards, labels):
    """The picture, in which the mouse shows what each fault is."""
    length = run.history.end - run.began
    scale = (WIDTH - MARGIN - 10) / length

    def x(at):
        return MARGIN + (min(at, run.history.end) - run.began) * scale

    height = shards * LANE + CHART + 70
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>'
    )
    for shard in range(shards):
        yield f'<text x="4" y="{shard * LANE + 24}">shard {shard + 1}</text>'
    for happening in run.history.happenings:
        span = max(2, x(happening.over) - x(happening.injected))
        yield (
            f'<rect x="{x(happening.injected):.1f}" y="{happening.shard * LANE + 10}" width="{span:.1f}" '
            f'height="{LANE - 6}" fill="{COLOURS[happening.holds]}" stroke="white" stroke-width="0.5">'
            f"<title>{escape(happening.kind)}</title></rect>"
        )
    yield from chart(run, labels, x, shards * LANE + 25)
    yield "</svg>\n"


def chart(run, labels, x, top):
    """Grants per second over time, one line for each of the contestants."""
    step = max(1, round((run.history.end - run.began) / 400))
    counts = {name: Counter() for name in LINES}
    for attempt in run.history.attempts:
        if attempt.outcome == "granted" and attempt.contestant in counts:
            counts[attempt.contestant][int((attempt.returned - run.began) / step)] += 1 / step
    highest = max((value for count in counts.values() for value in count.values()), default=1)
    bottom = top + CHART
    yield f'<text x="4" y="{top + 10}">{highest:.0f}</text><text x="4" y="{bottom}">0</text>'
    yield f'<text x="4" y="{top + CHART / 2}">grants/s</text>'
    yield f'<path d="M{MARGIN} {top}V{bottom}H{WIDTH - 10}" fill="none" stroke="#999"/>'
    steps = int((run.history.end - run.began) / step)
    for number, (name, colour) in enumerate(LINES.items()):
        points = (
            f"{x(run.began + (place + 0.5) * step):.1f},{bottom - CHART * counts[name][place] / highest:.1f}"
            for place in range(steps)
        )
        yield f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.2"/>'
        yield f'<text x="{MARGIN + 10 + 260 * number}" y="{bottom + 34}" fill="{colour}">{escape(labels[name])}</text>'
    for minute in range(int((run.history.end - run.began) // 60) + 1):
        yield f'<text x="{x(run.began + 60 * minute):.0f}" y="{bottom + 15}">{minute} min</text>'
    for number, (holds, words) in enumerate(((True, "promise 1 is to hold"), (False, "outside of promise 1"))):
        left = MARGIN + 560 + 180 * number
        yield f'<rect x="{left}" y="{bottom + 24}" width="12" height="12" fill="{COLOURS[holds]}"/>'
        yield f'<text x="{left + 18}" y="{bottom + 34}">{words}</text>'
