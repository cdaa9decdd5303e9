"""The vocabularies that several layers share, one table each.

A new entry is added here and in the code that implements it. Request bodies, command options, checks and
messages read these tables. Media types are in `registry/media_types.py`. This module imports nothing
heavy, because the command line reads it too.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Format = Literal["sklearn-joblib", "onnx", "keras", "tflite"]
Runtime = Literal["onnx", "tflite", "isolated"]
AnsweringRuntime = Literal["onnx", "tflite", "isolated", "forest"]
"""A runtime of versions, or the table of nodes that answers instead if the build wrote one."""
Quantize = Literal["none", "float16", "dynamic", "int8"]
JobKind = Literal["score", "train"]
Engine = Literal["local", "ray"]
Scope = Literal["predict", "publish", "promote", "edge", "batch", "admin"]
VersionState = Literal[
    "building",  # uploaded; the build is queued or running
    "ready",  # built, and measured to give the same answers as the uploaded model
    "rejected",  # cannot be served; the report contains the reason
    "archived",  # was ready, cannot be used; can be made ready again
]
VerificationState = Literal[
    "agreed",  # the runtimes give the answers that were measured at the build, or that were accepted later
    "pending",  # a check is queued or running
    "differs",  # a runtime gives other answers; `fallback` is how the version is served
]
Fallback = Literal[
    "online",  # the version's runtime answers, not the table of nodes
    "isolated",  # the estimator itself answers, in an isolated process
    "none",  # nothing gives the measured answers: predictions and jobs are refused
]
ExportState = Literal[
    "building",  # accepted; the export is queued or running
    "ready",  # the file is written, and measured to give the same answers as its version
    "rejected",  # no file; the report contains the reason
]
JobState = Literal[
    "queued",  # accepted, not started
    "running",  # in planning, computation or assembly
    "done",  # the output is available, or the trained version is published
    "failed",  # `error` is the reason; finished partitions are kept, `resume` continues
    "cancelled",  # stopped on request; `resume` continues
]
RunOutcome = Literal[
    "started",  # a job was created
    "skipped",  # missed, or the job of the previous run was not finished
    "failed",  # the job could not be created; `reason` is the error
]
AliasAction = Literal[
    "promote",  # moved to a version, also by a build or a training
    "rollback",  # moved back to the version before
    "delete",  # removed
    "rollout",  # the share of devices that receive the version was changed
    "halt",  # the rollout was stopped because too many devices failed
    "traffic",  # the calls were split over versions in another way, or are no longer split
]
Strategy = Literal["partial_fit", "ensemble", "single"]
Sampling = Literal["none", "balanced", "stratified"]

FORMATS: tuple[Format, ...] = get_args(Format)
ANSWERING_RUNTIMES: tuple[AnsweringRuntime, ...] = get_args(AnsweringRuntime)
QUANTIZE_MODES: tuple[Quantize, ...] = get_args(Quantize)
FALLBACK_FORMATS: tuple[Format, ...] = ("sklearn-joblib",)
"""Formats whose uploads run in isolation when they cannot be converted."""
JOB_KINDS: tuple[JobKind, ...] = get_args(JobKind)
ENGINES: tuple[Engine, ...] = get_args(Engine)
JOB_STATES: tuple[JobState, ...] = get_args(JobState)
JOB_END_STATES: tuple[JobState, ...] = ("done", "failed", "cancelled")

SCORE: Final = "score"  # the kinds of jobs, for comparisons
TRAIN: Final = "train"
LOCAL: Final = "local"  # the engines of jobs
RAY: Final = "ray"
BUILDING: Final = "building"  # the states of versions and exports
READY: Final = "ready"
REJECTED: Final = "rejected"
ARCHIVED: Final = "archived"  # versions only
AGREED: Final = "agreed"  # the states of verifications
PENDING: Final = "pending"
DIFFERS: Final = "differs"

SCOPES: dict[Scope, str] = {
    "predict": "run online predictions",
    "publish": "upload artifacts, publish and edit versions, export",
    "promote": "move, roll back, split and delete aliases",
    "edge": "download files for devices, and report from devices",
    "batch": "create and manage jobs and schedules",
    "admin": "all of these, and manage keys, deletions and garbage collection",
}
"""The permissions of a key, by scope."""

STRATEGIES: dict[Strategy, str] = {
    "partial_fit": "one model, fitted partition by partition",
    "ensemble": "one model per partition, then merged",
    "single": "one fit over all rows, which must fit into memory",
}
"""How a training fits its estimator to the partitions."""

SAMPLINGS: dict[Sampling, str] = {
    "none": "all rows",
    "balanced": "as many rows of each class as of the rarest one",
    "stratified": "the same share of each class in every partition",
}
"""Which rows a training uses, and how it distributes them to the partitions."""

FORMAT_SUFFIXES: dict[str, tuple[str, ...]] = {
    "sklearn-joblib": (".joblib", ".pkl", ".pickle"),
    "onnx": (".onnx",),
    "keras": (".keras",),
    "tflite": (".tflite",),
}
"""File name endings of each format. Downloads get the first one."""

DEFAULT_MAX_ATTEMPTS = 4
"""Attempts per partition of a job: the first run and three retries."""
ATTEMPTS_LIMIT = 20
"""The largest `max_attempts` of a job."""
MAX_PARTITIONS = 1000
"""The largest number of partitions that a training distributes its rows to."""
DEFAULT_VALIDATION, MAX_VALIDATION = 0.2, 0.9
"""Share of a training's rows that is held out to measure the model."""

# The kinds of tasks in the queue, and the subject of each.
BUILD_TASK = "build"  # a version's id
EXPORT_TASK = "export"  # an export's id
VERIFY_TASK = "verify"  # a version's id: measure it and its exports again
PLAN_TASK = "plan"  # a job's id
PARTITION_TASK = "partition"  # job id/stage/number
ASSEMBLE_TASK = "assemble"  # a job's id
RAY_TASK = "ray"  # a job's id: all partitions of a stage that run on Ray share this task

SUPERVISOR_TASKS = (BUILD_TASK, EXPORT_TASK, VERIFY_TASK)  # claimed by the build supervisor of a server
JOB_TASKS = (PLAN_TASK, PARTITION_TASK, ASSEMBLE_TASK, RAY_TASK)  # claimed by workers
