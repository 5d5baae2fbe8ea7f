"""`cache_lock`: the lock for views, services and commands, as a context manager and as a decorator."""

from django_cluster_lock.lock import Lock as cache_lock  # noqa: N813 - for now the handle itself

__all__ = ["cache_lock"]
