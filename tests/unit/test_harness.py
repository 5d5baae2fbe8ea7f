"""What the tests rest on themselves."""

import os
import subprocess
import sys

IN_THE_BACKGROUND = """
import signal, subprocess, sys

signal.signal(signal.SIGINT, signal.SIG_IGN)
from tests.conftest import let_children_be_interrupted

let_children_be_interrupted()
signal.raise_signal(signal.SIGINT)  # goes unnoticed
child = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
subprocess.run([sys.executable, "-c", child], check=True)
"""


def test_children_take_sigint_where_a_shell_has_the_tests_ignore_it():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", IN_THE_BACKGROUND], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
