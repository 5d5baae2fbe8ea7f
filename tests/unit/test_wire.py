"""What connections share, without a server."""

import asyncio

import pytest

from django_cluster_lock.actions import LONGEST_TOLD
from django_cluster_lock.aliases import Alias, owner
from django_cluster_lock.conf import AliasSettings
from django_cluster_lock.connections.wire import FAILURES, LONGEST_LINE, Inbox


def test_what_is_no_answer_of_redis_is_a_failure_like_any_other():
    inbox = Inbox()
    inbox.feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(FAILURES, match="Protocol error"):
        inbox.take([], 1)


def test_more_answers_than_requests_are_a_failure():
    inbox = Inbox()
    inbox.feed(b":1\r\n:2\r\n:3")
    with pytest.raises(FAILURES, match="more answers"):
        inbox.take([], 2)


@pytest.mark.parametrize("sign", [b"+", b"-"])
def test_a_line_without_an_end_is_refused_early(sign):
    inbox = Inbox()
    inbox.feed(sign)
    for _ in range(LONGEST_LINE // 8192):
        assert not inbox.take([], 1)
        inbox.feed(b"x" * 8192)
    with pytest.raises(FAILURES, match="more than 65536 bytes"):
        inbox.take([], 1)


def test_a_long_text_is_no_line():
    inbox, values = Inbox(), []
    inbox.feed(b"+OK\r\n")
    assert inbox.take(values, 1)
    inbox.feed(b"$300000\r\n")
    for _ in range(30):
        assert not inbox.take(values, 2)
        inbox.feed(b"-" * 10_000)
    inbox.feed(b"\r\n")
    assert inbox.take(values, 2)
    assert values == [b"OK", b"-" * 300_000]


def test_a_long_error_is_cut_off():
    inbox, values = Inbox(), []
    inbox.feed(b"-ERR " + b"x" * 60_000 + b"\r\n")
    assert inbox.take(values, 1)
    assert (values[0].code, len(str(values[0]))) == ("ERR", LONGEST_TOLD + 3)


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
