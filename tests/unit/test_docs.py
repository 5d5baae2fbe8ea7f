"""What the documentation and the messages say is so."""

import re
from pathlib import Path

import pytest

from django_cluster_lock import errors
from django_cluster_lock.management.commands.locks import Command
from tests.servers import RIGHTS

ROOT = Path(__file__).parent.parent.parent


def test_the_rights_that_the_tests_do_with_are_those_in_the_reference():
    (command,) = re.findall(r"ACL SETUSER shop (.*?)```", (ROOT / "docs/reference/redis.md").read_text(), re.DOTALL)
    assert re.findall(r"\+(\S+)", command) == RIGHTS.split()


@pytest.mark.parametrize("text", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), Path(errors.__file__)])
def test_commands_that_are_named_exist(text):
    named = re.findall(r"manage\.py locks ([\w-]+)", text.read_text())
    assert {name.replace("-", "_") for name in named} <= {name for name in vars(Command) if not name.startswith("_")}
