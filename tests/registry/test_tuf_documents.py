"""Stored TUF documents: the newest of each role, how many are kept, and one signer at a time."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from registry import db, tuf_documents
from registry.db import Sessions
from registry.errors import NotFound
from registry.tuf_documents import MAX_VERSIONS, ROLES


def add(sessions: Sessions, role: str, *numbers: int) -> None:
    with sessions.begin() as session:
        for number in numbers:
            tuf_documents.add(session, role, number, f"{role} {number}")


def stored(sessions: Sessions, role: str, last: int) -> list[int]:
    """Return which versions of `role` up to `last` are stored."""
    numbers = []
    with db.reading(sessions) as session:
        for number in range(last + 1):
            try:
                assert tuf_documents.get(session, role, number) == f"{role} {number}"
            except NotFound:
                continue
            numbers.append(number)
    return numbers


def test_the_newest_document_of_each_role_is_returned(sessions: Sessions) -> None:
    with db.reading(sessions) as session:
        assert [tuf_documents.newest(session, role) for role in ROLES] == [None] * 4
    add(sessions, "root", 1, 2)
    add(sessions, "timestamp", 9, 10, 11)
    with db.reading(sessions) as session:
        newest = [tuf_documents.newest(session, role) for role in ROLES]
    assert newest == ["root 2", None, None, "timestamp 11"]


def test_a_document_that_is_not_stored_is_named_in_the_error(sessions: Sessions) -> None:
    add(sessions, "root", 1)
    with db.reading(sessions) as session:
        for role, version in (("root", 2), ("targets", 1)):
            with pytest.raises(NotFound, match=rf"TUF document '{version}\.{role}\.json'"):
                tuf_documents.get(session, role, version)


def test_versions_before_a_jump_are_kept(sessions: Sessions) -> None:
    """Clients in the middle of an update request them, also after `trivium tuf recover`."""
    add(sessions, "targets", *range(1, 51), 100)
    assert stored(sessions, "targets", 100) == [*range(2, 51), 100]


@pytest.mark.parametrize("role", ROLES)
def test_50_versions_are_kept_and_every_root(sessions: Sessions, role: str) -> None:
    others = [other for other in ROLES if other != role]
    for other in others:
        add(sessions, other, 1)
    add(sessions, role, *range(1, MAX_VERSIONS + 1))
    assert len(stored(sessions, role, MAX_VERSIONS)) == MAX_VERSIONS == 50
    add(sessions, role, MAX_VERSIONS + 1)
    expected = list(range(1 if role == "root" else 2, MAX_VERSIONS + 2))
    assert stored(sessions, role, MAX_VERSIONS + 1) == expected
    assert [stored(sessions, other, 1) for other in others] == [[1]] * 3


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_signer_holds_its_lock_until_its_transaction_ends(sessions: Sessions) -> None:
    try_lock = text("SELECT pg_try_advisory_xact_lock(7342)")
    with sessions() as session, sessions() as other:
        tuf_documents.lock(session)
        assert other.scalar(try_lock) is False
        session.commit()
        assert other.scalar(try_lock) is True
