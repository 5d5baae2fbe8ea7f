"""A proxy before each node of a cluster that loses, delays and doubles what passes, as networks do.

It works on requests: all commands that a client wrote in one go, with all their answers. A `Rule` says which of them
to harm and how; the rest passes, and all are counted.
"""

import asyncio
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from django_cluster_lock import scripts

SCRIPTS = {
    known: script.name
    for script in (
        scripts.ACQUIRE,
        scripts.RENEW,
        scripts.RELEASE,
        scripts.SWEEP,
        scripts.LOOK,
        scripts.CLAIM,
        scripts.START,
        scripts.LAND,
        scripts.DRAIN,
        scripts.CONFIRM,
    )
    for known in (script.sha, script.text)
}
LARGEST = 1 << 22


@dataclass(frozen=True)
class Request:
    """Commands that were written together.

    Attributes:
        port: of the node they are for.
        commands: what each is: the name of a lock's script, else the command's own name in capitals.
    """

    port: int
    commands: tuple[str, ...]
    data: bytes = field(repr=False)


@dataclass
class Rule:
    """What to do to requests that have a certain command among theirs.

    Args:
        command: the name of a lock's script, or a command's in capitals.
        request: what happens to the request: "pass", "drop", "double".
        reply: what happens to its answers: "pass", "drop".
        close: whether the client's connection is closed once something was dropped; else it just hears nothing.
        late: seconds by which the request comes late at the server, whatever the client does meanwhile.
        times: how many requests are harmed.
        beside: a command that must be among theirs too.
        every: harms only every so manieth of them.
    """

    command: str
    request: str = "pass"
    reply: str = "pass"
    close: bool = False
    late: float = 0.0
    times: float = 1
    beside: str = ""
    every: int = 1
    met: int = 0
    begun: list[Request] = field(default_factory=list)
    done: list[Request] = field(default_factory=list)

    def takes(self, request):
        """Whether this one is to be harmed."""
        if self.command not in request.commands or (self.beside and self.beside not in request.commands):
            return False
        self.met += 1
        return self.met % self.every == 0 and len(self.begun) < self.times


PASS = Rule("")


class Proxy:
    """Proxies for the nodes at some ports of this machine, in a thread of their own."""

    def __init__(self, ports):
        self._rules, self._guard = [], threading.Lock()
        self._requests = []
        self._delays = {}
        self.ports, self._ports = tuple(ports), {}
        self._serving = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._open(ports))

    def remap(self, node):
        """The proxy of a node, in the form of OPTIONS["address_remap"]."""
        return "127.0.0.1", self._ports[node[1]]

    def harm(self, rule):
        """Applies a rule from now on; the first that fits a request is the one."""
        with self._guard:
            self._rules.append(rule)
        return rule

    def spare(self, rule):
        """Takes one rule back."""
        with self._guard:
            self._rules.remove(rule)

    def slow(self, port, seconds):
        """Has all requests to a node come so much later from now on."""
        self._delays[port] = seconds

    def heal(self):
        """Lets everything pass again."""
        with self._guard:
            self._rules.clear()
        self._delays.clear()

    def requests(self, command=""):
        """The requests so far that have the command among theirs; all by default."""
        with self._guard:
            return [request for request in self._requests if not command or command in request.commands]

    def forget(self):
        """Begins to count anew."""
        with self._guard:
            self._requests.clear()

    def close(self):
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _open(self, ports):
        self._servers = []
        for port in ports:
            server = await asyncio.start_server(lambda r, w, p=port: self._serve(p, r, w), "127.0.0.1", 0)
            self._ports[port] = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    async def _shut(self):
        for server in self._servers:
            server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _take_note(self, request):
        with self._guard:
            self._requests.append(request)
            rule = next((rule for rule in self._rules if rule.takes(request)), PASS)
            if rule is not PASS:
                rule.begun.append(request)
            return rule

    async def _serve(self, port, reader, writer):
        link, task = None, asyncio.current_task()
        self._serving.add(task)  # once the client is gone, nothing else keeps it from being collected
        try:
            link = Link(writer, *await asyncio.open_connection("127.0.0.1", port))
            unread = b""
            while data := await reader.read(LARGEST):
                unread += data
                commands, size = complete(unread)
                if commands:
                    request = Request(port, tuple(map(told, commands)), unread[:size])
                    unread = unread[size:]
                    if delay := self._delays.get(port):
                        await asyncio.sleep(delay)
                    await link.carry(self._take_note(request), request)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            if link:
                link.close()
            writer.close()
            self._serving.discard(task)


class Link:
    """What connects one client with its node."""

    def __init__(self, client, reader, node):
        self._client, self._reader, self._node = client, reader, node
        self._owed = deque()  # for each answer to come: the rule it is under, and its request if it is the last one
        self._answering = asyncio.create_task(self._answer())
        self._all_answered = asyncio.Event()

    async def carry(self, rule, request):
        if rule.late:
            await asyncio.sleep(rule.late)
        if rule.request == "drop":
            self._end(rule, request)
            return
        self._send(rule, request)
        if rule.request == "double":
            self._send(Rule("", reply="drop"), request)
        if rule.late:
            await self._all_answered.wait()  # though the client may be gone

    def close(self):
        self._answering.cancel()
        self._node.close()

    def _send(self, rule, request):
        self._all_answered.clear()
        self._owed.extend((rule, None) for _ in request.commands[1:])
        self._owed.append((rule, request))
        self._node.write(request.data)

    async def _answer(self):
        unread = b""
        with suppress(OSError):
            while data := await self._reader.read(LARGEST):
                unread += data
                while size := end_of(unread):
                    rule, request = self._owed.popleft()
                    if rule.reply == "pass":
                        self._client.write(unread[:size])
                    unread = unread[size:]
                    if request:
                        self._end(rule, request)
                    if not self._owed:
                        self._all_answered.set()
        self._client.close()  # the node closed, so do we

    def _end(self, rule, request):
        if rule is not PASS:
            rule.done.append(request)
        if rule.close:
            self._client.close()


def complete(data):
    """The commands that are there in full, each a list of words, and how many bytes they are."""
    commands, at = [], 0
    while end := end_of(data, at):
        commands.append(words(data[at:end]))
        at = end
    return commands, at


def told(command):
    """What a command is, in short."""
    name = command[0].upper()
    return SCRIPTS.get(command[1], "script") if name in {b"EVAL", b"EVALSHA"} else name.decode()


def words(command):
    """The words of one command."""
    found, at = [], command.index(b"\r\n") + 2
    while at < len(command):
        start = command.index(b"\r\n", at) + 2
        size = int(command[at + 1 : start - 2])
        found.append(command[start : start + size])
        at = start + size + 2
    return found


def end_of(data, at=0):
    """Where the value that begins there ends, 0 if it is not there in full. (Redis serialization protocol, RESP2.)"""
    line = data.find(b"\r\n", at) + 2
    if line == 1:
        return 0
    kind = data[at : at + 1]
    if kind not in b"$*":
        return line
    count = int(data[at + 1 : line - 2])
    if kind == b"$":
        end = line + count + 2 if count >= 0 else line
        return end if end <= len(data) else 0
    for _ in range(count):
        line = end_of(data, line)
        if not line:
            return 0
    return line
