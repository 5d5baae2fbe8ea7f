"""The arguments of a lock: what is refused before Redis is asked, and how."""

import math

import pytest

from django_cluster_lock.arguments import given_names, given_token, positive, wait_of


@pytest.mark.parametrize("name", [42, None, b"bytes"])
def test_what_is_no_name_is_told_so(name):
    with pytest.raises(TypeError, match="a lock's name is a str, or several in a list"):
        given_names(name)


def test_names_are_taken_once():
    assert given_names("a") == ("a",)
    assert given_names(name for name in "aba") == ("a", "b")
    with pytest.raises(ValueError, match="the list of names is empty"):
        given_names([])


@pytest.mark.parametrize("token", ["", b"", 5, object()])
def test_what_cannot_identify_a_lease_is_refused(token):
    with pytest.raises(TypeError, match="a token is a str or bytes"):
        given_token(token)


def test_a_binary_token_and_its_text_are_the_same():
    assert given_token(b"\xff".decode(errors="surrogateescape")) == given_token(b"\xff") == b"\xff"


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 1e16, True, "1", None])
def test_what_is_no_time_is_refused(seconds):
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds"):
        positive("timeout", seconds)


@pytest.mark.parametrize("seconds", [-1, math.nan, True, "1"])
def test_what_is_no_time_to_wait_is_refused(seconds):
    with pytest.raises(ValueError, match="blocking_timeout must be None or a number"):
        wait_of(seconds)
