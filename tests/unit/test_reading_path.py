"""What a newcomer reads to follow one acquire from `cache_lock` down to the script stays short."""

import inspect

from django_cluster_lock import drivers, exchange, guards, protocol
from django_cluster_lock.aliases import Alias
from django_cluster_lock.connections import wire
from django_cluster_lock.connections.sync import Connections, Wire
from django_cluster_lock.holding import Holding
from django_cluster_lock.lock import Lock
from django_cluster_lock.scripts import ACQUIRE

PATH = [
    guards.cache_lock,
    Lock.acquire,
    Lock._run,
    Holding.__init__,
    Holding._acquiring_if_free,
    Holding._acquiring,
    Holding._hold,
    Alias.run,
    Alias.terms,
    protocol.Terms,
    protocol.Call,
    protocol.Reply,
    protocol.acquire,
    protocol.attempt,
    protocol.nap,
    protocol.granted,
    exchange.carry,
    exchange.exchange,
    exchange.Course.__init__,
    exchange.Course.request,
    exchange.replied,
    exchange.command,
    drivers.run,
    Connections.perform,
    Connections.send,
    Connections._wire,
    Wire.__init__,
    Wire.write,
    Wire.feed,
    wire.Inbox,
    wire.pack,
    wire.patience,
]


def test_from_cache_lock_to_the_script_in_660_lines():
    texts = [*map(inspect.getsource, PATH), ACQUIRE.text.decode()]
    assert sum(bool(line.strip()) for text in texts for line in text.splitlines()) <= 660
