"""The flows of a flight's key where messages come late, without Celery."""

import time

import pytest

from django_cluster_lock import names, scripts
from django_cluster_lock.aliases import aliases
from django_cluster_lock.flights import outbox
from django_cluster_lock.flights.outbox import Landing, Outbox, Parked
from django_cluster_lock.holding import new_token
from django_cluster_lock.protocol import Grant, Reply
from tests.records import Record

NAME = "flight:task:key"
OUTCOME = b'{"failed": false}'


class Key(Record):
    """A key of which messages are started, parked and ended by hand, each named by a letter."""

    def __init__(self, server, prefix, mode):
        super().__init__(server, prefix, NAME)
        self.alias = aliases["default"]
        self.outbox = Outbox(self.keys, names.outbox_keys(prefix, self.keys), mode.encode())
        self.terms, self.tokens = self.alias.terms(10), {}
        self.handed, self.places = {}, {}  # of messages that the key went to, and of runs

    def claim(self, letter):
        terms = self.alias.terms_of_task(10, letter)
        reply = self.run(outbox.claim(self.outbox, new_token(), terms, f"{letter}:0", now=time.monotonic()))
        return reply.details[0]

    def call(self, letter, message, token=None, *, replaces=False):
        """A call that parks its message, for which that of a later one may be taken."""
        terms, how = self.alias.terms_of_task(10, letter), {"message": message.encode(), "replaceable": True}
        how |= {"now": time.monotonic(), "replaces": replaces}
        return self.told(self.run(outbox.claim(self.outbox, token or new_token(), terms, f"{letter}:0", **how)))

    def an_early_and_a_later_call(self):
        """The places of two calls, "a" before "b", of which only the later one still has its claim."""
        early = self.claim("a")
        self.forget()
        return early, self.claim("b")

    def start(self, letter, place=None, token=None, *, copy=False):
        place = self.handed.get(letter, 0) if place is None else place
        self.tokens[letter] = token or new_token()
        options = {"now": time.monotonic(), "claim_terms": self.terms, "message": letter.encode(), "place": place}
        options["copy"] = copy
        terms = self.alias.terms_of_task(10, letter)
        reply = self.run(outbox.start(self.outbox, self.tokens[letter], terms, f"{letter}:0", **options))
        if not isinstance(reply, Grant):
            return self.told(reply)
        self.places[letter] = place or (0 if copy else reply.fence)
        return ("own",)

    def land(self, letter, outcome=OUTCOME):
        landing = Landing(f"{letter}:0", self.tokens[letter], place=self.places[letter])
        claim = self.tokens[letter], self.terms
        how = {"outcome": outcome, "deadline": time.monotonic() + 5}
        return self.told(self.run(outbox.land(self.outbox, landing, claim, self.terms.ttl, (), **how)))

    def parked(self):
        """What is parked, by place."""
        found = self.client.zrange(self.outbox.keys.order, 0, -1, withscores=True)
        return [Parked(entry.encode(), b"%d" % score, b"") for entry, score in found]

    def confirm(self, parked):
        self.run(outbox.confirm(self.outbox, parked, deadline=time.monotonic() + 5))

    def ran_in_the_future(self):
        """The place of the latest call that has run, by another server's clock."""
        place = self.now() * 1000 + 60_000_000
        self.client.set(self.outbox.keys.latest, f"{place} {{}}", px=60_000)
        return place

    def run(self, flow):
        reply = self.alias.run(flow)
        keys = self.outbox.keys
        for key in (
            self.key,
            keys.order,
            keys.messages,
            keys.latest,
            *(keys.ended + b"%c:0" % each for each in b"abc"),
        ):
            assert self.client.pttl(key) != -1, f"{key} has no expiry"
        return reply

    def told(self, reply):
        """The status, and of what is to be published the letters."""
        published = outbox.parked_of(reply) if _publishes(reply) else []
        self.handed |= {parked.message.decode(): int(parked.sequence) for parked in published}
        return (reply.status.decode(), *(parked.message.decode() for parked in published))

    def forget(self):
        """As if its leases had ended."""
        self.client.delete(self.key)


def _publishes(reply):
    return reply.status in (b"settle", b"next")


@pytest.fixture
def key(settings, locks, cluster, prefix):
    settings.CLUSTER_LOCKS = locks
    return lambda mode: Key(cluster, prefix, mode)


@pytest.mark.parametrize("mode", ["join", "wait", "rerun"])
def test_what_is_kept_for_a_message_that_a_flight_left_behind_expires(key, mode):
    """Its record is gone, and with it the expiry that a record had."""
    key = key(mode)
    key.claim("a")
    assert key.start("a", copy=True) == ("own",)
    assert key.start("b") == ("parked",)
    key.forget()
    assert key.told(key.run(outbox.drain(key.outbox, (new_token(), key.terms), deadline=time.monotonic() + 5))) == (
        "next",
        "b",
    )
    key.forget()
    key.client.delete(key.outbox.keys.messages)  # evicted
    key.run(
        outbox.land(
            key.outbox,
            Landing("c:0"),
            (new_token(), key.terms),
            b"1000",
            (),
            outcome=b"",
            deadline=time.monotonic() + 5,
        )
    )
    key.forget()
    kept = Landing("a:0", key.tokens["a"], kept="a:1")
    key.run(
        outbox.land(key.outbox, kept, (new_token(), key.terms), b"1000", (), outcome=b"", deadline=time.monotonic() + 5)
    )


def test_a_late_message_is_settled_by_the_run_of_a_later_call(key):
    key = key("rerun")
    early, later = key.an_early_and_a_later_call()
    assert key.start("b", later) == ("own",)
    assert key.start("a", early) == ("parked",)
    assert key.land("b") == ("settle", "a")


def test_a_late_message_that_was_handed_the_key_does_not_settle_a_later_call(key):
    key = key("rerun")
    early, later = key.an_early_and_a_later_call()
    key.forget()
    assert key.start("sent") == ("own",)
    assert key.start("a", early) == ("parked",)
    assert key.land("sent", outcome=b"") == ("next", "a")
    assert key.start("a", early, copy=True) == ("own",)
    assert key.start("b", later) == ("parked",)
    assert key.land("a") == ("next", "b")


def test_a_late_message_does_not_run_after_a_later_call(key):
    key = key("rerun")
    early, later = key.an_early_and_a_later_call()
    key.start("b", later)
    assert key.land("b") == ("released",)
    assert key.start("a", early) == ("passed",)
    assert key.start("c", later) == ("own",)  # which is no earlier one
    key.land("c", outcome=b"")
    assert key.start("sent") == ("own",)  # nor is one that was sent without a call
    assert key.land("sent") == ("released",)
    assert key.start("a", early) == ("passed",)


def test_an_earlier_call_does_not_undo_a_later_one_whose_run_has_lost_the_key(key):
    key = key("rerun")
    early, later = key.an_early_and_a_later_call()
    assert key.start("b", later) == ("own",)
    assert key.start("a", early) == ("parked",)
    key.forget()
    assert key.land("b") == ("next", "a")
    assert key.start("a", early, copy=True) == ("passed",)


def test_a_copy_of_unknown_age_settles_nobody_and_hides_no_later_call(key):
    key = key("rerun")
    early, later = key.an_early_and_a_later_call()
    key.start("b", later)
    key.land("b")
    key.start("running")
    key.start("left")
    key.forget()
    assert key.start("copy", copy=True) == ("own",)
    assert key.land("copy") == ("next", "left")
    key.forget()
    assert key.start("a", early) == ("passed",)


def test_a_call_is_later_than_what_has_run_also_by_a_clock_that_lags_behind(key):
    key = key("rerun")
    ahead = key.ran_in_the_future()
    place = key.claim("a")
    assert place > ahead
    assert key.start("a", place) == ("own",)
    assert key.start("b") == ("parked",)
    assert key.land("a") == ("next", "b")


def test_one_that_is_parked_is_later_than_what_has_run_too(key):
    key = key("rerun")
    key.start("running")
    ahead = key.ran_in_the_future()
    assert key.start("b") == ("parked",)
    assert key.client.zscore(key.outbox.keys.order, "b:0") > ahead


def test_what_was_sent_without_a_call_settles_those_that_were_left_behind(key):
    key = key("rerun")
    key.start("running")
    key.start("left")
    key.forget()
    assert key.start("sent") == ("own",)
    assert key.land("sent") == ("settle", "left")


@pytest.mark.parametrize("mode", ["rerun", "wait"])
def test_who_is_behind_those_that_were_left_hands_the_key_to_them(key, mode):
    key = key(mode)
    place = key.claim("a")
    key.forget()
    key.start("running")
    key.start("left")
    key.forget()
    arrival = ("a", place) if mode == "rerun" else ("c", 0)
    assert key.start(*arrival) == ("next", "left")
    assert key.start(*arrival, key.tokens[arrival[0]]) == ("next", "left")  # its answer was lost
    assert key.start(*arrival) == ("parked",)
    assert key.start("left", copy=True) == ("own",)
    assert key.land("left") == (("settle", "a") if mode == "rerun" else ("next", "c"))


@pytest.mark.parametrize(("left", "arrives", "answer"), [("a", "b", ("next", "a")), ("b", "a", ("own",))])
def test_of_one_that_was_left_and_one_that_arrives_the_earlier_call_is_first(key, left, arrives, answer):
    key = key("wait")
    places = dict(zip("ab", key.an_early_and_a_later_call(), strict=True))
    key.forget()
    key.start("running")
    key.start(left, places[left])
    key.forget()
    assert key.start(arrives, places[arrives]) == answer


def test_waiting_messages_keep_the_order_of_their_calls(key):
    key = key("wait")
    first = key.claim("a")
    key.forget()
    key.start("running")
    key.start("b")
    assert key.start("a", first) == ("parked",)
    assert key.land("running") == ("next", "a")


@pytest.mark.parametrize("mode", ["join", "rerun"])
def test_what_was_published_is_dropped_but_not_if_it_is_parked_again_by_then(key, mode):
    key = key(mode)
    key.start("a")
    assert key.start("b") == ("parked",)
    assert key.land("a", outcome=b"") == ("next", "b")
    published = key.parked()
    key.forget()  # the claim that it was handed, as in a failover
    assert key.start("c") == ("own",)
    assert key.start("b", int(published[0].sequence), copy=True) == ("parked",)
    key.confirm(published)
    assert key.parked() == published
    assert key.land("c", outcome=b"") == ("next", "b")
    key.confirm(published)
    assert not key.parked()


@pytest.mark.parametrize("late", ["an attempt", "a dead worker's first", "a dead worker's copy"])
def test_what_is_parked_stays_until_its_run_has_ended(key, late):
    """Whoever asks to take off late does so for nobody."""
    key = key("join")
    key.start("a")
    assert key.start("b", copy=True) == ("parked",)
    key.forget()
    token = key.tokens["b"] if late == "an attempt" else None
    assert key.start("b", token=token, copy=late == "a dead worker's copy") == ("own",)
    assert [parked.entry for parked in key.parked()] == [b"b:0"]
    key.forget()
    assert key.start("b", copy=True) == ("own",)
    assert key.land("b") == ("released",)
    assert not key.parked()


def test_a_message_that_has_gone_out_once_is_not_replaced_by_a_later_call(key):
    key = key("rerun")
    key.start("a")
    assert key.call("b", "early") == ("parked",)
    assert key.land("a", outcome=b"") == ("next", "early")
    published = key.parked()
    key.forget()
    key.start("a")
    assert key.start("b", int(published[0].sequence), copy=True) == ("parked",)
    assert key.call("b", "late", replaces=True) == ("gone",)


@pytest.mark.parametrize("mode", ["rerun", "wait"])
def test_a_call_whose_request_comes_again_runs_once(key, mode):
    key, token = key(mode), new_token()
    key.start("a")
    assert key.call("b", "b", token) == ("parked",)
    assert key.land("a", outcome=b"") == ("next", "b")
    published = key.parked()

    def called_again():
        assert key.call("b", "b", token) == ("parked",)
        assert key.call("b", "late", replaces=True) == ("gone",)

    called_again()
    assert key.start("b", int(published[0].sequence), copy=True) == ("own",)
    called_again()
    key.confirm(published)
    called_again()
    assert not key.parked()
    assert key.land("b") == ("released",)
    called_again()
    assert not key.parked()
    assert key.holder() is None


@pytest.mark.parametrize("entry", ["a:1", "a:0.1"], ids=["retry", "replacement"])
def test_what_follows_a_run_under_its_id_is_parked_behind_it(key, entry):
    key = key("wait")
    key.start("a")
    flow = outbox.claim(key.outbox, new_token(), key.terms, entry, now=time.monotonic(), message=b"follows")
    assert key.told(key.run(flow)) == ("parked",)
    assert key.land("a") == ("next", "follows")


def test_a_message_that_was_on_its_way_does_not_replace_a_later_call(key):
    key = key("rerun")
    key.start("a")
    assert key.call("b", "early") == ("parked",)
    (early,) = key.parked()
    assert key.call("b", "late", replaces=True) == ("parked",)
    assert key.start("b", int(early.sequence), copy=True) == ("parked",)
    assert key.land("a", outcome=b"") == ("next", "late")


def test_an_attempt_that_comes_late_leaves_another_delivery_parked(key):
    key = key("join")
    key.start("a")
    mine = key.tokens["a"]
    assert key.start("a", copy=True) == ("parked",)
    assert key.start("a", token=mine) == ("own",)
    assert [parked.entry for parked in key.parked()] == [b"a:0"]


@pytest.mark.parametrize("unanswered", [False, True])
def test_a_refused_claim_is_marked_if_an_attempt_of_it_may_still_come(key, unanswered):
    key = key("join")
    flow = outbox.claim(key.outbox, b"token", key.terms, "a:0", now=time.monotonic())
    next(flow)
    answer = Reply(b"busy", (), sent=0.0, now=0.0, unanswered=unanswered)
    if unanswered:
        call = flow.send(answer)
        assert (call.script, call.args[:2]) == (scripts.RELEASE, (b"~0~token", b"1"))
        answer = None
    with pytest.raises(StopIteration):
        flow.send(answer)
