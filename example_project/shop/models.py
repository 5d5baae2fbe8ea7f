from django.db import models


class Event(models.Model):
    name = models.CharField(max_length=100)
    place = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    capacity = models.PositiveIntegerField()
    sold = models.PositiveIntegerField(default=0, help_text="Counted with each ticket.")

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return self.name

    @property
    def free(self) -> int:
        return max(self.capacity - self.sold, 0)

    @property
    def share_sold(self) -> int:
        return min(100, 100 * self.sold // self.capacity) if self.capacity else 100


class Ticket(models.Model):
    event = models.ForeignKey(Event, on_delete=models.CASCADE, related_name="tickets")
    buyer = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    payment = models.CharField(max_length=40, unique=True, help_text="The payment service's number for it.")
    fence = models.BigIntegerField(null=True, help_text="The number of the lease under which it was sold.")
    invoice = models.CharField(max_length=40, blank=True, help_text="The payment service's number for it.")
    sold_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return f"{self.event}: {self.buyer}"
