"""The shop's Celery app. Its settings are Django's, with CELERY_ before them."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ticketshop.settings")
app = Celery("ticketshop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
