"""Loads versions: from a version's row and files to a runtime, a codec, and the cost of a call."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, cast

import msgspec
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from registry import db, schema, verification
from registry.artifacts import Store
from registry.errors import Conflict, DeadlineExceeded, Invalid, NotFound, NotReady, Unavailable
from registry.rows import Outputs, Rows, join_rows
from registry.signature import Signature
from registry.tables import ModelRow, VersionRow
from registry.vocabulary import FALLBACK_FORMATS, AnsweringRuntime, Runtime
from service import telemetry
from service.runtime import call_cost, libraries, row_refusals
from service.runtime.call_cost import CallCost
from service.runtime.codec import Codec
from service.runtime.codec.columns import MAX_FAULTS
from service.runtime.isolated_runtime import CallFailed, IsolatedRuntime, Isolation, RestartPending
from service.runtime.kernel_table import NotCompiled
from service.runtime.row_refusals import RowScorer
from service.runtime.tflite_runtime import TfliteRuntime

log = telemetry.logger(__name__)

SEARCH_S = 1.0
"""Longest search for the rows that a model refuses."""
IN_PROCESS: tuple[AnsweringRuntime, ...] = ("onnx", "forest")
"""Runtimes that take any number of calls at the same time, and may run on the event loop."""
MAX_SLOTS = 4
"""Most calls of one model at the same time, if they run in this process: others wait in its queue."""


class ModelRuntime(Protocol):
    """A model in memory that answers rows. `bytes` is the memory it holds, measured or estimated."""

    @property
    def bytes(self) -> int: ...
    def run(self, rows: Rows) -> Outputs: ...
    def close(self) -> None: ...


class PendingCall(Protocol):
    """One of several concurrent calls. `deadline` is a time of `time.monotonic`."""

    @property
    def rows(self) -> Rows: ...
    @property
    def deadline(self) -> float: ...
    def is_abandoned(self) -> bool:
        """Whether the caller no longer waits for the answer."""


class LoadedModel:
    """A version that is ready to answer predict calls."""

    def __init__(
        self,
        name: str,
        number: int,
        kind: AnsweringRuntime,
        signature: Signature,
        runtime: ModelRuntime,
        fallback: str | None = None,
        requires_finite: bool = False,
        waits_for_kernel: bool = False,
    ) -> None:
        self.name, self.number, self.kind, self.runtime = name, number, kind, runtime
        self.fallback = fallback  # the version's when it was loaded
        self._requires_finite = requires_finite
        self.waits_for_kernel = waits_for_kernel  # its table of nodes answers once the kernel is compiled
        self.codec = Codec(signature)
        self.headers = [(b"x-model-name", name.encode()), (b"x-model-version", b"%d" % number)]
        # The model's own threads, so that its calls delay no other model's. An isolated model and LiteRT's
        # interpreter take one call at a time.
        self.slots = min(MAX_SLOTS, max(2, call_cost.usable_cores() - 1)) if kind in IN_PROCESS else 1
        self.threads = ThreadPoolExecutor(self.slots, thread_name_prefix=f"{kind} {name}")
        self.set_cost(call_cost.UNKNOWN)
        self.meter = telemetry.predict_meter(name, number, kind)
        self._measure(signature)

    def close(self) -> None:
        self.runtime.close()
        self.threads.shutdown(wait=False)

    def run(self, rows: Rows) -> Outputs:
        """Return the answers. Raises `Invalid`, naming the rows that the model refuses."""
        try:
            outputs = self.runtime.run(rows)
        except Invalid as error:
            if any(fault.instance is not None for fault in error.errors):
                raise
            raise self._name_refused_rows(rows, error) from error
        if self._requires_finite and not row_refusals.are_finite(outputs):
            raise self._name_refused_rows(rows, Invalid("the model answers some of the rows with infinity"))
        return outputs

    def _name_refused_rows(self, rows: Rows, error: Invalid) -> Invalid:
        """Return the error with the rows; `error` itself if they are not found within `SEARCH_S`."""
        deadline = time.monotonic() + SEARCH_S

        def check_time() -> None:
            if time.monotonic() > deadline:
                raise error

        scorer = RowScorer(self.runtime.run, self._requires_finite)
        try:
            refused = scorer.run(rows, check_time, MAX_FAULTS).refused
        except (Invalid, Unavailable):
            return error
        return row_refusals.refusal(refused) if refused else error

    def run_each(self, calls: Sequence[PendingCall]) -> list[Outputs | Exception]:
        """Return the answer or the error of each call: of one joint call, or alone if that fails.

        A call that ends the model's process, or that the model refuses, fails no other.
        """
        if len(calls) == 1:
            return [self._attempt(calls[0])]
        try:
            return [*self._run_joint([call.rows for call in calls])]
        except Exception as error:
            if isinstance(error, Unavailable) and not isinstance(error, CallFailed):
                return [error] * len(calls)
            log.info("model.joint_call_failed", model=self.name, version=self.number, error=str(error))
            return [self._attempt(call, waits=True) for call in calls]

    def _attempt(self, call: PendingCall, waits: bool = False) -> Outputs | Exception:
        """Run one call. `waits`: until the deadline for a process whose restart is delayed."""
        while not call.is_abandoned():
            try:
                return self.run(call.rows)
            except RestartPending as error:
                if not waits or time.monotonic() + error.delay_s > call.deadline:
                    return error
                time.sleep(error.delay_s)
            except Exception as error:
                return error
        return DeadlineExceeded("the caller no longer waits")

    def _run_joint(self, requests: Sequence[Rows]) -> list[Outputs]:
        """Raises `Invalid`, naming no rows."""
        outputs = self.runtime.run(join_rows(requests))
        if self._requires_finite and not row_refusals.are_finite(outputs):
            raise Invalid("the model answers some of the rows with infinity")
        ends = list(itertools.accumulate(map(len, requests)))
        bounds = zip([0, *ends], ends, strict=False)
        return [{name: array[start:end] for name, array in outputs.items()} for start, end in bounds]

    def is_cheap(self, rows: int) -> bool:
        """Whether a call with this many rows may run on the event loop."""
        return rows <= self.inline_rows

    def runs_at_once(self, rows: int) -> bool:
        """Whether a call with this many rows runs on the event loop without being joined with others."""
        return rows <= self._at_once_rows

    def set_cost(self, cost: CallCost) -> None:
        """Decide where calls run, and how many rows are joined into one (0: requests are not joined)."""
        self.cost = cost
        self.inline_rows = cost.inline_rows if self.kind in IN_PROCESS else 0
        self.joint_rows = cost.joint_rows
        self._at_once_rows = 0 if self.joint_rows else self.inline_rows

    def _measure(self, signature: Signature) -> None:
        """Measure calls with the signature's example, which also warms up the model."""
        body = msgspec.json.encode({"instances": [schema.instance_example(signature)]})
        with contextlib.suppress(Invalid, DeadlineExceeded):  # then its cost stays unknown
            self.set_cost(call_cost.measure(self.run, self.codec.decode_json(body)))


class RuntimeSpec(NamedTuple):
    """The columns of a version's row that its runtime needs. Files are named by their SHA-256 digests.

    `runtime`, `blob` and `forest` are what serves the version now: see `registry/verification.py`.
    """

    name: str
    number: int
    runtime: Runtime
    format: str
    blob: str
    forest: str | None
    signature: Signature
    fallback: str | None = None
    libraries: str | None = None

    @property
    def requires_finite(self) -> bool:
        """Whether an infinite or missing answer means that the estimator refuses the row.

        Scikit-learn checks what each step hands to the next one; the converted model computes on.
        """
        is_converted = self.format in FALLBACK_FORMATS and self.runtime != "isolated"
        return is_converted and self.signature.task != "transform"


def read_runtime_spec(sessions: db.Sessions, version_id: int) -> RuntimeSpec:
    """Raises `NotReady` for a version that is deleted or not built, `Unavailable` if nothing serves it."""
    with db.reading(sessions) as session:
        row = session.execute(
            select(
                ModelRow.name,
                VersionRow.number,
                VersionRow.runtime,
                VersionRow.format,
                VersionRow.artifact,
                VersionRow.servable,
                VersionRow.forest,
                VersionRow.signature,
                VersionRow.fallback,
                VersionRow.libraries,
            )
            .join(ModelRow, ModelRow.id == VersionRow.model_id)
            .where(VersionRow.id == version_id)
        ).one_or_none()
    if row is None or row.runtime is None:
        raise NotReady("the version was deleted or is not built")
    if row.fallback == "none":
        raise verification.refusal(row.name, row.number)
    spec = RuntimeSpec(
        row.name,
        row.number,
        cast(Runtime, row.runtime),
        row.format,
        row.servable or row.artifact,
        row.forest,
        Signature.from_json(row.signature),
        row.fallback,
        row.libraries,
    )
    if row.fallback == "isolated":
        spec = spec._replace(runtime="isolated", blob=row.artifact)
    return spec._replace(forest=None) if row.fallback else spec


def start_runtime(spec: RuntimeSpec, store: Store, isolation: Isolation) -> ModelRuntime:
    """Start the runtime that serves the version. Raises `Unavailable`, `Damaged`."""
    path = store.verified_path(spec.blob)
    if spec.runtime == "onnx":
        from service.runtime.onnx_runtime import OnnxRuntime  # a server of forests never imports ONNX Runtime

        return OnnxRuntime(path, spec.signature)
    if spec.runtime == "tflite":
        return TfliteRuntime(path, spec.signature)
    return IsolatedRuntime(isolation, path, spec.signature)


class ModelLoader:
    """Loads versions for predict calls: the `Load` of the pool."""

    def __init__(self, sessions: db.Sessions, store: Store, isolation: Isolation) -> None:
        self._sessions, self._store, self._isolation = sessions, store, isolation

    def __call__(self, version_id: int) -> LoadedModel:
        """Raises `NotReady` when the version was deleted or is not built, `Unavailable` if it cannot load."""
        spec = read_runtime_spec(self._sessions, version_id)
        runtime, waits_for_kernel = self._start_forest(spec)
        kind: AnsweringRuntime = "forest"
        if runtime is None:
            runtime, kind = start_runtime(spec, self._store, self._isolation), spec.runtime
        request_check_if_outdated(self._sessions, version_id, spec)
        return LoadedModel(
            spec.name,
            spec.number,
            kind,
            spec.signature,
            runtime,
            spec.fallback,
            spec.requires_finite and kind != "forest",  # a table refuses such rows itself
            waits_for_kernel,
        )

    def _start_forest(self, spec: RuntimeSpec) -> tuple[ModelRuntime | None, bool]:
        """Start the table of nodes, or return None and whether its kernel is not compiled yet.

        Then, and without a usable table, the version's own runtime answers. See docs/adr/0033.
        """
        if spec.forest is None:
            return None, False
        try:
            from service.runtime import kernel_code  # a server without forests never imports llvmlite
            from service.runtime.forest_runtime import ForestRuntime

            path, kernel = self._store.verified_path(spec.forest), kernel_code.load()
            return ForestRuntime(path, spec.signature, kernel, spec.requires_finite), False
        except NotCompiled:
            return None, True
        except Exception as error:  # a damaged file, or a machine that LLVM does not support
            log.warning("forest.not_loaded", model=spec.name, version=spec.number, error=str(error))
            return None, False


class BulkLoader:
    """Loads versions for batch scoring, in worker processes: they compile the kernel if necessary."""

    def __init__(self, sessions: db.Sessions, store: Store, isolation: Isolation) -> None:
        self._sessions, self._store, self._isolation = sessions, store, isolation

    def __call__(self, version_id: int) -> ModelRuntime:
        """Raises `NotReady` when the version was deleted or is not built, `Unavailable` if it cannot load."""
        spec = read_runtime_spec(self._sessions, version_id)
        runtime = start_bulk_runtime(spec, self._store, self._isolation)
        request_check_if_outdated(self._sessions, version_id, spec)
        return runtime

    def fallback(self, version_id: int) -> str | None:
        """Return how the version is served now, to notice that a loaded one has to be replaced."""
        with db.reading(self._sessions) as session:
            return session.scalar(select(VersionRow.fallback).where(VersionRow.id == version_id))


def request_check_if_outdated(sessions: db.Sessions, version_id: int, spec: RuntimeSpec) -> None:
    """Enqueue a check of a version that was measured with other library versions than the installed ones.

    The server's start requests those of the versions in use; this finds the others.
    """
    if spec.libraries is None or not libraries.changed(json.loads(spec.libraries)):
        return
    try:
        with contextlib.suppress(NotFound, Conflict), sessions.begin() as session:
            verification.request(session, version_id)
    except SQLAlchemyError as error:  # loading does not depend on the check
        log.warning("verification.not_requested", version_id=version_id, error=str(error))


def start_bulk_runtime(spec: RuntimeSpec, store: Store, isolation: Isolation) -> ModelRuntime:
    """Start the fastest runtime: the table of nodes if the build wrote one, otherwise the version's runtime.

    Raises `Unavailable`.
    """
    if spec.forest is None:
        return start_runtime(spec, store, isolation)
    from service.runtime import kernel_code
    from service.runtime.forest_runtime import ForestRuntime

    path, kernel = store.verified_path(spec.forest), kernel_code.load_or_compile()
    return ForestRuntime(path, spec.signature, kernel)


def is_shared(runtime: ModelRuntime) -> bool:
    """Whether lanes may call the runtime at the same time. Of any other, each lane loads its own."""
    return not isinstance(runtime, TfliteRuntime | IsolatedRuntime)
