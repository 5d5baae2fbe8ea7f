"""Requests and replies that get lost, come late or come twice: in the proxies that some clients go through."""

import math
from typing import ClassVar

from tests.faults.kinds.base import Fault
from tests.faults.proxy import Rule


class Harm(Fault):
    lasts = (0.5, 2.0)
    touches = "clients"
    rule: ClassVar[dict] = {}
    commands = ("acquire", "renew", "release")

    def prepare(self):
        return True

    def clients(self):
        return [member.name for member in self.world.crew.members if member.post.proxied]

    def inject(self):
        self.world.proxy.forget()  # what passed so far, which nobody will ask for
        rules = [Rule(command, times=math.inf, every=2, **self.rule) for command in self.commands]
        for rule in rules:
            self.world.proxy.harm(rule)
        self._undo.append(lambda: [self.world.proxy.spare(rule) for rule in rules])


class RepliesLost(Harm):
    name = "replies lost"
    rule: ClassVar[dict] = {"reply": "drop"}


class RepliesCut(Harm):
    name = "connections closed before the reply"
    rule: ClassVar[dict] = {"reply": "drop", "close": True}


class RequestsLost(Harm):
    name = "requests lost"
    rule: ClassVar[dict] = {"request": "drop"}


class RequestsLate(Harm):
    name = "requests delayed beyond the client's patience"
    rule: ClassVar[dict] = {"late": 1.5}


class NodeSlow(Harm):
    """All that these clients ask of a node comes late."""

    name = "a slow node: requests 50 ms to 5 s late"
    lasts = (3.0, 6.0)
    touches = "shard"

    def prepare(self):
        return Fault.prepare(self)

    def inject(self):
        port = self.nodes.entrance(self.primary)
        self._undo.append(lambda: self.world.proxy.slow(port, 0.0))
        self.world.proxy.slow(port, 0.05 * 100 ** self.random.random())


class RequestsDoubled(Harm):
    name = "requests doubled"
    rule: ClassVar[dict] = {"request": "double"}
