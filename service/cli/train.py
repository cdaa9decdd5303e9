"""`trivium train`: fit an estimator on the server, partition by partition, and publish the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, echo

from registry.vocabulary import (
    DEFAULT_VALIDATION,
    MAX_PARTITIONS,
    MAX_VALIDATION,
    SAMPLINGS,
    STRATEGIES,
    TRAIN,
)
from service.cli.connection import connect
from service.cli.descriptions import accepted_line, trained_line
from service.cli.job_options import Data, EngineOption, MaxAttempts, MediaType, NoWait, start_job
from service.cli.options import Json, NameOption, ReadyAlias, Tags, parse_pairs, without_none
from service.cli.output import print_record
from service.cli.progress import follow_job, require_done
from service.cli.transfer import upload_file

if TYPE_CHECKING:
    from service.client import Record

EstimatorFile = Annotated[
    Path,
    Argument(
        metavar="ESTIMATOR",
        exists=True,
        dir_okay=False,
        readable=True,
        show_default=False,
        help="An unfitted scikit-learn estimator or Pipeline, saved with joblib.",
    ),
]
Strategy = Annotated[
    str,
    Option(help="; ".join(f"{name}: {text}" for name, text in STRATEGIES.items()) + "."),
]
Exclude = Annotated[
    list[str] | None, Option(metavar="COLUMN", help="A column that is not a feature; may be repeated.")
]
Dtypes = Annotated[
    list[str] | None,
    Option(
        metavar="COLUMN=TYPE",
        help="The type of a column, if its first rows suggest another one: float64, int64, bool or string; "
        "may be repeated.",
    ),
]
Sampling = Annotated[
    str | None,
    Option(help="; ".join(f"{name}: {text}" for name, text in SAMPLINGS.items()) + "."),
]
Partitions = Annotated[
    int | None,
    Option(min=1, max=MAX_PARTITIONS, help="Number of partitions for the rows (default: those of DATA)."),
]
Validation = Annotated[
    float | None,
    Option(
        min=0,
        max=MAX_VALIDATION,
        help=f"Share of rows held out to measure the model (default {DEFAULT_VALIDATION}).",
    ),
]


def train(
    estimator: EstimatorFile,
    data: Data,
    name: NameOption,
    target: Annotated[str, Option(help="The column with the true values.")],
    strategy: Strategy,
    exclude: Exclude = None,
    dtype: Dtypes = None,
    sampling: Sampling = None,
    partitions: Partitions = None,
    validation: Validation = None,
    alias: ReadyAlias = None,
    tag: Tags = None,
    max_attempts: MaxAttempts = None,
    engine: EngineOption = None,
    media_type: MediaType = None,
    no_wait: NoWait = False,
    json: Json = False,
) -> None:
    """Train an estimator on files and publish the model.

    The exit code is 1 when the job fails. Ctrl-C offers to leave the job running, to cancel it, or to
    wait.
    """
    publish: Record = {"name": name, "alias": alias, "tags": parse_pairs(tag)}
    request: Record = {
        "kind": TRAIN,
        "target": target,
        "exclude": exclude,
        "dtypes": parse_pairs(dtype, split_at_last=True) if dtype else None,
        "strategy": strategy,
        "sampling": sampling,
        "partitions": partitions,
        "validation": validation,
        "publish": without_none(publish),
        "max_attempts": max_attempts,
        "engine": engine,
    }
    with connect() as client:
        request["estimator"] = {"artifact": upload_file(client, estimator)}
        record = start_job(client, data, media_type, without_none(request))
        if no_wait:
            print_record(json, record, lambda: echo(accepted_line(record)))
            return
        record = follow_job(client, record["id"])
    require_done(record, json)
    print_record(json, record, lambda: echo(trained_line(record)))
