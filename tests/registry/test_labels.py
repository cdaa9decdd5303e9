"""Labels of predictions: upserts, the keys that they belong to, and their deletion."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import keys, labels, revision
from registry.db import Sessions
from registry.labels import NewLabel
from registry.tables import LabelRow, now
from tests.registry.helpers import threads


def put(sessions: Sessions, *new_labels: NewLabel, key_id: str = "a") -> None:
    with sessions.begin() as session:
        labels.put(session, new_labels, key_id=key_id)


def values(sessions: Sessions, *ids: str, key_ids: tuple[str, ...] = ("a",)) -> dict[tuple[str, int], object]:
    with sessions() as session:
        found = labels.of_predictions(session, ids, key_ids)
    return {place: label.value for place, label in found.items()}


def count(session: Session) -> int | None:
    return session.scalar(select(func.count()).select_from(LabelRow))


def test_a_later_label_replaces_an_earlier_one_of_the_same_key(sessions: Sessions) -> None:
    put(sessions, NewLabel("p", 0, 1), NewLabel("p", 1, "x"), NewLabel("q", 0, None))
    put(sessions, NewLabel("p", 0, {"y0": 1.5, "y1": True}), NewLabel("p", 1, "y"), NewLabel("p", 1, "z"))
    assert values(sessions, "p", "q", "r") == {
        ("p", 0): {"y0": 1.5, "y1": True}, ("p", 1): "z", ("q", 0): None,
    }  # fmt: skip
    with sessions() as session:
        assert count(session) == 3


def test_a_key_cannot_replace_the_label_of_another_one(sessions: Sessions) -> None:
    put(sessions, NewLabel("p", 0, "right"), key_id="a")
    put(sessions, NewLabel("p", 0, "foreign"), key_id="b")
    assert values(sessions, "p", key_ids=("a",)) == {("p", 0): "right"}
    assert values(sessions, "p", key_ids=("a", "b")) == {("p", 0): "foreign"}, "the newest"
    assert values(sessions, "p", key_ids=()) == {}


def test_labels_join_models_that_their_key_reaches_also_after_its_revocation(sessions: Sessions) -> None:
    with sessions.begin() as session:
        ids = [
            keys.create(session, "k", ["predict"], by="ann", models=models).row.id
            for models in (None, ["iris"], ["fraud"], [])
        ]
        keys.revoke(session, ids[1])
    with sessions() as session:
        assert labels.keys_reaching(session, "iris") == {ids[0], ids[1]}
        assert labels.keys_reaching(session, "fraud") == {ids[0], ids[2]}


def test_writing_labels_does_not_change_the_revision(sessions: Sessions) -> None:
    with sessions() as session:
        before = revision.current(session)
    put(sessions, NewLabel("p", 0, 1))
    with sessions() as session:
        assert revision.current(session) == before


def test_more_predictions_than_one_query_can_name_are_found_and_deleted(sessions: Sessions) -> None:
    ids = [f"p{number}" for number in range(2 * labels.IDS_PER_QUERY + 1)]
    put(sessions, *(NewLabel(i, 0, 1) for i in ids), NewLabel("other", 0, 2))
    assert len(values(sessions, *ids, "missing")) == len(ids)
    with sessions.begin() as session:
        assert labels.labelled(session, [*ids, "missing"]) == set(ids)
        assert labels.delete_of_predictions(session, ids) == len(ids)
        assert count(session) == 1


def test_labels_of_the_same_predictions_can_be_written_at_once(sessions: Sessions) -> None:
    new_labels = [NewLabel(f"p{number}", 0, 1) for number in range(50)]
    orders = (new_labels, new_labels[::-1], new_labels[25:] + new_labels[:25])
    assert threads(*(partial(put, sessions, *order) for order in orders)) == [None] * 3
    assert len(values(sessions, *(label.prediction_id for label in new_labels))) == 50


def test_old_labels_are_deleted(sessions: Sessions) -> None:
    put(sessions, NewLabel("p", 0, 1))
    with sessions.begin() as session:
        moment = now()
        assert not labels.any_older(session, moment - timedelta(hours=1))
        assert labels.any_older(session, moment + timedelta(hours=1))
        assert labels.delete_older(session, moment - timedelta(hours=1)) == 0
        assert labels.delete_older(session, moment + timedelta(hours=1)) == 1
