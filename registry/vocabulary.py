"""Vocabularies that several layers read: one table each.

A new entry is added here and in the code that implements it; everything else (request bodies, command
options, checks, messages) reads these tables. Media types are in `service/formats/media_types.py`, scopes in
`registry/keys.py`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Format = Literal["sklearn-joblib", "onnx", "keras", "tflite"]
Runtime = Literal["onnx", "tflite", "isolated"]
Quantize = Literal["none", "float16", "dynamic", "int8"]
JobKind = Literal["score", "train"]
Engine = Literal["local", "ray"]

FORMATS: tuple[Format, ...] = get_args(Format)
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
QUANTIZE_MODES: tuple[Quantize, ...] = get_args(Quantize)
JOB_KINDS: tuple[JobKind, ...] = get_args(JobKind)
ENGINES: tuple[Engine, ...] = get_args(Engine)

FORMAT_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "sklearn-joblib": (".joblib", ".pkl", ".pickle"),
    "onnx": (".onnx",),
    "keras": (".keras",),
    "tflite": (".tflite",),
}
"""File name endings by format; downloads get the first."""

DEFAULT_MAX_ATTEMPTS = 4
"""Attempts per partition of a job: one run and three retries."""


class TaskKinds(NamedTuple):
    """Kinds of task in the queue. `plan`, `partition`, `assemble` and `ray` belong to jobs."""

    build: str = "build"
    export: str = "export"
    plan: str = "plan"
    partition: str = "partition"
    assemble: str = "assemble"
    ray: str = "ray"


TASK_KINDS = TaskKinds()
