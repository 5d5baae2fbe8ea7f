"""The storm in a process of its own, whose servers run already."""

import json
import os
import subprocess
import sys
from pathlib import Path

PATIENCE = 40  # seconds for a call to be answered
VISIBILITY = 3  # seconds until a message that was not acknowledged is delivered again


def values_of(values, *, bare=False):
    """Its setup, from that of other tests."""
    prefix = f"{values['prefix']}-storm"
    locks = values["locks"]["default"] | {"KEY_PREFIX": prefix, "SWEEP_INTERVAL": 1}
    return values | {
        "prefix": prefix,
        "log": f"{values['log']}.storm",
        "locks": values["locks"] | {"default": locks},
        "bare": bare,
        "visibility_timeout": VISIBILITY,
    }


def run(values, *options, **process):
    """Runs it to its end; gives the finished process."""
    with start(values, *options, **process) as started:
        output, _ = started.communicate()
    return subprocess.CompletedProcess(started.args, started.returncode, output)


def start(values, *options, **process):
    Path(values["log"]).write_text("")
    environment = os.environ | {
        "FLIGHT_TESTS": json.dumps(values),
        "DJANGO_SETTINGS_MODULE": "tests.celery.settings",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.Popen([sys.executable, "-m", "tests.celery.storm", *options], env=environment, **process)
