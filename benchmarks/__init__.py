"""Measurements beside the peers and the bare socket: ``python -m benchmarks``."""
