"""Models fitted on columns of one kind, and what each interface that rows take does with the same rows.

Each model is fitted on a pandas frame and published with that frame as its example. The same rows are
then decoded from JSON, CSV and Arrow bodies, scored from Parquet and CSV files, and run on a device, each by
the code that serves it. `benchmarks/sweep.py` does this for every model, a test for some of them.
"""

from __future__ import annotations

import contextlib
import csv
import decimal
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from registry.artifacts import Store
from registry.build_messages import BuildRequest, BuildResult, ExportRequest
from registry.errors import FieldError, Invalid
from registry.media_types import CSV, JSON, PARQUET
from registry.rows import Array, Outputs
from registry.signature import Signature
from scripts import edge_predict
from service.compiler.build import build_version
from service.compiler.export import export_version
from service.compiler.signature import answers
from service.compiler.signature.estimator import as_dtype
from service.formats import reading
from service.runtime.codec import Codec
from service.runtime.codec.answer_encoder import AnswerEncoder
from service.runtime.isolated_runtime import Isolation
from service.runtime.loading import ModelRuntime, RuntimeSpec, start_bulk_runtime, start_runtime
from service.runtime.row_refusals import RowScorer
from service.worker.score_work import score_range
from tests.service.compiler import sweep as estimator_sweep
from tests.service.shared_template import shared_template

ROWS = 60
TOLERANCE = 1e-5
"""Of a number: relative to it, or to the mean magnitude of its column if that is larger."""
CHILD_MEMORY_MB, CHILD_DEADLINE_S = 8192, 30.0

Table = dict[str, Array]
EXAMPLES = ("Parquet", "CSV", "JSON")
INTERFACES = ("JSON", "CSV", "Arrow", "batch Parquet", "batch CSV", ".tflite")


# --- columns ---------------------------------------------------------------------------------------------


def _frames() -> dict[str, pd.DataFrame]:
    """One frame per kind of column, of 60 rows of the iris data, so that targets depend on the columns."""
    source = estimator_sweep.X.iloc[::2].iloc[:ROWS].reset_index(drop=True)
    a, b, c = (source.iloc[:, i] for i in range(3))
    gap = np.arange(ROWS) % 7 == 3
    colours = pd.Series(np.array(["red", "green", "blue"])[pd.qcut(a, 3, labels=False)])
    codes = pd.Series(np.array(["01", "1.50", "7", "1e3"])[pd.qcut(c, 4, labels=False)])
    words = pd.Series(np.array(["NA", "null", "yes"])[pd.qcut(b, 3, labels=False)])
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta((a * 10).round(), unit="D")
    return {
        "numbers": pd.DataFrame({"a": a, "b": b.astype("float32"), "c": (c * 10).round().astype("int64")}),
        "NaN": pd.DataFrame({"a": a.mask(gap), "b": b, "c": c.mask(np.roll(gap, 2))}),
        "None": pd.DataFrame(
            {
                "a": _objects(colours.mask(gap)),
                "b": _objects(words),
                "c": _objects(codes.mask(np.roll(gap, 2))),
            }
        ),
        "NA": pd.DataFrame(
            {
                "a": (a * 10).round().astype("Int64").mask(gap),
                "b": b.astype("Float64"),
                "c": (c > 3).astype("boolean").mask(np.roll(gap, 2)),
            }
        ),
        "strings": pd.DataFrame({"a": _objects(colours), "b": _objects(words), "c": _objects(codes)}),
        "categories": pd.DataFrame(
            {
                "a": colours.astype("category"),
                "b": words.astype("category"),
                "c": (c * 2).round().astype("int64").astype("category"),
            }
        ),
        "bool": pd.DataFrame({"a": a > 5.5, "b": b > 3.0, "c": _objects((c > 3).mask(gap))}),
        "dates": pd.DataFrame({"a": days, "b": b, "c": c}),
        "decimals": pd.DataFrame({"a": _decimals(a), "b": _decimals(b), "c": c}),
    }


def _objects(column: pd.Series) -> pd.Series:
    """Return the column with Python's own values and None."""
    return pd.Series([None if pd.isna(v) else v for v in column.tolist()], dtype=object)


def _decimals(column: pd.Series) -> pd.Series:
    return pd.Series([decimal.Decimal(str(v)) for v in column.round(1).tolist()], dtype=object)


@cache
def frames() -> dict[str, pd.DataFrame]:
    return _frames()


@cache
def targets() -> dict[str, Array]:
    source = estimator_sweep.X.iloc[::2].iloc[:ROWS]
    real = source.to_numpy() @ np.array([1.0, -2.0, 3.0, 0.5]) + 10.0
    return {"class": pd.qcut(real, 3, labels=False), "real": real, "two": np.column_stack([real, -real])}


# --- models ----------------------------------------------------------------------------------------------


def encoders() -> dict[str, Callable[[], Any]]:
    """Encoders and imputers by name, each before a model that shows which value it received."""
    unknown = {"handle_unknown": "use_encoded_value", "unknown_value": -1}
    return {
        "OneHotEncoder": lambda: make_pipeline(OneHotEncoder(), Ridge()),
        "OneHotEncoder(ignore)": lambda: make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge()),
        "OneHotEncoder(infrequent)": lambda: make_pipeline(
            OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=8), Ridge()
        ),
        "OneHotEncoder(drop)": lambda: make_pipeline(OneHotEncoder(drop="if_binary"), Ridge()),
        "OrdinalEncoder": lambda: make_pipeline(OrdinalEncoder(), SimpleImputer(strategy="mean"), Ridge()),
        "OrdinalEncoder(unknown)": lambda: make_pipeline(
            OrdinalEncoder(**unknown, encoded_missing_value=-2), DecisionTreeRegressor(random_state=0)
        ),
        "TargetEncoder": lambda: make_pipeline(TargetEncoder(random_state=0), Ridge()),
        "KBinsDiscretizer": lambda: make_pipeline(
            KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"), Ridge()
        ),
        "Binarizer": lambda: make_pipeline(Binarizer(threshold=1.0), Ridge()),
        "FunctionTransformer": lambda: make_pipeline(
            FunctionTransformer(), DecisionTreeRegressor(random_state=0)
        ),
        "StandardScaler": lambda: make_pipeline(StandardScaler(), Ridge()),
        "SimpleImputer(mean)": lambda: make_pipeline(SimpleImputer(), Ridge()),
        "SimpleImputer(most_frequent)": lambda: make_pipeline(
            SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"), Ridge()
        ),
        "SimpleImputer(None, most_frequent)": lambda: make_pipeline(
            SimpleImputer(missing_values=None, strategy="most_frequent"),
            OneHotEncoder(handle_unknown="ignore"),
            Ridge(),
        ),
        "SimpleImputer(constant)": lambda: make_pipeline(
            SimpleImputer(strategy="constant", fill_value="absent"),
            OneHotEncoder(handle_unknown="ignore"),
            Ridge(),
        ),
        "SimpleImputer(indicator)": lambda: make_pipeline(SimpleImputer(add_indicator=True), Ridge()),
        "KNNImputer": lambda: make_pipeline(KNNImputer(n_neighbors=3), Ridge()),
        "CountVectorizer": lambda: make_pipeline(
            ColumnTransformer([("words", CountVectorizer(), "a")], remainder="drop"), Ridge()
        ),
        "TfidfVectorizer": lambda: make_pipeline(
            ColumnTransformer([("words", TfidfVectorizer(analyzer="char"), "c")], remainder="drop"), Ridge()
        ),
        "HistGradientBoosting(from_dtype)": lambda: HistGradientBoostingRegressor(
            max_iter=10, min_samples_leaf=3, random_state=0
        ),
        "HistGradientBoosting(categorical)": lambda: HistGradientBoostingRegressor(
            max_iter=10, min_samples_leaf=3, random_state=0, categorical_features=[0, 2]
        ),
    }


def estimator_names() -> list[str]:
    skipped = {*estimator_sweep.NOT_ROWS, "KernelCenterer"}  # take no frame of columns
    return [name for name in estimator_sweep.names() if name not in skipped]


def create(name: str) -> Any:
    """Return the unfitted estimator with the few arguments that it needs here."""
    own = {
        "ColumnTransformer": {"transformers": [("scale", StandardScaler(), ["a", "c"])]},
        "FrozenEstimator": {
            "estimator": DecisionTreeRegressor(random_state=0).fit(frames()["numbers"], targets()["real"])
        },
        "SparseCoder": {"dictionary": np.eye(3)},
        **{name: {"n_components": 2} for name in ("CCA", "PLSCanonical", "PLSRegression")},
    }
    model = estimator_sweep.estimators()[name](**own.get(name, estimator_sweep.ARGUMENTS.get(name, {})))
    if "random_state" in model.get_params() and model.get_params()["random_state"] is None:
        model.set_params(random_state=0)
    return model


def fit(model: Any, name: str, frame: pd.DataFrame) -> Any:
    """Fit with the target that the estimator takes. Raises the estimator's own error."""
    kind = model.__sklearn_tags__().estimator_type
    target = (
        "real" if kind == "regressor" or name in estimator_sweep.REGRESSION or name in encoders() else "class"
    )
    if name in estimator_sweep.TWO_TARGETS:
        target = "two"
    y = targets()[target]
    if name in ("ClassifierChain", "MultiOutputClassifier"):
        y = (y > np.median(y, axis=0)).astype(int)
    elif name in estimator_sweep.BINARY:
        y = (y > 0).astype(int)
    return model.fit(frame, y)


# --- interfaces -----------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What one interface did with the rows: `own` answers, `refused` or `differs`; `rows` were refused."""

    state: str
    reason: str = ""
    rows: int = 0

    @property
    def silent(self) -> bool:
        return self.state in ("differs", "unnamed")


class ExampleFile(NamedTuple):
    path: Path
    media_type: str


class Published(NamedTuple):
    """A built version, and the model's own answers to the user's frame."""

    folder: Path
    frame: pd.DataFrame
    example: ExampleFile
    signature: Signature
    online: ModelRuntime
    bulk: ModelRuntime
    expected: Table


def outputs_table(signature: Signature, outputs: Outputs) -> Table:
    return AnswerEncoder(signature).table(
        {o.name: as_dtype(outputs[o.name], o.dtype) for o in signature.outputs}
    )


def difference(expected: Table, actual: Table) -> str | None:
    """Return the first column that differs, with the values; None if all are equal."""
    if list(expected) != list(actual):
        return f"columns {list(actual)[:5]} instead of {list(expected)[:5]}"
    for name, own in expected.items():
        other = actual[name]
        if len(own) != len(other):
            return f"{name}: {len(other)} rows instead of {len(own)}"
        if own.dtype.kind == "f":
            scale = np.nanmean(np.abs(own)) if np.isfinite(own).any() else 1.0
            equal = np.isclose(
                own, other.astype(float), rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True
            )
        else:
            equal = own == other
        if not np.all(equal):
            row = int(np.flatnonzero(~np.asarray(equal))[0])
            return (
                f"{name} of row {row}: {other[row]!r} instead of {own[row]!r} ({np.mean(~equal):.0%} differ)"
            )
    return None


def take(table: Table, kept: Array) -> Table:
    return {name: column[kept] for name, column in table.items()}


def write_example(folder: Path, form: str, frame: pd.DataFrame) -> ExampleFile:
    path = folder / f"example.{form.lower()}"
    if form == "Parquet":
        frame.to_parquet(path, index=False)
        return ExampleFile(path, PARQUET)
    if form == "CSV":
        path.write_bytes(csv_body(frame))
        return ExampleFile(path, CSV)
    path.write_text(json.dumps(_json_rows(frame)))
    return ExampleFile(path, JSON)


def json_body(frame: pd.DataFrame) -> bytes:
    return json.dumps({"instances": _json_rows(frame)}).encode()


def _json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{name: _json_value(value) for name, value in row.items()} for row in _records(frame)]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    names = [str(n) for n in frame.columns]
    return [
        dict(zip(names, row, strict=True)) for row in zip(*(frame[n].tolist() for n in frame), strict=True)
    ]


def _json_value(value: Any) -> Any:
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return None
    if isinstance(value, decimal.Decimal):
        return float(value)
    return value.isoformat() if isinstance(value, pd.Timestamp) else value


def csv_body(frame: pd.DataFrame) -> bytes:
    """Float32 columns with all digits: pandas writes 2.9 for the float32 near it, another number."""
    return (
        frame.astype({n: "float64" for n in frame if frame[n].dtype == "float32"})
        .to_csv(index=False)
        .encode()
    )


def arrow_body(frame: pd.DataFrame) -> bytes:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


BODIES: dict[str, tuple[Callable[[pd.DataFrame], bytes], str]] = {
    "JSON": (json_body, "decode_json"),
    "CSV": (csv_body, "decode_csv"),
    "Arrow": (arrow_body, "decode_arrow"),
}


def predict_online(published: Published, interface: str) -> Outcome:
    """Send all rows; when some are refused, send the others again."""
    encode, decoder = BODIES[interface]
    codec = Codec(published.signature)
    kept = np.ones(len(published.frame), dtype=bool)
    reason = ""
    for _ in range(2):
        try:
            rows = getattr(codec, decoder)(encode(published.frame[kept]))
            outputs = published.online.run(rows)
        except Invalid as error:
            refused = {e.instance for e in error.errors if e.instance is not None}
            if not names_column(str(error), error.errors):
                return Outcome("unnamed", str(error))
            if reason or not refused:
                return Outcome("refused", str(error), int(kept.sum()))
            reason = str(error)
            kept[sorted(refused)] = False
            if not kept.any():
                return Outcome("refused", reason, len(kept))
            continue
        wrong = difference(take(published.expected, kept), outputs_table(published.signature, outputs))
        return Outcome("differs", wrong) if wrong else Outcome("own", reason, int((~kept).sum()))
    return Outcome("refused", reason, int((~kept).sum()))


def names_column(message: str, errors: list[FieldError] | tuple[FieldError, ...] = ()) -> bool:
    quoted = any(f'"{name}"' in message or f"'{name}'" in message for name in "abc")
    return quoted or any(e.field in ("a", "b", "c") for e in errors)


def score_batch(published: Published, media_type: str) -> Outcome:
    suffix = "parquet" if media_type == PARQUET else "csv"
    path = published.folder / f"rows.{suffix}"
    if media_type == PARQUET:
        published.frame.to_parquet(path, index=False)
    else:
        path.write_bytes(csv_body(published.frame))
    spec = {"output": {"media_type": PARQUET}}
    base = published.folder / f"part-{suffix}"
    try:
        dataset = reading.open_dataset(str(path), media_type)
        (part,) = reading.split(dataset)
        scorer = RowScorer(published.bulk.run)
        result = score_range(
            dataset, part, spec, published.signature, scorer, base, lambda rows, failed: None
        ).result
    except Invalid as error:
        if not names_column(str(error), error.errors):
            return Outcome("unnamed", str(error))
        return Outcome("refused", str(error), len(published.frame))
    kept, reason = np.ones(len(published.frame), dtype=bool), ""
    if result["errors"]:
        with (published.folder / result["errors"]).open(newline="") as file:
            for line in csv.DictReader(file):
                kept[int(line["row"])] = False
                reason = reason or line["message"]
        if not names_column(reason):
            return Outcome("unnamed", reason)
    if not kept.any():
        return Outcome("refused", reason, len(kept))
    table = pq.read_table(published.folder / result["file"])
    actual = {name: table.column(name).to_numpy() for name in table.column_names}
    wrong = difference(take(published.expected, kept), actual)
    return Outcome("differs", wrong) if wrong else Outcome("own", reason, int((~kept).sum()))


def run_on_device(published: Published, model: Any) -> Outcome:
    out = published.folder / "export"
    out.mkdir()
    export = export_version(
        ExportRequest(
            artifact=str(published.folder / "model.joblib"),
            format="sklearn-joblib",
            signature=published.signature,
            model="m",
            version=1,
            out=str(out),
            example=str(published.example.path),
            example_media_type=published.example.media_type,
        )
    )
    if export.state != "ready" or export.file is None:
        return Outcome("refused", export.report["reason"], len(published.frame))
    device = edge_predict.Model((out / export.file).read_bytes())
    path = published.folder / "device.csv"
    numbers = published.frame.astype("float64")
    numbers.to_csv(path, index=False)
    nullable = all(i.nullable for i in published.signature.inputs)
    kept = np.ones(len(numbers), bool) if nullable else numbers.notna().all(axis=1).to_numpy()
    arrays = device.run(edge_predict.read_rows(path, device.metadata["features"])[kept])
    actual = {}
    for output in published.signature.outputs:
        array = np.asarray(arrays["value" if output.name == "values" else output.name])
        if output.classes and output.name.endswith("label"):
            array = np.array(output.classes, dtype=object)[array]
        actual[output.name] = array.reshape(-1, *output.shape[1:])
    table = outputs_table(published.signature, actual)
    wrong = difference(take(published.expected, kept), table)
    if wrong is None:
        return Outcome("own")
    # The features of a device are float32: the model's own answer to the rounded row is right as well.
    with contextlib.suppress(ValueError):  # an encoder of floats does not know the rounded ones
        rounded = answers.answer(model, published.signature.task, numbers.astype("float32")[kept])
        if difference(outputs_table(published.signature, rounded), table) is None:
            return Outcome("own")
    return Outcome("differs", wrong)


# --- one model on one kind of column ---------------------------------------------------------------------


class Case(NamedTuple):
    """A model by its name, the kind of its columns, and the format of its published example."""

    model: str
    kind: str
    example: str


class Row(NamedTuple):
    """The outcomes of one model on one kind of column. `publish` is why it is not served, if so."""

    publish: Outcome
    interfaces: dict[str, Outcome]

    @property
    def silent(self) -> list[str]:
        return [f"{interface}: {o.state}: {o.reason}" for interface, o in self.interfaces.items() if o.silent]


@contextlib.contextmanager
def _runtimes(folder: Path, built: BuildResult) -> Iterator[tuple[ModelRuntime, ModelRuntime]]:
    """The runtimes that answer predict calls and jobs."""
    store = Store(folder / "blobs")
    assert built.signature is not None
    assert built.runtime is not None
    served = folder / "out" / built.servable if built.servable else folder / "model.joblib"
    forest = None if built.forest is None else store.put_file(folder / "out" / built.forest).sha256
    spec = RuntimeSpec(
        "m", 1, built.runtime, "sklearn-joblib", store.put_file(served).sha256, forest, built.signature
    )
    isolation = Isolation(lambda: shared_template().fork("isolated"), CHILD_MEMORY_MB, CHILD_DEADLINE_S)
    online = start_runtime(spec, store, isolation)
    bulk = start_bulk_runtime(spec, store, isolation) if forest else online
    try:
        yield online, bulk
    finally:
        online.close()
        bulk.close()


def measure(model: Any, case: Case, folder: Path) -> Row | None:
    """None if the model cannot be fitted on such columns, or does not answer the rows it was fitted on."""
    frame = frames()[case.kind]
    try:
        model = fit(model, case.model, frame)
        task = answers.tasks(model)[0]
        own = answers.answer(model, task, frame)
    except Exception:
        return None
    joblib.dump(model, folder / "model.joblib")
    example = write_example(folder, case.example, frame)
    out = folder / "out"
    out.mkdir()
    built = build_version(
        BuildRequest(
            artifact=str(folder / "model.joblib"),
            format="sklearn-joblib",
            out=str(out),
            example=str(example.path),
            example_media_type=example.media_type,
        )
    )
    if built.state != "ready" or built.signature is None:
        reason = built.report["reason"]
        return Row(Outcome("refused", reason), {})
    signature = built.signature
    with _runtimes(folder, built) as (online, bulk):
        expected = outputs_table(signature, own)
        published = Published(folder, frame, example, signature, online, bulk, expected)
        interfaces = {interface: predict_online(published, interface) for interface in BODIES}
        interfaces["batch Parquet"] = score_batch(published, PARQUET)
        interfaces["batch CSV"] = score_batch(published, CSV)
        interfaces[".tflite"] = run_on_device(published, model)
    return Row(Outcome("own", built.runtime_reason or ""), interfaces)


def measure_case(case: Case) -> Row | str | None:
    """Also returns the text of an error in the sweep itself, so that the other cases go on."""
    name = case.model
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore")
        try:
            model = encoders()[name]() if name in encoders() else create(name)
            return measure(model, case, Path(folder))
        except Exception as error:
            return f"{' x '.join(case)}: {type(error).__name__}: {str(error)[:300]}"
