"""Harms a cluster while clients use its locks, and judges what they saw: ``python -m tests.faults``.

Exits with 1 if a promise was broken, or if the controls, which make none, broke none.
"""

import argparse
import json
import pickle
import sys
from pathlib import Path

from tests.faults import namespace
from tests.faults.layouts import LAYOUTS

DOCS = Path(__file__).parent.parent.parent / "docs"


def main():
    arguments = parsed()
    sys.exit(namespace.inside(lambda folder, whole_links: harm(folder, whole_links, arguments)))


def harm(folder, whole_links, arguments):
    """One run and its account; gives the exit code."""
    from tests.faults import checker, claims, flights, latency, run
    from tests.faults.contestants import CONTESTANTS, FLIGHTS
    from tests.faults.kinds import table

    reports = arguments.report or not (arguments.leases_only or arguments.short)
    layout = LAYOUTS[arguments.layout]
    kinds = table.on(layout, arguments.kind)
    outcome = run.run(
        folder,
        layout,
        seconds=arguments.seconds,
        seed=arguments.seed,
        crew=run.crew_on(layout, small=arguments.short),
        kinds=kinds,
        whole_links=whole_links,
        storming=not arguments.leases_only,
        after=latency.measure if layout.shards > 1 and not (arguments.leases_only or arguments.short) else None,
    )
    if arguments.history:
        arguments.history.write_bytes(pickle.dumps(outcome.history))
    verdicts = checker.judge(outcome.history)
    flown = {name: flights.judge(name, each, outcome.history) for name, each in outcome.flown.items()}
    contestants = CONTESTANTS | FLIGHTS
    told = {name: claims.told(contestants[name], verdict) for name, verdict in (verdicts | flown).items()}
    if arguments.verdicts:
        arguments.verdicts.write_text(json.dumps(told))
    if reports:
        write(outcome, verdicts, flown, kinds, arguments)
    complaints = [line for each in told.values() for line in (*each["broken"], *each["missed"])]
    print(*outcome.failures, *outcome.late, *complaints, sep="\n", file=sys.stderr)
    return int(bool(complaints))


def parsed():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--layout", choices=LAYOUTS, default="3+3", help="of the servers (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1200, help="how long faults go on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what is random (default: %(default)s)")
    parser.add_argument("--kind", action="append", help="only kinds with this in their name; may be given repeatedly")
    parser.add_argument("--short", action="store_true", help="with fewer clients, and without measuring latency")
    parser.add_argument(
        "--leases-only", action="store_true", help="without tasks and latency, which want cores of their own"
    )
    parser.add_argument("--verdicts", type=Path, help="write there what was found of each contestant, as JSON")
    parser.add_argument("--history", type=Path, help="write there what happened (pickled), to be looked at later")
    parser.add_argument("--report", action="store_true", help="write docs/faults.md and its picture")
    return parser.parse_args()


def write(outcome, verdicts, flown, kinds, arguments):
    """Prints the account, and makes it a section of the documentation's page if that is asked for."""
    from tests.faults import plot, report
    from tests.faults.contestants import CONTESTANTS

    layout = outcome.layout
    options = f"--layout {layout.name} --seconds {arguments.seconds:g} --seed {arguments.seed}"
    only = " --leases-only" if arguments.leases_only else ""
    command = f"python -m tests.faults --report {options}{only}"
    picture = f"faults-{layout.name.replace('+', '-')}.svg"
    section = "".join(report.section(outcome, verdicts, flown, kinds, command=command, picture=picture))
    print(section)
    if arguments.report:
        page = DOCS / "faults.md"
        page.write_text(report.page(layout, section, page.read_text() if page.exists() else ""))
        labels = {each.name: each.label for each in CONTESTANTS.values()}
        (DOCS / picture).write_text("\n".join(plot.svg(outcome, layout.shards, labels)))


if __name__ == "__main__":
    main()
