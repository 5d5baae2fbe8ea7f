"""The keys of the table of fences, and the statements that differ by database."""

from hypothesis import given
from hypothesis import strategies as st

from django_cluster_lock.fences.models import Fence
from django_cluster_lock.fences.rows import digest_of
from django_cluster_lock.fences.sql import AGE, DIALECTS, KEPT, TABLE
from django_cluster_lock.scripts import guarded

TEXT = st.text(alphabet=st.sampled_from('a":,[]\\ {}é\0\U0001f512'), max_size=4)
LOCKS = st.tuples(TEXT, TEXT, TEXT, st.none() | TEXT | st.just("null"))


@given(LOCKS, LOCKS)
def test_locks_have_one_digest_each(one, other):
    assert len(digest_of(*one)) == 32
    assert (digest_of(*one) == digest_of(*other)) == (one == other)


def test_the_digest_stays_what_it_is():
    """Another one would make every row unknown, and each stale lease new."""
    assert digest_of("default", "shop", "stock:é", None).hex() == (
        "5ca359d8c812847922d8d7750a7af7b32f24ee974d17831a745ae8a86afb7a8e"
    )


def test_the_table_is_that_of_the_statements():
    assert Fence._meta.db_table == TABLE
    columns = {field.column for field in Fence._meta.fields}
    assert columns == {"digest", "name", "fence", "token", "updated_at"}
    for dialect in DIALECTS.values():
        assert all(column in " ".join(dialect.show) for column in columns)


def test_redis_and_the_databases_agree_on_ages():
    text = guarded("return 1").text.decode()
    assert f"local AGE = {AGE} " in text
    assert f"local KEPT = {KEPT // 1000} " in text
    assert AGE <= KEPT // 2
