"""Keras models: loaded in safe mode, answered by themselves, and written as .tflite by TensorFlow.

TensorFlow is the extra `keras`; it is imported here alone, in a build child, with the first model. The
.tflite has the form that all of ours have: one float32 input `input` [rows, features] and outputs named as
the signature's. The features are the model's inputs one after the other, each flattened in C order.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import Refused
from registry.rows import Array, Outputs, Rows
from registry.signature import Signature
from service.compiler.keras import heads as keras_heads
from service.compiler.keras import keras_gate
from service.compiler.keras.heads import Head
from service.compiler.tflite import stamp

BATCH = 256
_SETTINGS = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": os.devnull + "/keras",  # no settings of this machine, and none written to it
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # the same numbers on every processor
    "CUDA_VISIBLE_DEVICES": "-1",
}
_LACKING = re.compile(r"^(?:TF Select|Custom) ops: (.+)$", re.MULTILINE)


class KerasModel:
    """A loaded model: its own answers, and its .tflite form."""

    def __init__(self, path: Path, scratch: Path, memory_mb: int) -> None:
        """Raises `Refused`, saying why, for what is no whole .keras file of Keras' own layers.

        Everything that Keras and TensorFlow write on the way is written under the directory `scratch`.
        """
        self.archive = keras_gate.check(path, memory_mb)
        self._scratch = scratch
        self._keras, self._tf = _libraries()
        self.versions = {"keras": self._keras.__version__, "tensorflow": self._tf.__version__}
        try:
            with _quiet(), _folder(scratch) as folder:
                named = folder / "model.keras"  # Keras goes by the name; a blob of the store has none
                named.symlink_to(path.absolute())
                self.model = self._keras.saving.load_model(named, compile=False, safe_mode=True)
        except MemoryError:
            raise
        except Exception as error:  # Keras raises anything for a configuration or weights that do not fit
            raise Refused(f"Keras cannot load the model: {_sentence(error)}") from error
        self.kind = type(self.model).__name__
        self.warnings = _single_precision(self.model, self._keras)
        self.inputs = _inputs(self.model)
        self.sizes = [math.prod(i.shape[1:]) for i in self.inputs]

    def run(self, rows: Rows, heads: tuple[Head, ...], signature: Signature) -> Outputs:
        """The model's own answers, as the signature has them."""
        matrix = as_float32(rows)
        raw: list[list[Array]] = []
        for start in range(0, len(matrix), BATCH):
            given = self._arrange(self._tf.constant(matrix[start : start + BATCH]))
            raw.append([np.asarray(t) for t in self._flat(self.model(given, training=False))])
        outputs = [np.concatenate(parts) for parts in zip(*raw, strict=True)]
        return keras_heads.answer(outputs, heads, signature)

    def to_tflite(self, heads: tuple[Head, ...], signature: Signature) -> bytes:
        """float32, with the signature's names inside. Raises `Refused` naming the operators LiteRT lacks."""
        _unroll(self.model)
        flat = self._flattened(heads, signature.task)
        features = sum(self.sizes)
        spec = self._tf.TensorSpec((None, features), "float32", name="input")
        builtin = {"supported_ops": [self._tf.lite.OpsSet.TFLITE_BUILTINS]}
        try:
            with _quiet(), _folder(self._scratch) as folder:
                file = folder / "model.tflite"
                flat(np.zeros((2, features), np.float32))
                flat.export(file, format="litert", verbose=False, input_signature=[spec], target_spec=builtin)
                names = keras_heads.names(len(signature.outputs))
                return stamp.stamp(file.read_bytes(), names, signature, self.kind)
        except MemoryError:
            raise
        except Exception as error:  # the converter has no errors of its own kind
            raise Refused(_why_not(error)) from error

    def _arrange(self, flat: Any) -> Any:
        """[rows, features] as the model's inputs."""
        tf = self._tf
        parts = tf.split(flat, self.sizes, axis=1) if len(self.sizes) > 1 else [flat]
        shaped = []
        for part, given in zip(parts, self.inputs, strict=True):
            part = part if len(given.shape) == 2 else tf.reshape(part, (-1, *given.shape[1:]))
            shaped.append(part if given.dtype == "float32" else tf.cast(part, given.dtype))
        structure = getattr(self.model, "_inputs_struct", None)
        if structure is None or len(shaped) == 1:
            return shaped[0] if len(shaped) == 1 else shaped
        return self._keras.tree.pack_sequence_as(structure, shaped)

    def _flat(self, answered: Any) -> list[Any]:
        return list(self._keras.tree.flatten(answered))

    def _flattened(self, heads: tuple[Head, ...], task: str) -> Any:
        tf, outer = self._tf, self
        base: Any = self._keras.Model

        class Flattened(base):  # type: ignore[misc]
            def __init__(self, model: Any) -> None:
                super().__init__()
                self.model = model

            def call(self, rows: Any) -> Any:
                raw = outer._flat(self.model(outer._arrange(rows), training=False))
                return keras_heads.graph(tf, raw, heads, task)

        return Flattened(self.model)


def as_float32(rows: Rows) -> Array:
    """[rows, features], as the graph takes them."""
    columns = rows.columns
    matrix = rows.matrix if columns is None else np.column_stack(columns)
    assert matrix is not None
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(matrix, dtype=np.float32)


def _libraries() -> tuple[Any, Any]:
    os.environ.update(_SETTINGS)
    try:
        with _quiet():
            import keras
            import tensorflow
    except ModuleNotFoundError as error:
        raise Refused(
            "the format keras needs TensorFlow, which is not installed here: install the extra keras "
            "(pip install 'trivium[keras]')"
        ) from error
    if keras.backend.backend() != "tensorflow":
        raise Refused(f"Keras runs on {keras.backend.backend()} here; the format keras needs TensorFlow")
    with contextlib.suppress(RuntimeError):  # it was set with the first model
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    return keras, tensorflow


def _inputs(model: Any) -> list[Any]:
    """Tensors with the whole shape known but for the rows. Raises `Refused`, naming the input."""
    inputs = list(getattr(model, "inputs", None) or [])
    if not inputs:
        raise Refused("the model does not tell the shape of its input; begin it with keras.Input(shape)")
    for given in inputs:
        shape = tuple(given.shape)
        if given.dtype == "string":
            raise Refused(f"the input {given.name!r} takes strings, for which LiteRT has no operators")
        if len(shape) < 1 or shape[0] is not None:
            raise Refused(
                f"the input {given.name!r} takes {shape[0]} rows at a time; save it with batch_size=None"
            )
        if None in shape[1:]:
            raise Refused(f"the input {given.name!r} has the open shape {list(shape)}; give every dimension")
    return inputs


def _single_precision(model: Any, keras: Any) -> list[str]:
    """Layers that compute in half precision hold float32 weights, and so do LiteRT's operators."""
    mixed = [layer for layer in model._flatten_layers() if layer.dtype_policy.name.startswith("mixed_")]
    names = sorted({layer.dtype_policy.name for layer in mixed})
    for layer in mixed:
        layer.dtype_policy = keras.dtype_policies.DTypePolicy("float32")
    return [f"trained with {name}: measured and served in float32" for name in names]


def _unroll(model: Any) -> None:
    """Recurrent layers step by step: LiteRT has no tensor lists when the rows may be any number."""
    for layer in model._flatten_layers():
        if hasattr(layer, "unroll"):
            layer.unroll = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow's C++ talks past Python's streams: nothing of it reaches the server's log."""
    saved = [(fd, os.dup(fd)) for fd in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd, _ in saved:
            os.dup2(nowhere, fd)
        yield
    finally:
        for fd, copy in saved:
            os.dup2(copy, fd)
            os.close(copy)
        os.close(nowhere)


@contextlib.contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """A directory under `scratch`, where all temporary files go: it is swept when a child is killed."""
    before, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        tempfile.tempdir = before


def _why_not(error: Exception) -> str:
    lacking = sorted({name for line in _LACKING.findall(str(error)) for name in line.split(", ")})
    if lacking:
        return f"the model uses {', '.join(lacking)}, which is not among LiteRT's own operators"
    return f"the model does not convert to .tflite: {_sentence(error)}"


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
