"""One shard for the model: the real scripts on a real server, in a time that only the test moves.

Each script is run inside a frame that gives it the model's clock in place of the server's, and tells what it wrote
and whom it pushed to. Expiry in that time, which lies decades ahead, is done by hand from what PEXPIRETIME says.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from redis.exceptions import NoScriptError

from django_cluster_lock import scripts

START = 4_000_000_000_000_000  # microseconds; far ahead of any server's clock, yet a fence of 2**53 is farther

FRAME = b"""
local model_now, writes, pushed, server = tonumber(ARGV[#ARGV]), 0, {}, redis
local READS = {GET = true, HMGET = true, HGET = true, PTTL = true, EXISTS = true, ZCARD = true, ZSCORE = true,
  ZRANGE = true, ZREVRANGE = true, ZRANGEBYSCORE = true, ZREVRANGEBYSCORE = true}
local function through(run)
  return function(command, ...)
    if command == 'TIME' then
      return {string.format('%%.0f', math.floor(model_now / 1000000)), string.format('%%.0f', model_now %% 1000000)}
    end
    local arguments = {...}
    if command == 'PEXPIRE' then
      command, arguments[2] = 'PEXPIREAT', string.format('%%.0f', math.floor(model_now / 1000) + arguments[2])
    elseif command == 'SET' then
      arguments[3], arguments[4] = 'PXAT', string.format('%%.0f', math.floor(model_now / 1000) + arguments[4])
    elseif command == 'LPUSH' then
      pushed[#pushed + 1] = arguments[1]
    end
    local answer = run(command, unpack(arguments))
    if not READS[command] and answer ~= 0 then writes = writes + 1 end
    return answer
  end
end
local redis = {call = through(server.call), pcall = through(server.pcall)}
local function script()
%s
end
return {script(), writes, pushed}
"""

ALL_SCRIPTS = (scripts.ACQUIRE, scripts.RENEW, scripts.RELEASE, scripts.SWEEP)
FLIGHT_SCRIPTS = (
    *(scripts.CLAIM, scripts.START, scripts.LAND, scripts.DRAIN, scripts.CONFIRM, scripts.ENDED),
    *(scripts.ACQUIRE, scripts.RENEW, scripts.RELEASE, scripts.SWEEP),
)


@lru_cache(maxsize=64)
def framed(text: bytes) -> bytes:
    """A script in the model's time."""
    if text.count(b"redis.call('TIME')") != 1:
        raise ValueError("the model must replace exactly one clock")
    return FRAME % text


@dataclass(frozen=True)
class Record:
    """A lock as one atomic look at its record and its index shows it; times in ms."""

    fields: dict
    expires: int
    indexed: bool

    @property
    def holder(self):
        return self.fields.get(b"t")

    @property
    def fence(self):
        return int(self.fields.get(b"f", 0))

    @property
    def deadline(self):
        return int(self.fields.get(b"d", 0))

    def held(self, now):
        return self.holder is not None and self.deadline > now

    def queue(self, now):
        """The tokens of the live waiters, in order."""
        places = sorted((int(f[1:]), t) for f, t in self.fields.items() if f[:1] == b"q" and f[1:].isdigit())
        lives = {f[1:]: int(v.rpartition(b":")[2]) for f, v in self.fields.items() if f[:1] == b"w"}
        return [token for _, token in places if lives.get(token, 0) > now]

    def lease(self):
        """All that belongs to the lease, and nothing of the queue."""
        return {field: value for field, value in self.fields.items() if field in b"t f d h p r k s".split()}


@dataclass(frozen=True)
class Ran:
    """One run of a script: what it was asked, what it answered, what it did."""

    name: str
    sha: bytes
    args: tuple
    answer: object
    writes: int
    pushed: list
    before: Record
    after: Record
    now: int  # ms
    micros: int

    @property
    def token(self):
        return self.args[0]

    @property
    def status(self):
        return self.answer[0] if isinstance(self.answer, list) else self.answer


class Shard:
    """The server of all locks of a model.

    Args:
        connection: a redis-py client of the node that serves them.
        mutations: changed texts of scripts, by name.
        known: the scripts it may be asked for.
    """

    def __init__(self, connection, mutations=None, known=ALL_SCRIPTS):
        self.connection = connection
        self.micros = START
        self.records = {}
        self.wakes = set()
        self.keys = {}
        self.texts = {s.sha: (s, framed((mutations or {}).get(s.name, s.text))) for s in known}
        self._expiries = None  # by key, as the server told them; None once they may have changed

    @property
    def now(self):
        return self.micros // 1000

    def add(self, keys):
        self.keys[keys.record] = keys
        self.look(keys)

    def look(self, keys):
        """The record as it is."""
        self._expiries = None
        pipe = self._reading(self.connection.pipeline(transaction=True), keys)
        self.records[keys.record] = record = self._seen(*pipe.execute())
        return record

    def run(self, command):
        """Runs a script as an EVALSHA or EVAL asks for it."""
        script, text = self.texts[command[1]] if command[0] == b"EVALSHA" else self.texts[_digest(command[1])]
        count = int(command[2])
        names, args = command[3 : 3 + count], command[3 + count :]
        keys = self.keys[names[0]]
        before = self.records[keys.record]
        self._expiries = None
        (answer, writes, pushed), *seen = self._evaluated(text, count, *names, *args, self.micros, keys=keys)
        self.records[keys.record] = after = self._seen(*seen)
        self.wakes.update(pushed)
        return keys, Ran(
            script.name, script.sha, tuple(args), answer, writes, pushed, before, after, self.now, self.micros
        )

    def has_push(self, wake):
        return self.connection.exists(wake)

    def pop(self, wake):
        self._expiries = None
        return self.connection.lpop(wake)

    def move_time(self, micros):
        """Lets time pass and drops what expires; gives the locks whose records did, with these as they were."""
        self.micros += micros
        if self._expiries is None:
            volatile = self._volatile()
            self._expiries = dict(zip(volatile, self._expiry_of(volatile), strict=True))
        due = [key for key, at in self._expiries.items() if 0 <= at < self.now]
        if due:
            self.connection.delete(*due)
            self._forget(due)
            self._expiries = None
        gone = [(self.keys[key], self.records[key]) for key in due if key in self.keys]
        for keys, _ in gone:
            self.look(keys)
        return gone

    def copy(self):
        """What a replica has that stops following now."""
        names = list({key for keys in self.keys.values() for key in (keys.record, keys.index)})
        pipe = self.connection.pipeline(transaction=False)
        for key in names:
            pipe.dump(key)
        return list(zip(names, pipe.execute(), self._expiry_of(names), strict=True))

    def restore(self, copy):
        """Makes a copy the shard's content, as a failover to that replica does. Pushes are lost."""
        self.clear()
        for key, content, expires in copy:
            if content is not None:
                self.connection.restore(key, max(expires, 0), content, absttl=True)
        for keys in self.keys.values():
            self.look(keys)

    def lose(self, keys):
        self.connection.delete(keys.record)
        self.look(keys)

    def clear(self):
        indexes = {keys.index for keys in self.keys.values()}
        self.connection.delete(*self.keys, *indexes, *self.wakes)
        self.wakes.clear()

    def _evaluated(self, text, *arguments, keys):
        """The answers to a script and to the reading of its lock, in one round trip."""
        pipe = self.connection.pipeline(transaction=False)
        pipe.evalsha(_digest(text), *arguments)
        answer, *seen = self._reading(pipe, keys).execute(raise_on_error=False)
        if isinstance(answer, NoScriptError):  # not met yet, or forgotten for the sake of another test
            pipe = self.connection.pipeline(transaction=False)
            pipe.eval(text, *arguments)
            return self._reading(pipe, keys).execute()
        if errors := [each for each in (answer, *seen) if isinstance(each, Exception)]:
            raise errors[0]
        return answer, *seen

    def _expiry_of(self, keys):
        pipe = self.connection.pipeline(transaction=False)
        for key in keys:
            pipe.execute_command("PEXPIRETIME", key)
        return pipe.execute()

    def _volatile(self):
        return [*self.keys, *self.wakes]

    def _forget(self, due):
        self.wakes.difference_update(due)

    def _reading(self, pipe, keys):
        pipe.hgetall(keys.record)
        pipe.execute_command("PEXPIRETIME", keys.record)
        pipe.zscore(keys.index, keys.member)
        return pipe

    def _seen(self, fields, expires, score):
        return Record(fields, expires, score is not None)


@dataclass(frozen=True)
class FlightRecord(Record):
    """A flight's lock, with the messages parked behind it."""

    order: tuple  # of pairs of entry and sequence
    messages: dict
    listed: bool  # among the outboxes

    @property
    def stored(self):
        return {name: value for name, value in self.messages.items() if b":" in name}

    @property
    def parked(self):
        return {entry.decode(): int(sequence) for entry, sequence in self.order}


class FlightShard(Shard):
    """The server of one flight's lock and its outbox."""

    def __init__(self, connection, outbox, mutations=None):
        super().__init__(connection, mutations, FLIGHT_SCRIPTS)
        self.outbox, self.ended = outbox.keys, set()
        self.add(outbox.lock)

    def run(self, command):
        self.ended.update(key for key in command[3 : 3 + int(command[2])] if key.startswith(self.outbox.ended))
        return super().run(command)

    def clear(self):
        super().clear()
        keys = self.outbox
        self.connection.delete(keys.order, keys.messages, keys.outboxes, keys.latest, *self.ended)

    def _volatile(self):
        return [*super()._volatile(), self.outbox.order, self.outbox.messages, self.outbox.latest, *self.ended]

    def _forget(self, due):
        super()._forget(due)
        self.ended.difference_update(due)

    def _reading(self, pipe, keys):
        super()._reading(pipe, keys)
        pipe.zrange(self.outbox.order, 0, -1, withscores=True)
        pipe.hgetall(self.outbox.messages)
        pipe.zscore(self.outbox.outboxes, keys.member)
        return pipe

    def _seen(self, fields, expires, score, *outbox):
        order, messages, listed = outbox
        return FlightRecord(fields, expires, score is not None, tuple(order), messages, listed is not None)


@lru_cache(maxsize=256)
def _digest(text):
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
