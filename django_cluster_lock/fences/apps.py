"""The Django app."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class FencesConfig(AppConfig):
    """The table of fences."""

    name = "django_cluster_lock.fences"
    label = "cluster_lock_fences"
    verbose_name = _("Fences of cluster locks")
