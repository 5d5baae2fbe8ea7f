"""The Python in the documentation does what it shows: each page's blocks are run in order, as one program.

What a page does not import, since its reader has it already, is in PRELUDES; all else a block has to bring itself.
"""

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest
from celery import Celery, _state, current_app
from django.conf import settings as django_settings
from django.test import override_settings

from django_cluster_lock import conf

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/quickstart.md", *sorted((ROOT / "docs/howto").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRELUDES = {
    "README.md": """
from celery import shared_task
from django_cluster_lock import single_flight
""",
    "quickstart.md": """
def prepare(): ...
def send(): ...
""",
    "single-flight.md": """
def prepare(account_id): ...
def pay_out(account_id): ...
""",
    "transactions.md": """
from django.db import transaction
from django_cluster_lock import cache_lock
sku = "A"
""",
    "views.md": """
from django.contrib.auth.models import User as Item
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.decorators import api_view
from rest_framework.views import APIView
pk = 1
def get_object_or_404(model, pk):
    found = model(pk=pk)
    found.refresh_from_db = lambda: None
    return found
""",
}


def blocks(page):
    """The page's blocks, each with the lines before it left empty, so that an error names the line of the page."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield "\n" * text[: match.start(1)].count("\n") + match[1]


def run(code, filename, names):
    """Runs it; `await` may stand at its top level."""
    compiled = compile(code, filename, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(compiled, names)
    if inspect.iscoroutine(running):
        asyncio.run(running)


@pytest.fixture
def project(settings, cluster, prefix, monkeypatch):
    """The cluster as the servers of CLUSTER_LOCKS, and a Celery app whose queue nobody looks at."""
    settings.CLUSTER_LOCKS = {"default": {"LOCATION": cluster.urls, "KEY_PREFIX": prefix}}
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    before = current_app._get_current_object()
    with Celery("docs", set_as_current=False) as app:
        app.conf.update(broker_url="memory://", result_backend="cache+memory://")
        app.set_current()
        yield
        before.set_current()


def is_usable(locks):
    with override_settings(CLUSTER_LOCKS=locks):
        return not [problem for problem in conf.problems() if problem.is_error]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))], ids=lambda it: it.name
)
def test_the_python_of(page, project):
    names = {"__name__": f"docs_{page.stem}"}
    run(PRELUDES.get(page.name, ""), "prelude", names)
    for code in blocks(page):
        run(code, str(page), names)
    assert is_usable(names.get("CLUSTER_LOCKS", django_settings.CLUSTER_LOCKS))


def test_preludes_have_nothing_that_their_page_does_not_use():
    for page in PAGES:
        names = {}
        run(PRELUDES.get(page.name, ""), "prelude", names)
        code = "\n".join(blocks(page))
        used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
        assert names.keys() - {"__builtins__"} <= used, page.name


def test_every_python_block_is_found():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"```py", text)) == len(list(blocks(page))), page.name
