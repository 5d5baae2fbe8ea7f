"""A small ticket shop. What differs between its deployments comes from the environment."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = os.environ.get("SECRET_KEY", "of the example only")
DEBUG = True  # embedded:// below is for development
ROOT_URLCONF = "ticketshop.urls"
WSGI_APPLICATION = "ticketshop.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"

# The payment service; without one, a payment just takes its time.
PAYMENT_URL = os.environ.get("PAYMENT_URL", "")
# Where the tasks note when they begin and end; empty for nowhere.
RUN_LOG = os.environ.get("RUN_LOG", "")

CLUSTER_LOCKS = {
    "default": {
        "LOCATION": os.environ.get("LOCK_SERVERS", "embedded://").split(","),
        "KEY_PREFIX": "shop",
        # Renewed while a lock is held. It is what a killed process costs the shop: with CLOCK_SKEW, 4 s.
        "TIMEOUT": 3,
        "CLOCK_SKEW": 1,
        "OPTIONS": {"socket_timeout": 0.9, "socket_connect_timeout": 0.5},
    },
}

CELERY_BROKER_URL = CELERY_RESULT_BACKEND = os.environ.get("CELERY_BROKER", "redis://127.0.0.1:6379/0")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# The message of a run whose process is killed goes back to its queue: each caller gets a result nevertheless.
CELERY_TASK_ACKS_LATE = CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_cluster_lock",
    "shop",
    "demo",
]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django_cluster_lock.views.ClusterLockMiddleware",  # 503 where a task cannot be queued, for want of its lock
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# Busy and sold out are answers, not worth a line each.
LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"django.request": {"level": "ERROR"}}}


def sqlite(path: str | Path) -> dict[str, object]:
    """Readers and one writer at a time, who waits for the others before it reads, not in the middle."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        "CONN_MAX_AGE": 60,
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
        },
    }


def postgresql(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "CONN_MAX_AGE": 60,
    }


DATABASE_URL = os.environ.get("DATABASE_URL", "")  # postgresql://user:password@host/name, or the path of a SQLite file
DATABASES = {
    "default": postgresql(DATABASE_URL)
    if DATABASE_URL.startswith("postgres")
    else sqlite(DATABASE_URL or BASE_DIR / "shop.sqlite3")
}
