"""Sphinx configuration."""

import importlib.metadata

project = "django-cluster-lock"
author = "django-cluster-lock contributors"
copyright = author
release = version = importlib.metadata.version("django-cluster-lock")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "smartquotes"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"

# Other projects' names are not linked: the build needs no network.
nitpick_ignore_regex = [(r"py:.*", r"(asyncio|celery|django|django_redis|redis)\..*")]

html_theme = "furo"
html_title = "django-cluster-lock"
