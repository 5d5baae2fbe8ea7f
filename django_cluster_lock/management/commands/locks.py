"""``manage.py locks``: see who holds what, free what is stuck, check what is stored.

Exit codes: 0 fine; 1 something was found, or is not as asked for; 2 the arguments or settings are wrong, or Redis
or the database cannot be asked.
"""

import json
import shutil
import sys
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.utils.connection import ConnectionDoesNotExist

from django_cluster_lock import embedded, fences, servers
from django_cluster_lock.conf import DEFAULT_ALIAS
from django_cluster_lock.errors import LockUnavailable, NotFencedOff
from django_cluster_lock.inspection import Locks, locks
from django_cluster_lock.management.tables import duration, table
from django_cluster_lock.printable import escaped
from django_cluster_lock.snapshots import Finding, ForcedRelease, LockSnapshot, Unread

FOUND, UNUSABLE = 1, 2
UNASKED = ConnectionDoesNotExist, DatabaseError, LockUnavailable, embedded.EmbeddedError
OUTCOMES = {
    "released": "released",
    "handed": "released, and handed to the first waiter",
    "left": "left alone: it changed hands or ended meanwhile",
    "free": "nobody holds it",
    "unavailable": "its shard cannot be asked",
    "unfenced": "not released: its holder cannot be fenced off",
}


class Command(BaseCommand):
    """The command. The method of each subcommand returns whether all is fine."""

    help = "Lists, shows, releases and verifies locks, and runs the embedded cluster."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
        everywhere = _everywhere()
        common, which = [everywhere, _alias()], _which()

        list_ = commands.add_parser("list", help="the locks that are held or waited for", parents=[*common, which])
        list_.add_argument(
            "pattern", nargs="?", help="what their names match, as 'invoice:*'; * and ? alone have a meaning"
        )

        show = commands.add_parser("show", help="everything of one lock", parents=common)
        show.add_argument("name")
        show.add_argument("--tag", help="the tag it was made with")

        release = commands.add_parser("release", help="end leases by force", parents=common)
        release.add_argument("names", nargs="*", metavar="name")
        release.add_argument("--tag", help="the tag that they were made with")
        release.add_argument(
            "--pattern", help="instead of names: what the names match, as 'invoice:*'; * and ? alone have a meaning"
        )
        release.add_argument("--dry-run", action="store_true", help="only show what would be released")
        release.add_argument("--noinput", "--no-input", action="store_false", dest="interactive", help="do not ask")

        release.add_argument("--no-fence", action="store_false", dest="fence", help="leave the database alone")

        verify = commands.add_parser("verify", help="look for what should not be in Redis", parents=common)
        verify.add_argument("--repair", action="store_true", help="put right what is safe to")

        commands.add_parser("distribution", help="the spread of the locks over nodes and slots", parents=common)

        prune = commands.add_parser("prune-fences", help="forget fences that are long past", parents=[everywhere])
        prune.add_argument("--older-than", type=float, required=True, metavar="DAYS", help="7 at least")
        prune.add_argument("--database", metavar="ALIAS", help="which entry of DATABASES; by default the routers'")
        prune.add_argument("--dry-run", action="store_true", help="only count them")

        cluster = commands.add_parser("cluster", help="the embedded cluster of this project", parents=[everywhere])
        cluster.add_argument("action", choices=("up", "down", "status"))

    def handle(self, *, command: str, **options: Any) -> None:
        self._json = options["json"]
        try:
            if command == "cluster":
                fine = self.cluster(options["action"])
            elif command == "prune-fences":
                fine = self.prune_fences(options)
            else:
                fine = getattr(self, command)(locks[options["using"]], options)
        except (*UNASKED, ImproperlyConfigured, ValueError) as error:
            raise CommandError(str(error), returncode=UNUSABLE) from error
        if not fine:
            sys.exit(FOUND)

    def list(self, alias: Locks, options: dict[str, Any]) -> bool:
        filters = {name: options[name] for name in ("node", "task", "older_than")}
        found = alias.list(options["pattern"], **filters)
        if self._json:
            self._print_json(asdict(found))
        else:
            self._print_locks(found.locks)
            self.stdout.write(_count(len(found), "lock"))
        return self._warn_of(found.unread)

    def show(self, alias: Locks, options: dict[str, Any]) -> bool:
        lock = alias.show(options["name"], options["tag"])
        if self._json:
            self._print_json({"lock": asdict(lock)})
        else:
            rows = [(name, value) for name, value in _details(lock) if value]
            self._print_table(("Lock", escaped(lock.name)), rows)
            waiters = [
                (place, waiter.token, duration(waiter.alive_for)) for place, waiter in enumerate(lock.waiters, start=1)
            ]
            if waiters:
                self.stdout.write("")
                self._print_table(("Place", "Waiter", "Alive for"), waiters)
        return lock.state != "free"

    def release(self, alias: Locks, options: dict[str, Any]) -> bool:
        names, pattern, dry_run = options["names"], options["pattern"], options["dry_run"]
        if bool(names) == bool(pattern):
            raise CommandError("Name the locks to release, or give a --pattern, one of them.", returncode=UNUSABLE)
        if self._json and options["interactive"] and not dry_run:
            raise CommandError("With --json nobody is asked: add --no-input or --dry-run.", returncode=UNUSABLE)
        complete = True
        if pattern:
            listing = alias.list(pattern)
            complete = self._warn_of(listing.unread)
            shown = [lock for lock in listing if lock.token]
        else:
            shown = [alias.show(name, options["tag"]) for name in dict.fromkeys(names)]
        held = [lock for lock in shown if lock.token]
        if not self._json:
            self._print_locks(held)
        sure = not dry_run and (not held or not options["interactive"] or self._confirmed(len(held)))
        outcomes = [self._outcome(alias, lock, options["fence"]) for lock in shown] if sure else []
        if self._json:
            self._print_json({"dry_run": dry_run, "locks": _dicts(held), "outcomes": _dicts(outcomes)})
        elif dry_run:
            self.stdout.write(f"Would release {_count(len(held), 'lock')}.")
        else:
            for each in outcomes:
                self.stdout.write(f"{escaped(each.name)}: {OUTCOMES[each.outcome]}")
            self.stdout.write(f"Released {_count(sum(map(bool, outcomes)), 'lock')}.")
        if any(each.outcome in {"unavailable", "unfenced"} for each in outcomes):
            sys.exit(UNUSABLE)
        return complete and bool(held) and (dry_run or (bool(outcomes) and all(outcomes)))

    def verify(self, alias: Locks, options: dict[str, Any]) -> bool:
        found = alias.verify(repair=options["repair"])
        left = [finding for finding in found.findings if not finding.repaired]
        if self._json:
            self._print_json(asdict(found))
        else:
            rows = [
                (finding.kind, finding.name or finding.key, finding.node, finding.detail, _done(finding, **options))
                for finding in found.findings
            ]
            if rows:
                self._print_table(("Kind", "Lock or key", "Node", "What", "Repair"), rows)
            examined, findings = _count(found.keys, "key"), _count(len(rows), "finding")
            self.stdout.write(f"{examined} examined, {findings}, {len(rows) - len(left)} repaired")
        return self._warn_of(found.unread) and not left

    def distribution(self, alias: Locks, _: dict[str, Any]) -> bool:
        found = alias.distribution()
        if self._json:
            self._print_json(asdict(found))
        else:
            nodes = [(share.node, share.slots, share.locks, share.waiters) for share in found.nodes]
            self._print_table(("Node", "Slots", "Locks", "Waiters"), nodes)
            self.stdout.write("")
            if found.slots:
                slots = [(share.slot, share.node, share.locks, share.waiters) for share in found.slots]
                self._print_table(("Fullest slots", "Node", "Locks", "Waiters"), slots)
                self.stdout.write("")
            self.stdout.write(f"{_count(found.locks, 'lock')}, {_count(found.waiters, 'waiter')}, skew {found.skew}")
        for warning in found.warnings:
            self._warn(warning)
        return self._warn_of(found.unread) and not found.warnings

    def prune_fences(self, options: dict[str, Any]) -> bool:
        fences.require()
        from django_cluster_lock.fences import rows

        using, dry_run = options["database"] or rows.database(), options["dry_run"]
        pruned = rows.prune(options["older_than"], using, dry_run=dry_run)
        if self._json:
            self._print_json({"dry_run": dry_run, "database": using, "pruned": pruned})
        else:
            self.stdout.write(f"{'Would forget' if dry_run else 'Forgot'} {_count(pruned, 'fence')}.")
        return True

    def cluster(self, action: str) -> bool:
        if action == "up":
            if not servers.embedded_allowed():
                raise CommandError(
                    "The embedded cluster is for development and tests. Turn DEBUG on, or set CLUSTER_LOCK_EMBEDDED=1 "
                    "in the environment if losing all locks with this machine is what you want.",
                    returncode=UNUSABLE,
                )
            embedded.up()
        if action == "down":
            stopped = embedded.down()
            if self._json:
                self._print_json({"stopped": stopped})
            else:
                self.stdout.write("Stopped." if stopped else "It was not running.")
            return True
        status = embedded.status()
        if self._json:
            self._print_json(_status(status))
        elif status:
            nodes = [(f"{embedded.HOST}:{node.port}", node.pid, node.role or "no answer") for node in status.nodes]
            self._print_table(("Node", "Process", "Role"), nodes)
            self.stdout.write(f"Its state and logs are in {status.cluster.directory}")
        else:
            self.stdout.write("It is not running; start it with 'manage.py locks cluster up'.")
        return bool(status and status.ok)

    def _outcome(self, alias: Locks, lock: LockSnapshot, fence: bool) -> ForcedRelease:
        if not lock.token:
            return ForcedRelease(lock.name, lock.tag, "", "free")
        try:
            return alias.release(lock.name, token=lock.token, tag=lock.tag, fence=fence)
        except (LockUnavailable, NotFencedOff) as error:
            self._warn(str(error))
            outcome = "unfenced" if isinstance(error, NotFencedOff) else "unavailable"
            return ForcedRelease(lock.name, lock.tag, lock.token, outcome)

    def _confirmed(self, count: int) -> bool:
        try:
            return input(f"Release {_count(count, 'lock')}? [y/N] ").strip().lower() in {"y", "yes"}
        except EOFError:
            raise CommandError(
                "Nobody is there to confirm: add --no-input, or --dry-run to only look.", returncode=UNUSABLE
            ) from None

    def _print_locks(self, found: Iterable[LockSnapshot]) -> None:
        rows = [
            (
                f"{lock.name} (tag {lock.tag})" if lock.tag else lock.name,
                lock.state,
                lock.token and duration(lock.age),
                lock.token and duration(lock.lease_left),
                len(lock.waiters) + lock.parked,
                lock.fence,
                lock.node,
                lock.owner,
            )
            for lock in found
        ]
        if rows:
            self._print_table(("Lock", "State", "Age", "Left", "Waiters", "Fence", "Node", "Holder"), rows)

    def _print_table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        width = shutil.get_terminal_size().columns if self.stdout.isatty() else None
        head, *lines = table(header, rows, width)
        self.stdout.write(self.style.MIGRATE_HEADING(head))
        for line in lines:
            self.stdout.write(line)

    def _print_json(self, content: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(content))

    def _warn(self, warning: str) -> None:
        self.stderr.write(self.style.WARNING(f"Warning: {escaped(warning)}"))

    def _warn_of(self, unread: Iterable[Unread]) -> bool:
        """Whether there was nothing to warn of."""
        complete = True
        for part in unread:
            slots = ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in part.slots)
            self._warn(f"slots {slots} could not be read: {part.reason}")
            complete = False
        return complete


def _everywhere() -> CommandParser:
    """What every subcommand takes: Django's own options too, which would else have to stand before its name."""
    parser = CommandParser(add_help=False, argument_default=SUPPRESS)
    for option in ("--settings", "--pythonpath"):
        parser.add_argument(option, help=SUPPRESS)
    for flag in ("--traceback", "--no-color", "--force-color"):
        parser.add_argument(flag, action="store_true", help=SUPPRESS)
    parser.add_argument("-v", "--verbosity", type=int, choices=range(4), help=SUPPRESS)
    parser.add_argument("--json", action="store_true", default=False, help="print JSON, with stable keys")
    return parser


def _alias() -> CommandParser:
    parser = CommandParser(add_help=False)
    parser.add_argument("--using", default=DEFAULT_ALIAS, metavar="ALIAS", help="which entry of CLUSTER_LOCKS")
    return parser


def _which() -> CommandParser:
    parser = CommandParser(add_help=False)
    parser.add_argument("--node", metavar="HOST:PORT", help="those on this primary")
    parser.add_argument("--task", metavar="PATTERN", help="those held by Celery tasks whose names match")
    parser.add_argument("--older-than", type=_seconds, metavar="SECONDS", help="those held for so long at least")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds from 0 on")
    return seconds


def _details(lock: LockSnapshot) -> list[tuple[str, object]]:
    return [
        ("Tag", lock.tag),
        ("State", lock.state),
        ("Holder", lock.owner),
        ("Age", lock.token and duration(lock.age)),
        ("Lease left", lock.token and duration(lock.lease_left)),
        ("Token", lock.token),
        ("Fence", lock.fence),
        ("Slot", f"{lock.slot} on {lock.node}"),
        ("Waiters", str(len(lock.waiters))),
        ("Parked", str(lock.parked) if lock.parked else ""),
    ]


def _done(finding: Finding, *, repair: bool, **_: Any) -> str:
    if not finding.repair:
        return "none by itself"
    if finding.repaired:
        return f"done: {finding.repair}"
    return "not done" if repair else f"--repair would {finding.repair}"


def _status(status: embedded.Status | None) -> dict[str, Any]:
    if status is None:
        return {"running": False, "ok": False, "directory": None, "nodes": []}
    directory = str(status.cluster.directory)
    return {"running": True, "ok": status.ok, "directory": directory, "nodes": _dicts(status.nodes)}


def _dicts(objects: Iterable[Any]) -> list[dict[str, Any]]:
    return [asdict(each) for each in objects]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
