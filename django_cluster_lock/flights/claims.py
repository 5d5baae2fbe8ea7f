"""The claim of a flight: the lease that holds its key from the call until its run starts.

It is an ordinary lease that nobody renews. Its token travels with the message, so that the run can turn it into a
lease of its own, and whoever drops the message can give it back.
"""

import logging
import time
from typing import NamedTuple

from django_cluster_lock import names, protocol
from django_cluster_lock.aliases import aliases
from django_cluster_lock.holding import new_token
from django_cluster_lock.names import Keys
from django_cluster_lock.protocol import Terms, ask, give_up

logger = logging.getLogger("django_cluster_lock")
QUEUED = "queued"  # what the owner's field for the thread says of a claim


class Claim(NamedTuple):
    """A claim by the lock's alias and name, its token, and how many seconds it lasts."""

    alias: str
    name: str
    token: str
    seconds: float

    @classmethod
    def new(cls, alias: str, name: str, seconds: float) -> "Claim":
        return cls(alias, name, new_token().decode(), seconds)

    @property
    def keys(self) -> Keys:
        return names.keys_of(aliases[self.alias].settings.key_prefix, self.name)

    def terms(self, task_id: str) -> Terms:
        """What to ask for; from the owner's last field duplicates learn the flight's task."""
        return aliases[self.alias].terms_of_task(self.seconds, task_id, QUEUED)

    def take(self, task_id: str) -> None:
        """Claims the key for a task.

        Raises:
            LockBusy: it is in flight. LockUnavailable, LockNotReplicated: as for any lock.
        """
        now = time.monotonic()
        token, terms = self.token.encode(), self.terms(task_id)
        aliases[self.alias].run(protocol.acquire(self.keys, token, terms, now=now, until=now, blocking=False))

    def give_back(self, *, mark: bool = False) -> None:
        """Frees the key if it is still this claim's. One attempt, which never raises: else the claim's time ends it."""
        try:
            aliases[self.alias].run(ask(give_up(self.keys, self.token.encode(), mark=mark)))
        except Exception as error:
            logger.warning("flight.claim_not_freed", extra={"lock": self.name, "reason": str(error)})
