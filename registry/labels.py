"""Labels of predictions: the true values that callers report later, by prediction id and row.

A label is accepted whether or not its prediction is known: it may come before the prediction log is written
to disk, or days later. `of_predictions` joins labels when a log is read. A label of a key that is limited to
some models joins predictions of those models only, so each key's labels are stored beside those of others.
These functions never change the registry's revision.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import CursorResult, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from registry.tables import KeyRow, LabelRow, now

Scalar = str | bool | int | float | None
LabelValue = Scalar | dict[str, Scalar]
"""A class or a number; for models with several targets, one by target. None: the label is withdrawn."""

IDS_PER_QUERY = 500


class Label(NamedTuple):
    value: LabelValue
    at: datetime


class NewLabel(NamedTuple):
    prediction_id: str
    row: int
    value: LabelValue


def put(session: Session, labels: Sequence[NewLabel], *, key_id: str) -> None:
    """Store the labels. A label replaces the one that the same key reported for the same row."""
    moment = now()
    values = {
        (label.prediction_id, label.row): {
            "prediction_id": label.prediction_id,
            "row": label.row,
            "key_id": key_id,
            "label": msgspec.json.encode(label.value).decode(),
            "at": moment,
        }
        for label in labels  # the last one for a row counts
    }
    insert: Any = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(LabelRow)
    statement = statement.on_conflict_do_update(
        index_elements=["prediction_id", "row", "key_id"],
        set_={"label": statement.excluded.label, "at": statement.excluded.at},
    )
    session.execute(statement, [values[place] for place in sorted(values)])  # locks rows in the same order


def keys_reaching(session: Session, model: str) -> frozenset[str]:
    """Return the ids of all keys, also revoked ones, whose labels join predictions of `model`."""
    keys = session.execute(select(KeyRow.id, KeyRow.models))
    return frozenset(key_id for key_id, models in keys if models is None or model in models)


def of_predictions(
    session: Session, prediction_ids: Collection[str], key_ids: Collection[str]
) -> dict[tuple[str, int], Label]:
    """Return the newest label of each prediction and row, among those of `key_ids`."""
    labels: dict[tuple[str, int], Label] = {}
    for ids in _chunks(prediction_ids):
        query = select(LabelRow.prediction_id, LabelRow.row, LabelRow.key_id, LabelRow.label, LabelRow.at)
        query = query.where(LabelRow.prediction_id.in_(ids)).order_by(LabelRow.at, LabelRow.key_id)
        for prediction_id, row, key_id, text, at in session.execute(query):
            if key_id in key_ids:
                labels[prediction_id, row] = Label(msgspec.json.decode(text), at)
    return labels


def labelled(session: Session, prediction_ids: Collection[str]) -> set[str]:
    """Return the predictions that have a label."""
    ids: set[str] = set()
    for chunk in _chunks(prediction_ids):
        query = select(LabelRow.prediction_id).where(LabelRow.prediction_id.in_(chunk)).distinct()
        ids.update(session.scalars(query))
    return ids


def delete_of_predictions(session: Session, prediction_ids: Collection[str]) -> int:
    """Delete every label of these predictions and return their number."""
    return sum(
        _count(session.execute(delete(LabelRow).where(LabelRow.prediction_id.in_(ids))))
        for ids in _chunks(prediction_ids)
    )


def delete_older(session: Session, moment: datetime) -> int:
    """Delete the labels that were reported before `moment`, and return their number."""
    return _count(session.execute(delete(LabelRow).where(LabelRow.at < moment)))


def any_older(session: Session, moment: datetime) -> bool:
    """Whether `delete_older` would delete a label. Takes no lock."""
    return session.scalar(select(LabelRow.row).where(LabelRow.at < moment).limit(1)) is not None


def _chunks(prediction_ids: Collection[str]) -> list[list[str]]:
    remaining = iter(sorted(prediction_ids))  # sorted: transactions lock rows in the same order
    return list(iter(lambda: list(islice(remaining, IDS_PER_QUERY)), []))


def _count(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
