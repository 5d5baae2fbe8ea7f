"""Follows the messages through a Redis that is Celery's broker, by what the server tells of the commands it gets.

Celery takes a message from its queue by one command, and notes by a second one that it is not acknowledged yet. A
worker that dies between the two has lost it.
"""

import re
import threading
import time

import redis

ID, TAG = (re.compile(rf'"{name}": "([^"]+)"') for name in ("id", "delivery_tag"))
PATIENCE = 10  # seconds for the server to tell of what it did


class Messages:
    """The last message of each task, and where it is.

    Args:
        prefix: of the broker's keys.
    """

    def __init__(self, url, prefix, queue="celery"):
        self._redis = redis.Redis.from_url(url, protocol=2, decode_responses=True, socket_timeout=None)
        self._queue, self._unacked, self._mark = f"{prefix}{queue}", f"{prefix}unacked", f"{prefix}mark"
        self._tasks, self._last, self._told = {}, {}, threading.Event()
        self._monitor = self._redis.monitor().__enter__()
        threading.Thread(target=self._follow, daemon=True).start()

    def fates(self):
        """By task: "queued", "taken" from the queue but not noted, "noted", "acknowledged"."""
        self._redis.set(self._mark, time.time())
        assert self._told.wait(PATIENCE)
        queued = {TAG.search(message)[1] for message in self._redis.lrange(self._queue, 0, -1)}
        return {
            task: "taken" if state == "queued" and tag not in queued else state
            for task, (state, tag) in self._last.items()
        }

    def _follow(self):
        while not self._told.is_set():
            command, _, rest = self._monitor.next_command()["command"].partition(" ")
            key, _, rest = rest.partition(" ")
            if key == self._queue and command in ("LPUSH", "RPUSH"):
                tag = TAG.search(rest)[1]
                self._tasks[tag] = ID.search(rest)[1]
                self._tell(tag, "queued")
            elif key == self._unacked and command == "HSET":
                self._tell(rest.partition(" ")[0], "noted")
            elif key == self._unacked and command == "HDEL":
                self._tell(rest, "acknowledged")
            elif key == self._mark:
                self._told.set()

    def _tell(self, tag, state):
        """Of a message that comes again, as it does while its copy is under way, the last one counts."""
        task = self._tasks.get(tag)  # none: it was left by an earlier storm
        if task and (state == "queued" or self._last[task][1] == tag):
            self._last[task] = state, tag
