"""The reference tells all signals, and no other."""

import re
from pathlib import Path

from django.dispatch import Signal

from django_cluster_lock import signals


def test_every_signal_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "signals.md").read_text(encoding="utf-8")
    known = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == known
