"""The Django app."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ClusterLockConfig(AppConfig):
    """django-cluster-lock: its system checks and the ``locks`` command."""

    name = "django_cluster_lock"
    verbose_name = _("Cluster locks")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django_cluster_lock import checks

        checks.register_all()
