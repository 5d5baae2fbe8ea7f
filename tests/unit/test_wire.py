"""What connections share, without a server."""

import asyncio

import pytest

from django_cluster_lock.aliases import Alias, owner
from django_cluster_lock.conf import AliasSettings
from django_cluster_lock.connections.wire import FAILURES, Inbox


def test_what_is_no_answer_of_redis_is_a_failure_like_any_other():
    inbox = Inbox()
    inbox.feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(FAILURES, match="Protocol error"):
        inbox.take([], 1)


def test_event_loops_of_several_threads_may_come_at_once():
    alias = Alias(AliasSettings("default", ("redis://127.0.0.1:1",), "shop"))

    class LoopOfAnotherThread:
        def is_closed(self):
            alias._async[object()] = None  # as a third thread does just then
            return True

    alias._async = {LoopOfAnotherThread(): None, LoopOfAnotherThread(): None}
    assert asyncio.run(alias._connections_here())


def test_a_thread_may_be_named_after_a_file_whose_name_is_no_text():
    assert owner("import \udcff.csv", task="")[2] == b"import ?.csv"
