"""Forks of a process that holds a lock: the lease stays with the parent."""

import pytest

from tests.programs import Program

CHILD = """
import gc
lock = cache_lock("a")
lock.acquire()
with cache_lock("other"):
    pass

def attempt(action):
    try:
        return action()
    except LockError as error:
        return type(error).__name__

def child():
    say("child", attempt(lock.owned), attempt(lock.release), attempt(lambda: lock.extend(5)), current_lock())
    say("child", attempt(lambda: cache_lock("a").acquire(blocking_timeout=4)))
    with cache_lock("b") as own:
        time.sleep(own.valid_for + 1)  # longer than its lease lasts unrenewed
        say("child", own.owned(), len([t for t in threading.enumerate() if "renewer" in t.name]))

def parent():
    say("parent", lock.owned(), lock.lost)
    lock.release()
    say("parent", attempt(lambda: cache_lock("b").acquire(blocking=False)))
"""
BY_OS = """
if pid := os.fork():
    os.waitpid(pid, 0)
    parent()
else:
    child()
    os._exit(0)
"""
BY_MULTIPROCESSING = """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
parent()
"""


@pytest.mark.parametrize("fork", [BY_OS, BY_MULTIPROCESSING], ids=["os", "multiprocessing"])
def test_a_fork_of_a_holder(locks, fork):
    with Program(CHILD + fork, locks) as program:
        assert program.hear() == "child False LockNotHeld LockNotHeld None"
        assert program.hear() == "child False"  # longer than a lease: the parent renews
        assert program.hear() == "child True 1"
        assert program.hear() == "parent True False"
        assert program.hear() == "parent True"
        assert program.wait() == 0


def test_a_fork_while_the_renewer_works(locks):
    """A thread's locks are copied as they are: no child may hang on one."""
    code = """
held = [cache_lock(f"many:{number}", timeout=3) for number in range(100)]
for lock in held:
    lock.acquire()
for number in range(40):
    pid = os.fork()
    if not pid:
        with cache_lock("child", timeout=5) as lock:
            owned = lock.owned()
        os._exit(0 if owned else 1)
    say(os.waitpid(pid, 0)[1])
    time.sleep(0.03)
say(sum(lock.owned() for lock in held))
"""
    with Program(code, locks) as program:
        for _ in range(40):
            assert program.hear() == "0"
        assert program.hear() == "100"
