"""Every estimator and encoder on every kind of column, over every interface that rows take to a model.

    python -m benchmarks.sweep [--only TEXT] [--jobs N] [--json] [--write]

`tests/service/column_sweep.py` describes what is done with each model. Every answer must equal what the model
itself answers for the user's frame, and every refusal must name the column. Exit code 1 if one answer differs
without a refusal, or a refusal names nothing. `--write` writes the table to docs/column-sweep.md. All models
together take about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.service.column_sweep import (
    EXAMPLES,
    INTERFACES,
    TOLERANCE,
    Case,
    Row,
    encoders,
    estimator_names,
    frames,
    measure_case,
    names_column,
)

DOC = Path(__file__).parents[1] / "docs" / "column-sweep.md"


def cases(only: str) -> list[Case]:
    """Encoders are published with an example of each format, the estimators with Parquet."""
    every = [Case(name, kind, form) for form in EXAMPLES for name in encoders() for kind in frames()]
    every += [Case(name, kind, "Parquet") for name in estimator_names() for kind in frames()]
    return [case for case in every if only in " ".join(case)]


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.publish.state != "own":
        return "refused at publish"
    if row.silent:
        return "**differs**"
    refused = [interface for interface, o in row.interfaces.items() if o.state == "refused"]
    partly = [interface for interface, o in row.interfaces.items() if o.state == "own" and o.rows]
    parts = (
        ["own" if not refused else "own, not " + ", ".join(refused)]
        if len(refused) < len(INTERFACES)
        else ["refused"]
    )
    if partly:
        parts.append("missing values refused" if len(partly) > 3 else "rows refused: " + ", ".join(partly))
    return "; ".join(parts)


INTRODUCTION = """# Kinds of columns, models and interfaces

Every estimator of scikit-learn, and encoders and imputers before a regressor, fitted on frames with columns
of one kind, and published with that frame. The same rows are then sent as JSON, CSV and Arrow bodies, scored
as a job from Parquet and CSV files, and run on a device. Written by `scripts/bench sweep --write`.

{fitted} models could be fitted; {refused} of them are refused at publish with the reason. For the others,
each interface was compared with the model's own answers. Of {compared} comparisons, {own} give the same
answers (numbers within {tolerance:g}), {refused_interfaces} refuse the rows and name the column and the
remedy, and {silent} differ silently.

- `own`: the model's own answers on every interface; `own, not .tflite`: that interface refuses.
- An empty cell: the model cannot be fitted on such columns.
"""


def document(rows: dict[Case, Row | None]) -> str:
    fitted = [row for row in rows.values() if row]
    states = Counter("silent" if o.silent else o.state for row in fitted for o in row.interfaces.values())
    introduction = INTRODUCTION.format(
        fitted=len(fitted),
        refused=sum(row.publish.state != "own" for row in fitted),
        compared=states.total(),
        own=states["own"],
        tolerance=TOLERANCE,
        refused_interfaces=states["refused"],
        silent=states["silent"],
    )
    tables = [
        _table(rows, f"Encoders and imputers, {form} example", list(encoders()), form) for form in EXAMPLES
    ]
    tables.append(_table(rows, "Estimators, Parquet example", estimator_names(), "Parquet"))
    return "\n".join([introduction, *tables])


def _table(rows: dict[Case, Row | None], title: str, names: list[str], form: str) -> str:
    kinds = list(frames())
    lines = [f"## {title}", "", "| model | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name in names:
        cells = [cell(rows.get(Case(name, kind, form))) for kind in kinds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def unnamed_refusals(rows: dict[Case, Row | None]) -> list[str]:
    """Refusals at publish that concern a kind of column and name none.

    What is refused with plain numbers too does not concern the columns.
    """
    faults = []
    for case, row in rows.items():
        plain = rows.get(case._replace(kind="numbers"))
        is_general = plain is not None and plain.publish.state == "refused"
        if row and row.publish.state == "refused" and not is_general and not names_column(row.publish.reason):
            faults.append(f"{' x '.join(case)}: publish names no column: {row.publish.reason}")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="only models and kinds with this text, e.g. 'Encoder None CSV'"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: cores)")
    parser.add_argument("--json", action="store_true", help="print every outcome as JSON lines")
    parser.add_argument("--write", action="store_true", help=f"write docs/{DOC.name}")
    options = parser.parse_args()
    chosen = cases(options.only)
    rows: dict[Case, Row | None] = {}
    errors: list[str] = []
    with ProcessPoolExecutor(options.jobs, max_tasks_per_child=None) as pool:
        for case, measured in zip(chosen, pool.map(measure_case, chosen), strict=True):
            if isinstance(measured, str):
                errors.append(measured)
                print(f"ERROR {measured}", file=sys.stderr, flush=True)
                continue
            rows[case] = measured
            for fault in measured.silent if measured else ():
                print(f"{' x '.join(case)}: {fault}", file=sys.stderr, flush=True)
            if options.json and measured:
                interfaces = {interface: o._asdict() for interface, o in measured.interfaces.items()}
                line = {
                    **case._asdict(),
                    "publish": measured.publish._asdict(),
                    "interfaces": interfaces,
                }
                print(json.dumps(line), flush=True)
    unnamed = unnamed_refusals(rows)
    for fault in unnamed:
        print(fault, file=sys.stderr)
    silent = sum(len(r.silent) for r in rows.values() if r) + len(unnamed)
    fitted = sum(row is not None for row in rows.values())
    print(f"{fitted} models, {silent} silent differences, {len(errors)} errors", file=sys.stderr)
    if options.write:
        DOC.write_text(document(rows))
    sys.exit(1 if silent or errors else 0)


if __name__ == "__main__":
    main()
