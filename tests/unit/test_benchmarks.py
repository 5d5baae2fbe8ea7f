"""The benchmarks, which no other test runs, import what there is."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
IMPORTS = [
    (path.name, node.module, name.name)
    for path in sorted(FOLDER.glob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ImportFrom) and str(node.module).startswith("django_cluster_lock")
    for name in node.names
]


@pytest.mark.parametrize(("file", "module", "name"), IMPORTS)
def test_there_is_what_they_import(file, module, name):
    """The packages of peers need not be installed for it."""
    found = import_module(module)
    assert hasattr(found, name) or import_module(f"{module}.{name}")
