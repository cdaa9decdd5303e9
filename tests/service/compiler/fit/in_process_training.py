"""Run all steps of a training in this process, in their order, over partitions given as data frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import msgspec
import pandas as pd
import pyarrow as pa

from registry.vocabulary import Strategy
from service.compiler.fit import steps
from service.compiler.fit.fit_records import ClassShare, Feature, FitResult, FitStep, Slot
from service.compiler.fit.splitting import SplitCounts, SplitLayout, split_partition
from service.runtime.codec.arrow_types import feature_dtype


def ignore_progress(rows: int, failed: int) -> None:
    pass


def make_layout(frame: pd.DataFrame, target: str, labelled: bool, **fields: Any) -> SplitLayout:
    schema = pa.Table.from_pandas(frame, preserve_index=False).schema
    features = {f.name: Feature(f.name, feature_dtype(f)) for f in schema}
    inputs = tuple(f for name, f in features.items() if name != target)
    return SplitLayout(inputs, features[target], labelled, **fields)


def split_all(
    folder: Path, partitions: Sequence[pd.DataFrame], layout: SplitLayout
) -> list[tuple[Path, SplitCounts]]:
    """Split each partition into a file `split-{number}.arrow`."""
    files = []
    for number, frame in enumerate(partitions):
        path = folder / f"split-{number}.arrow"
        batches = pa.Table.from_pandas(frame, preserve_index=False).to_batches(max_chunksize=1000)
        files.append((path, split_partition(batches, layout, number, path, ignore_progress)))
    return files


@dataclass
class TrainingRun:
    """`fit` returns the model; `metrics` are those on the validation rows."""

    folder: Path
    partitions: Sequence[pd.DataFrame]
    target: str = "y"
    labelled: bool = True
    validation: float = 0.0
    training_slots: int = 1
    stratified: bool = False
    balanced: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    fitted_rows: list[int] = field(default_factory=list)  # rows of each `fit` step
    counter: int = 0

    def fit(self, estimator: Any, strategy: Strategy) -> Any:
        (self.folder / "estimator").mkdir()
        file = self.folder / "estimator" / "estimator.joblib"
        joblib.dump(estimator, file)
        layout = make_layout(
            self.partitions[0], self.target, self.labelled,
            validation=self.validation, training_slots=self.training_slots, stratified=self.stratified,
        )  # fmt: skip
        files = split_all(self.folder, self.partitions, layout)
        base = FitStep(
            do="check",
            estimator=str(file),
            strategy=strategy,
            target=self.target,
            out="",
            features=layout.features,
        )
        plan = self.run(base).report
        base = msgspec.structs.replace(base, classes=self.classes(files))
        parts = self.training_parts(base, files, layout)
        for index in range(len(plan["passes"])):
            parts = self.transform(parts, index)
        model = self.run_for_file(parts[0], do="merge", files=tuple(self.fit_members(parts, strategy)))
        if self.validation:
            self.measure(base, files, layout, model)
        return joblib.load(model)

    def transform(self, parts: list[FitStep], index: int) -> list[FitStep]:
        """Run one pass over the data. The steps that it returns use the fitted transformers."""
        file = None
        for number, part in enumerate(parts):
            file = self.run_for_file(
                part,
                do="transform",
                index=index,
                ends=number == len(parts) - 1,
                transformers=file or part.transformers,
            )
        return [msgspec.structs.replace(p, transformers=file) for p in parts]

    def fit_members(self, parts: list[FitStep], strategy: Strategy) -> list[str]:
        if strategy == "single":
            slots = tuple(s for p in parts for s in p.slots)
            return [self.run_for_file(parts[0], do="fit", slots=slots)]
        files: list[str] = []
        for part in parts:
            state = files[-1] if files and strategy == "partial_fit" else None
            files.append(self.run_for_file(part, do="fit", state=state))
        return files[-1:] if strategy == "partial_fit" else files

    def measure(
        self, base: FitStep, files: list[tuple[Path, SplitCounts]], layout: SplitLayout, model: str
    ) -> None:
        predictions = tuple(
            self.run_for_file(base, do="predict", slots=(Slot(str(path), 0, layout.slots),), files=(model,))
            for path, _ in files
        )
        self.metrics = self.run(msgspec.structs.replace(base, do="measure", files=predictions)).metrics

    def training_parts(
        self, base: FitStep, files: list[tuple[Path, SplitCounts]], layout: SplitLayout
    ) -> list[FitStep]:
        """One step per part to train on: a file, or the same training slot of all files."""
        slots_of_parts = (
            [[(path, 1, counts)] for path, counts in files]
            if layout.training_slots == 1
            else [
                [(path, 1 + slot, counts) for path, counts in files] for slot in range(layout.training_slots)
            ]
        )
        parts, before = [], dict.fromkeys(base.classes or (), 0)
        totals = {
            c: sum(sum(n[1:]) for _, counts in files for value, n in counts.counts if value == c)
            for c in base.classes or ()
        }
        for number, pieces in enumerate(slots_of_parts):
            slots = tuple(Slot(str(path), slot, layout.slots) for path, slot, _ in pieces)
            smallest_class = min(totals.values(), default=0)
            shares = (
                tuple(ClassShare(smallest_class, totals[c], before[c]) for c in totals)
                if self.balanced
                else None
            )
            parts.append(msgspec.structs.replace(base, slots=slots, number=number, shares=shares))
            for _, slot, counts in pieces:
                for value, rows in counts.counts:
                    if value in before:
                        before[value] += rows[slot]
        return parts

    def classes(self, files: list[tuple[Path, SplitCounts]]) -> tuple[Any, ...] | None:
        values = {value for _, counts in files for value, _ in counts.counts}
        return tuple(sorted(values)) if self.labelled else None  # type: ignore[type-var]

    def run_for_file(self, step: FitStep, **changes: Any) -> str:
        """Run the step with changed fields. Returns the path of the file that it wrote."""
        result = self.run(msgspec.structs.replace(step, **changes))
        assert result.file is not None
        if changes["do"] == "fit":
            self.fitted_rows.append(result.rows)
        return str(self.folder / str(self.counter) / result.file)

    def run(self, step: FitStep) -> FitResult:
        self.counter += 1
        out = self.folder / str(self.counter)
        out.mkdir()
        return steps.run_or_raise(msgspec.structs.replace(step, out=str(out)))
