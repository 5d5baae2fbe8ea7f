"""Harms a cluster while clients use its locks, and judges what they saw: ``python -m tests.faults``.

Exits with 1 if a promise was broken, or if the controls, which make none, broke none.
"""

import argparse
import json
import sys
from pathlib import Path

from tests.faults import namespace

DOCS = Path(__file__).parent.parent.parent / "docs"
PICTURE = "faults.svg"


def main():
    arguments = parsed()
    sys.exit(namespace.inside(lambda folder, whole_links: harm(folder, whole_links, arguments)))


def harm(folder, whole_links, arguments):
    """One run and its account; gives the exit code."""
    from tests.faults import checker, claims, flights, latency, run
    from tests.faults.contestants import CONTESTANTS, FLIGHTS
    from tests.faults.kinds.table import KINDS

    kinds = [kind for kind in KINDS if any(word in kind.name for word in arguments.kind or [""])]
    outcome = run.run(
        folder,
        seconds=arguments.seconds,
        seed=arguments.seed,
        crew=run.SMALL_CREW if arguments.short else run.CREW,
        kinds=kinds,
        whole_links=whole_links,
        storming=not arguments.leases_only,
        after=None if arguments.short else latency.measure,
    )
    verdicts = checker.judge(outcome.history)
    flown = {name: flights.judge(name, each, outcome.history) for name, each in outcome.flown.items()}
    contestants = CONTESTANTS | FLIGHTS
    told = {name: claims.told(contestants[name], verdict) for name, verdict in (verdicts | flown).items()}
    if arguments.verdicts:
        arguments.verdicts.write_text(json.dumps(told))
    if not arguments.leases_only:
        write(outcome, verdicts, flown, kinds, arguments)
    complaints = [line for each in told.values() for line in (*each["broken"], *each["missed"])]
    print(*outcome.failures, *outcome.late, *complaints, sep="\n", file=sys.stderr)
    return int(bool(complaints))


def parsed():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200, help="how long faults go on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what is random (default: %(default)s)")
    parser.add_argument("--kind", action="append", help="only kinds with this in their name; may be given repeatedly")
    parser.add_argument("--short", action="store_true", help="with fewer clients, and without measuring latency")
    parser.add_argument(
        "--leases-only", action="store_true", help="without tasks, which want cores of their own; prints no report"
    )
    parser.add_argument("--verdicts", type=Path, help="write there what was found of each contestant, as JSON")
    parser.add_argument("--report", action="store_true", help="write docs/faults.md and its picture")
    return parser.parse_args()


def write(outcome, verdicts, flown, kinds, arguments):
    """Prints the report, and makes it a page of the documentation if that is asked for."""
    from tests.faults import plot, report
    from tests.faults.contestants import CONTESTANTS
    from tests.faults.nodes import SHARDS

    command = f"python -m tests.faults --report --seconds {arguments.seconds:g} --seed {arguments.seed}"
    page = "".join(report.page(outcome, verdicts, flown, kinds, command=command, seed=arguments.seed, picture=PICTURE))
    print(page)
    if arguments.report:
        (DOCS / "faults.md").write_text(page)
        labels = {each.name: each.label for each in CONTESTANTS.values()}
        (DOCS / PICTURE).write_text("\n".join(plot.svg(outcome, SHARDS, labels)))


if __name__ == "__main__":
    main()
