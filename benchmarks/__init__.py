"""Measurements beside the peers and the bare socket: ``python -m benchmarks``."""

from django.conf import settings

if not settings.configured:
    settings.configure()
