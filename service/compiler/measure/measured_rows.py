"""The rows that a version was measured on, with its answers: the file, and the comparison with it.

A build stores them, so that another release of a library can be measured on the same rows later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from registry.errors import Refused
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.compiler.measure import parity
from service.compiler.measure.parity import AnswerRows, ParityFigures, ReferenceBlock
from service.runtime import isolated_protocol
from service.runtime.isolated_protocol import RunRows, Tensor
from service.runtime.message_channel import ChannelBroken

FILE = "measured.msgpack"
MAX_ROWS = 1000
MAX_BYTES = 4 * 2**20
MIN_KIND_ROWS = 16
"""Rows of a kind that are kept at least, where it has them."""


class _Block(msgspec.Struct, frozen=True):
    kind: str
    rows: RunRows
    answers: dict[str, Tensor]


def save(folder: Path, kinds: dict[str, Rows], answer: AnswerRows) -> str | None:
    """Write rows of each kind and the answers to them. Return the file's name, or None without such rows.

    Rows that the model does not accept are left out.
    """
    limit = min(MAX_ROWS, MAX_BYTES // _row_bytes(kinds, answer))
    while limit:
        blocks = parity.reference(answer, _sampled(kinds, limit))
        content = msgspec.msgpack.encode([_packed(block) for block in blocks])
        if len(content) <= MAX_BYTES or limit == 1:
            if not blocks or len(content) > MAX_BYTES:
                return None
            (folder / FILE).write_bytes(content)
            return FILE
        limit = max(1, min(limit // 2, limit * MAX_BYTES // len(content)))
    return None


def read(path: Path) -> list[ReferenceBlock]:
    """Raises `Refused` when the file is not one that `save` writes."""
    try:
        blocks = msgspec.msgpack.decode(path.read_bytes(), type=list[_Block])
        return [
            ReferenceBlock(
                block.kind,
                isolated_protocol.unpack_rows(block.rows),
                {name: isolated_protocol.unpack(tensor) for name, tensor in block.answers.items()},
            )
            for block in blocks
        ]
    except (msgspec.MsgspecError, ChannelBroken) as error:
        raise Refused(f"the measured rows cannot be read: {error}") from error


def compare(
    blocks: list[ReferenceBlock], answer: AnswerRows, signature: Signature, tolerance: float
) -> ParityFigures:
    """Compare `answer` with the answers of `blocks`.

    Another label counts as the same one where both classes have the same probability.
    """
    expected = {id(block.rows): block.answers for block in blocks}

    def tolerant(rows: Rows) -> Outputs:
        answers = dict(answer(rows))
        for output in signature.outputs:
            if output.name.rpartition(".")[2] == "probabilities" and output.classes is not None:
                label = output.name.removesuffix("probabilities") + "label"
                _accept_ties(answers, expected[id(rows)], label, output.name, output.classes, tolerance)
        return answers

    return parity.compare(blocks, tolerant, signature, tolerance)


def _accept_ties(
    answers: Outputs,
    expected: Outputs,
    label: str,
    probabilities: str,
    classes: tuple[Any, ...],
    tolerance: float,
) -> None:
    """Replace labels in `answers` by the expected ones where the probabilities of both are equal."""
    if answers[label].shape != expected[label].shape:
        return
    index_of = {c: i for i, c in enumerate(classes)}
    labels, values = answers[label].copy(), answers[probabilities]
    for row in np.flatnonzero(labels != expected[label]).tolist():
        ours, theirs = index_of.get(labels[row]), index_of.get(expected[label][row])
        if ours is None or theirs is None:
            continue
        if abs(values[row, ours] - values[row, theirs]) <= 2 * tolerance:
            labels[row] = expected[label][row]
    answers[label] = labels


def _row_bytes(kinds: dict[str, Rows], answer: AnswerRows) -> int:
    """About the size of a row with its answers, of which a text vectorizer gives a million."""
    for kind, rows in kinds.items():
        if blocks := parity.reference(answer, {kind: rows.take(slice(0, 1))}):
            return len(msgspec.msgpack.encode(_packed(blocks[0])))
    return 1


def _sampled(kinds: dict[str, Rows], limit: int) -> dict[str, Rows]:
    """At most about `limit` rows, of each kind its share."""
    total = sum(len(rows) for rows in kinds.values())
    if total <= limit:
        return kinds
    least = min(MIN_KIND_ROWS, max(1, limit // max(1, len(kinds))))
    return {kind: _evenly(rows, max(least, limit * len(rows) // total)) for kind, rows in kinds.items()}


def _evenly(rows: Rows, count: int) -> Rows:
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))
    return rows.take(chosen)


def _packed(block: ReferenceBlock) -> _Block:
    answers = {name: isolated_protocol.pack(array) for name, array in block.answers.items()}
    return _Block(block.kind, isolated_protocol.pack_rows(block.rows), answers)
