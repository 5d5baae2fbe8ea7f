"""Django settings of the workers that the tests start."""

import json
import os

from tests.settings import *  # noqa: F403

SETUP = json.loads(os.environ["FLIGHT_TESTS"])
CLUSTER_LOCKS = SETUP["locks"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": SETUP["database"]}}
