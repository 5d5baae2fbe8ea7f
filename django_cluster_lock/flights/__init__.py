"""Single flight for Celery tasks: all that imports celery."""
