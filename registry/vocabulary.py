"""The vocabularies that several layers share, one table each.

A new entry is added here and in the code that implements it. Request bodies, command options, checks and
messages read these tables. Media types are in `service/formats/`. This module imports nothing heavy, because
the command line reads it too.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Format = Literal["sklearn-joblib", "onnx", "keras", "tflite"]
Runtime = Literal["onnx", "tflite", "isolated"]
Quantize = Literal["none", "float16", "dynamic", "int8"]
JobKind = Literal["score", "train"]
Engine = Literal["local", "ray"]
Scope = Literal["predict", "publish", "promote", "edge", "batch", "admin"]

FORMATS: tuple[Format, ...] = get_args(Format)
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
QUANTIZE_MODES: tuple[Quantize, ...] = get_args(Quantize)
JOB_KINDS: tuple[JobKind, ...] = get_args(JobKind)
ENGINES: tuple[Engine, ...] = get_args(Engine)

SCORE: Final = "score"  # the kinds of jobs, for comparisons
TRAIN: Final = "train"
LOCAL: Final = "local"  # the engines of jobs
RAY: Final = "ray"

SCOPES: dict[Scope, str] = {
    "predict": "run online predictions",
    "publish": "upload artifacts, publish and edit versions, export",
    "promote": "move, roll back and delete aliases",
    "edge": "download files for devices, and report from devices",
    "batch": "create and manage jobs and schedules",
    "admin": "all of these, and manage keys, deletions and garbage collection",
}
"""The permissions of a key, by scope."""

FORMAT_SUFFIXES: dict[str, tuple[str, ...]] = {
    "sklearn-joblib": (".joblib", ".pkl", ".pickle"),
    "onnx": (".onnx",),
    "keras": (".keras",),
    "tflite": (".tflite",),
}
"""File name endings of each format. Downloads get the first one."""

DEFAULT_MAX_ATTEMPTS = 4
"""Attempts per partition of a job: the first run and three retries."""

# The kinds of tasks in the queue, and the subject of each.
BUILD_TASK = "build"  # a version's id
EXPORT_TASK = "export"  # an export's id
PLAN_TASK = "plan"  # a job's id
PARTITION_TASK = "partition"  # job id/stage/number
ASSEMBLE_TASK = "assemble"  # a job's id
RAY_TASK = "ray"  # a job's id: all partitions of a stage that run on Ray share this task

SUPERVISOR_TASKS = (BUILD_TASK, EXPORT_TASK)  # claimed by the build supervisor of a server
JOB_TASKS = (PLAN_TASK, PARTITION_TASK, ASSEMBLE_TASK, RAY_TASK)  # claimed by workers
