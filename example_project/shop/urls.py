from django.urls import path

from shop import views

urlpatterns = [
    path("", views.events, name="events"),
    path("events/<int:event_id>/", views.event, name="event"),
    path("events/<int:event_id>/buy/", views.buy, name="buy"),
    path("events/<int:event_id>/report/", views.make_report, name="make-report"),
    path("events/<int:event_id>/report/<uuid:task_id>/", views.report, name="report"),
    path("locks/", views.held_locks, name="locks"),
    path("api/events/", views.api_events),
    path("api/events/<int:event_id>/tickets/", views.api_buy),
    path("api/events/<int:event_id>/tickets/unguarded/", views.api_buy_unguarded),
]
