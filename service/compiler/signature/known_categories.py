"""Whether the fitted encoders inside an estimator know the values of the example.

A value that is no category is ignored by most encoders, without a word: a column of another type, spelling or
meaning than the one of the fit is then answered wrongly in every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from registry.errors import Refused
from service.compiler.signature import composites
from service.compiler.signature.encoders import EncodedColumn, describe_column, encoded_columns, is_missing
from service.runtime.codec.columns import show

MAX_SHOWN = 5
NOT_REACHED = "it receives the answers of other estimators, or a step before it fails"


@dataclass(frozen=True)
class KnownShare:
    """How many of the values that reach one column of an encoder are among its categories."""

    column: EncodedColumn
    values: int  # without missing ones
    known: int
    unknown: list[Any]  # the other values, each once
    is_measured: bool = True  # False: no rows reach the encoder
    other_missing: bool = False  # missing values reach it as NaN, and it knows None, or the other way round

    def to_json(self, names: list[str]) -> dict[str, Any]:
        entry: dict[str, Any] = {"encoder": describe_column(self.column, names)}
        if not self.is_measured:
            return entry | {"skipped": NOT_REACHED}
        return entry | {"values": self.values, "known": self.known}


def known_shares(model: Any, rows: Any, names: list[str]) -> Iterator[KnownShare]:
    """The shares of all encoders inside `model`, for rows in the form that it takes.

    The rows pass through the steps before an encoder. Encoders that no rows reach are those behind a step
    that fails, and those that receive the answers of other estimators.
    """
    received = {id(estimator): values for estimator, values in composites.walk_rows(model, rows)}
    for column in encoded_columns(model, len(names)):
        if not column.categories:
            continue
        values = received.get(id(column.encoder))
        yield _share(column, None if values is None else _column_values(values, column, names))


def _column_values(rows: Any, column: EncodedColumn, names: list[str]) -> list[Any]:
    if isinstance(rows, list):  # records, which are the features themselves
        return [row.get(names[column.position]) for row in rows]
    if isinstance(rows, pd.DataFrame):
        return list(rows.iloc[:, column.position].tolist())
    array = np.asarray(rows.toarray() if hasattr(rows, "toarray") else rows)
    return list((array if array.ndim == 1 else array[:, column.position]).tolist())


def _share(column: EncodedColumn, values: list[Any] | None) -> KnownShare:
    if values is None:
        return KnownShare(column, 0, 0, [], is_measured=False)
    categories = set(column.categories)
    present = [v for v in values if not is_missing(v)]
    unknown = [v for v in present if v not in categories]
    gets_none = any(v is None for v in values)
    gets_nan = any(v != v for v in values if isinstance(v, float))
    only_none = column.has_none and not column.has_nan
    only_nan = column.has_nan and not column.has_none
    return KnownShare(
        column,
        len(present),
        len(present) - len(unknown),
        list(dict.fromkeys(unknown)),
        other_missing=(gets_nan and only_none) or (gets_none and only_nan),
    )


def require_known_categories(
    model: Any, rows: Any, names: list[str], warnings: list[str]
) -> list[dict[str, Any]]:
    """Raise `Refused`, naming the column, when an encoder knows none of the example's values.

    Appends a warning for an encoder that knows only a part of them. Returns the shares for the report.
    """
    shares = list(known_shares(model, rows, names))
    for share in shares:
        place = describe_column(share.column, names)
        if share.other_missing:
            known, received = ("None", "NaN") if share.column.has_none else ("NaN", "None")
            raise Refused(
                f"{place} was fitted on {known} as a missing value and receives {received}, because the "
                f"steps before it do not show which feature it is; replace {known} by a text before fitting"
            )
        if share.known == share.values:
            continue
        examples = _listed(share.unknown)
        rejects = getattr(share.column.encoder, "handle_unknown", None) == "error"
        if share.known and rejects:
            raise Refused(
                f"{place} rejects values that are none of its categories, and the example has {examples} "
                f"there; its categories are {_listed(share.column.categories)}"
            )
        if not share.known:
            raise Refused(
                f"{place} knows none of the example's values: they are {examples}, its categories are "
                f"{_listed(share.column.categories)}; publish rows like those that the model was fitted on, "
                "in the same types (a Parquet file keeps them, and the signature may give a column's dtype)"
            )
        part = 100 * (share.values - share.known) / share.values
        warning = (
            f"{place} does not know {part:.2g} % of the example's values ({examples}); it treats them as "
            "unknown"
        )
        if warning not in warnings:  # the members of an ensemble have the same encoder
            warnings.append(warning)
    return [share.to_json(names) for share in shares]


def _listed(values: list[Any]) -> str:
    """Return the values with their kind, which distinguishes text from numbers: `text "0", "1"`."""
    kinds = sorted({_kind(v) for v in values})
    shown = ", ".join(show(getattr(v, "item", lambda v=v: v)()) for v in values[:MAX_SHOWN])
    more = ", ..." if len(values) > MAX_SHOWN else ""
    return f"{' and '.join(kinds)} {shown}{more}"


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    return "booleans" if isinstance(value, bool | np.bool_) else "numbers"
