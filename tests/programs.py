"""Programs that tests start and kill: Python code with the locks at hand, in a process of its own."""

import json
import os
import queue
import subprocess
import sys
import threading

PRELUDE = """\
import json, os, signal, sys, threading, time
{first}
import django
from django.conf import settings
settings.configure(
    CLUSTER_LOCKS=json.loads(os.environ["TEST_LOCKS"]),
    DATABASES=json.loads(os.environ["TEST_DATABASES"]),
    INSTALLED_APPS=["django_cluster_lock", *["django_cluster_lock.fences"] * (os.environ["TEST_DATABASES"] != "{{}}")],
)
django.setup()
from django_cluster_lock import LockError, LockLost, LockNotHeld, LockUnavailable, cache_lock, current_lock
def say(*words):
    print(*words, flush=True)
"""


class Program:
    """A running program. What it says, it says in lines.

    Args:
        code: runs after the prelude, which has `say` for speaking.
        locks: its setting CLUSTER_LOCKS.
        first: runs before anything is imported.
        databases: its setting DATABASES; with one it has the app of fences.
    """

    def __init__(self, code, locks, *, first="", databases=None):
        environment = os.environ | {
            "TEST_LOCKS": json.dumps(locks),
            "TEST_DATABASES": json.dumps(databases or {}, default=str),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE.format(first=first) + code],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    def hear(self, within=60):
        """The next line it says; None once it has ended."""
        return self._lines.get(timeout=within)

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, within=60):
        """Its return code."""
        return self.process.wait(within)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()
