"""The table of fences."""

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.translation import gettext_lazy as _


class DigestField(models.BinaryField):  # type: ignore[type-arg]
    """32 bytes that can be a key: MySQL wants their number said."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        return "binary(32)" if connection.vendor == "mysql" else super().db_type(connection)


class Fence(models.Model):
    """The highest fence of a lock that a transaction of this database has shown.

    Rows are written by the statements of `sql` alone. The token is that of the fence's lease; an empty one means that
    the lease was ended by force.
    """

    digest = DigestField(_("digest"), max_length=32, primary_key=True, editable=False)
    name = models.TextField(_("name"))
    fence = models.BigIntegerField(_("fence"))
    token = models.BinaryField(_("token"))
    updated_at = models.DateTimeField(_("updated at"))

    class Meta:
        db_table = "cluster_lock_fence"
        verbose_name = _("fence")
        verbose_name_plural = _("fences")

    def __str__(self) -> str:
        return f"{self.name}: {self.fence}"
