"""A whole training in this process: the steps in their order, on partitions that are data frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import msgspec
import pandas as pd
import pyarrow as pa

from service.compiler.fit import steps
from service.compiler.fit.dealing import Dealt, Layout, deal, layout_features
from service.compiler.fit.fit_records import Fitted, Share, Slot, Step, Strategy


def no_one(rows: int, failed: int) -> None:
    pass


def layout_of(frame: pd.DataFrame, target: str, labelled: bool, **given: Any) -> Layout:
    schema = pa.Table.from_pandas(frame, preserve_index=False).schema
    found = {f.name: f for f in layout_features(schema.names, schema.types)}
    return Layout(tuple(f for n, f in found.items() if n != target), found[target], labelled, **given)


def dealt(folder: Path, partitions: Sequence[pd.DataFrame], layout: Layout) -> list[tuple[Path, Dealt]]:
    found = []
    for number, frame in enumerate(partitions):
        path = folder / f"dealt-{number}.arrow"
        batches = pa.Table.from_pandas(frame, preserve_index=False).to_batches(max_chunksize=1000)
        found.append((path, deal(batches, layout, number, path, no_one)))
    return found


@dataclass
class Trainer:
    """`fit` returns the model; `figures` are those of the rows held out."""

    folder: Path
    partitions: Sequence[pd.DataFrame]
    target: str = "y"
    labelled: bool = True
    validation: float = 0.0
    hands: int = 1
    by_class: bool = False
    balanced: bool = False
    figures: dict[str, float] = field(default_factory=dict)
    used: list[int] = field(default_factory=list)  # rows of each partition that the model was fitted on
    counter: int = 0

    def fit(self, estimator: Any, strategy: Strategy) -> Any:
        (self.folder / "estimator").mkdir()
        file = self.folder / "estimator" / "estimator.joblib"
        joblib.dump(estimator, file)
        layout = layout_of(
            self.partitions[0], self.target, self.labelled,
            validation=self.validation, hands=self.hands, by_class=self.by_class,
        )  # fmt: skip
        found = dealt(self.folder, self.partitions, layout)
        base = Step(
            do="check",
            estimator=str(file),
            strategy=strategy,
            target=self.target,
            out="",
            features=layout.features,
        )
        plan = self.do(base).report
        base = msgspec.structs.replace(base, classes=self.classes(found))
        parts = self.parts(base, found, layout)
        for index in range(len(plan["passes"])):
            left = None
            for number, part in enumerate(parts):
                ends = number == len(parts) - 1
                left = self.left(
                    part, do="transform", index=index, ends=ends, transformers=left or part.transformers
                )
            parts = [msgspec.structs.replace(p, transformers=left) for p in parts]
        model = self.merged(parts, self.members(parts, strategy))
        if self.validation:
            self.measure(base, found, layout, model)
        return joblib.load(model)

    def members(self, parts: list[Step], strategy: Strategy) -> list[str]:
        if strategy == "single":
            slots = tuple(s for p in parts for s in p.slots)
            return [self.left(parts[0], do="fit", slots=slots)]
        files: list[str] = []
        for part in parts:
            state = files[-1] if files and strategy == "partial_fit" else None
            files.append(self.left(part, do="fit", state=state))
        return files[-1:] if strategy == "partial_fit" else files

    def merged(self, parts: list[Step], files: list[str]) -> str:
        return self.left(parts[0], do="merge", files=tuple(files))

    def measure(self, base: Step, found: list[tuple[Path, Dealt]], layout: Layout, model: str) -> None:
        files = [
            self.left(base, do="predict", slots=(Slot(str(path), 0, layout.slots),), files=(model,))
            for path, _ in found
        ]
        self.figures = self.do(msgspec.structs.replace(base, do="measure", files=tuple(files))).metrics

    def parts(self, base: Step, found: list[tuple[Path, Dealt]], layout: Layout) -> list[Step]:
        hands = (
            [[(path, 1, d)] for path, d in found]
            if layout.hands == 1
            else [[(path, 1 + hand, d) for path, d in found] for hand in range(layout.hands)]
        )
        parts, before = [], dict.fromkeys(base.classes or (), 0)
        totals = {
            c: sum(sum(n[1:]) for _, d in found for value, n in d.counts if value == c)
            for c in base.classes or ()
        }
        for number, pieces in enumerate(hands):
            slots = tuple(Slot(str(path), slot, layout.slots) for path, slot, _ in pieces)
            rare = min(totals.values(), default=0)
            shares = tuple(Share(rare, totals[c], before[c]) for c in totals) if self.balanced else None
            parts.append(msgspec.structs.replace(base, slots=slots, number=number, shares=shares))
            for _, slot, d in pieces:
                for value, counts in d.counts:
                    if value in before:
                        before[value] += counts[slot]
        return parts

    def classes(self, found: list[tuple[Path, Dealt]]) -> tuple[Any, ...] | None:
        return tuple(sorted({value for _, d in found for value, _ in d.counts})) if self.labelled else None  # type: ignore[type-var]

    def left(self, step: Step, **changed: Any) -> str:
        made = self.do(msgspec.structs.replace(step, **changed))
        assert made.file is not None
        if changed["do"] == "fit":
            self.used.append(made.rows)
        return str(self.folder / str(self.counter) / made.file)

    def do(self, step: Step) -> Fitted:
        self.counter += 1
        out = self.folder / str(self.counter)
        out.mkdir()
        return steps.run(msgspec.structs.replace(step, out=str(out)))
