from django.contrib import admin

from shop.models import Event, Ticket


@admin.register(Event)
class EventAdmin(admin.ModelAdmin):
    list_display = ("name", "place", "price", "capacity", "sold")
    readonly_fields = ("sold",)
    search_fields = ("name", "place")


@admin.register(Ticket)
class TicketAdmin(admin.ModelAdmin):
    list_display = ("id", "event", "buyer", "price", "payment", "fence", "sold_at")
    list_filter = ("event",)
    list_select_related = ("event",)
    search_fields = ("buyer", "payment")
