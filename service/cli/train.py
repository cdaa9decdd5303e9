"""`trivium train`: an unfitted estimator and rows in files become a new version of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, echo

from service.cli.job_inputs import Attempts, Data, Engine, MediaType, NoWait, started
from service.cli.progress import follow, require_done
from service.cli.record_lines import accepted_line, trained_line
from service.cli.shared import Json, Tags, connect, emit, given, pairs
from service.cli.transfer import upload

if TYPE_CHECKING:
    from service.client import Record

File = Annotated[
    Path,
    Argument(
        metavar="ESTIMATOR",
        exists=True,
        dir_okay=False,
        readable=True,
        help="An unfitted scikit-learn estimator or Pipeline, saved with joblib.",
    ),
]
Strategy = Annotated[
    str,
    Option(
        help="partial_fit: one model, partition after partition; ensemble: a model for each partition, "
        "merged; single: one fit over all rows."
    ),
]
Exclude = Annotated[
    list[str] | None, Option(metavar="COLUMN", help="A column that is no feature; may be repeated.")
]
Dtypes = Annotated[
    list[str] | None,
    Option(
        metavar="COLUMN=TYPE",
        help="What a column holds where its first rows look otherwise: float64, int64, bool or string; may "
        "be repeated.",
    ),
]
Sampling = Annotated[
    str | None,
    Option(
        help="none; balanced: as many rows of each class as the rarest has; stratified: each partition has "
        "each class's share."
    ),
]
Partitions = Annotated[int | None, Option(min=1, help="Deal the rows into so many; else those of DATA.")]
Validation = Annotated[
    float | None, Option(min=0, max=0.9, help="The share of rows held out to measure the model (0.2).")
]


def train(
    estimator: File,
    data: Data,
    name: Annotated[str, Option("--name", help="The model's name.")],
    target: Annotated[str, Option(help="The column that holds the true values.")],
    strategy: Strategy,
    exclude: Exclude = None,
    dtype: Dtypes = None,
    sampling: Sampling = None,
    partitions: Partitions = None,
    validation: Validation = None,
    alias: Annotated[str | None, Option(help="Move this alias to the version once it is ready.")] = None,
    tag: Tags = None,
    max_attempts: Attempts = None,
    engine: Engine = None,
    media_type: MediaType = None,
    no_wait: NoWait = False,
    json: Json = False,
) -> None:
    """Fit an estimator to the rows of a file or a directory, and publish what it becomes.

    Exit code 1 when the job fails. Ctrl-C asks whether the job shall go on without you.
    """
    publish = {"name": name, "alias": alias, "tags": pairs(tag)}
    asked: Record = {
        "kind": "train",
        "target": target,
        "exclude": exclude,
        "dtypes": pairs(dtype, last=True) if dtype else None,
        "strategy": strategy,
        "sampling": sampling,
        "partitions": partitions,
        "validation": validation,
        "publish": given(publish),
        "max_attempts": max_attempts,
        "engine": engine,
    }
    with connect() as client:
        request = given(asked) | {"estimator": {"artifact": upload(client, estimator)}}
        record = started(client, data, media_type, request)
        if no_wait:
            emit(json, record, lambda: echo(accepted_line(record)))
            return
        record = follow(client, record["id"])
    require_done(record, json)
    emit(json, record, lambda: echo(trained_line(record)))
