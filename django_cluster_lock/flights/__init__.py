"""Single flight for Celery tasks: all that imports celery."""

from django_cluster_lock.flights import sweeping  # noqa: F401 - workers schedule sweeps as soon as there are flights
