"""Transactions in a fixed order: an action between two statements of another, or one that waits for another.

For PostgreSQL. SQLite allows one write transaction at a time, so there the order cannot be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from registry import versions
from registry.db import Sessions

Result = TypeVar("Result")

on_postgresql = pytest.mark.parametrize("dialect", ["postgresql"])
_WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@contextmanager
def interleaved(engine: Engine, *steps: tuple[str, Callable[[], object]]) -> Iterator[None]:
    """Call the action of each step once, in order, just before the next statement that contains its SQL.

    The actions use sessions of their own, so they commit between two statements of the block's transaction.
    Fails if a step had no statement.
    """
    pending, in_action = list(steps), False

    def watch(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal in_action
        if pending and not in_action and pending[0][0] in statement:
            in_action = True
            try:
                pending.pop(0)[1]()
            finally:
                in_action = False

    event.listen(engine, "before_cursor_execute", watch)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", watch)
    assert not pending, f"no statement contains {pending[0][0]!r}"


def just_before(engine: Engine, sql: str, action: Callable[[], object]) -> AbstractContextManager[None]:
    """Call `action` just before the first statement that contains `sql`."""
    return interleaved(engine, (sql, action))


def run_behind(
    sessions: Sessions, first: Callable[[Session], object], second: Callable[[Session], Result]
) -> Result | BaseException:
    """Run `second` in a transaction that begins during that of `first`, and return its result or exception.

    `first` is committed once `second` waits for a lock. Fails if it does not wait.
    """

    def run_second() -> Result:
        with sessions.begin() as session:
            return second(session)

    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as session:
            first(session)
            session.flush()
            call = pool.submit(run_second)
            _wait_until_blocked(sessions.kw["bind"], call)
        return call.exception() or call.result()


def never_wait(session: Session) -> Session:
    """Let the transaction fail where it would wait for a lock that its own thread holds. Return `session`."""
    session.execute(text("SET LOCAL lock_timeout = '1ms'"))
    return session


def blobs_are_held(sessions: Sessions) -> bool:
    """Report whether another transaction excludes garbage collection."""
    with sessions.begin() as session:
        query = text(f"SELECT pg_try_advisory_xact_lock({versions._BLOB_LOCK_ID})")
        return session.scalar(query) is False


def _wait_until_blocked(engine: Engine, call: Future[Result]) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.scalar(_WAITING):
            assert not call.done(), "the second transaction did not wait for the first"
