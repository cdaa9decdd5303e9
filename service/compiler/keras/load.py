"""Load Keras models in safe mode, run them, and convert them to .tflite with TensorFlow.

TensorFlow is the optional extra `keras`. Only this module imports it, in a build child, when it loads the
first model. The .tflite has the form of all .tflite files that Trivium writes: one float32 input `input`
[rows, features], and outputs named as in the signature. The features are the model's inputs one after the
other, each flattened in C order.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import Refused, summarize_error
from registry.rows import Array, Outputs, Rows
from registry.signature import Signature
from service.compiler.keras import heads as keras_heads
from service.compiler.keras import keras_gate, padding
from service.compiler.keras.heads import OutputHead
from service.compiler.keras.unrolled import unrolled
from service.compiler.tflite import stamp

BATCH = 256
_SETTINGS = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": os.devnull + "/keras",  # ignores and changes no settings of this machine
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # the same numbers on every processor
    "CUDA_VISIBLE_DEVICES": "-1",
}
_UNSUPPORTED_OPS = re.compile(r"^(?:TF Select|Custom) ops: (.+)$", re.MULTILINE)


class KerasModel:
    """A loaded model: runs it and converts it to .tflite."""

    def __init__(self, path: Path, scratch: Path, memory_mb: int) -> None:
        """Raises `Refused`, naming the fault, unless the file is a complete model of Keras' own layers.

        Keras and TensorFlow write their temporary files under the directory `scratch`.
        """
        self.archive = keras_gate.check_archive(path, memory_mb)
        self._scratch = scratch
        self._keras, self._tf = _libraries()
        self.versions = {"keras": self._keras.__version__, "tensorflow": self._tf.__version__}
        try:
            with _quiet(), _folder(scratch) as folder:
                link = folder / "model.keras"  # Keras requires the suffix, which stored blobs lack
                link.symlink_to(path.absolute())
                self.model = self._keras.saving.load_model(link, compile=False, safe_mode=True)
        except MemoryError:
            raise
        except Exception as error:  # Keras raises many kinds of errors for a wrong archive
            raise Refused(f"Keras cannot load the model: {summarize_error(error)}") from error
        self.kind = type(self.model).__name__
        _refuse_stateful_layers(self.model)
        self.warnings = _use_float32(self.model, self._keras)
        self.inputs = _inputs(self.model)
        self.sizes = [math.prod(i.shape[1:]) for i in self.inputs]
        self.padding = padding.describe_padding(self.model, self.inputs)

    def run(self, rows: Rows, heads: tuple[OutputHead, ...], signature: Signature) -> Outputs:
        """Run the Keras model itself, with each number in its input's own type.

        Returns the outputs of the signature.
        """
        matrix = as_matrix(rows)
        raw: list[list[Array]] = []
        for start in range(0, len(matrix), BATCH):
            inputs = self._arrange(self._tf.constant(matrix[start : start + BATCH]))
            raw.append([np.asarray(t) for t in self._flat(self.model(inputs, training=False))])
        outputs = [np.concatenate(parts) for parts in zip(*raw, strict=True)]
        return keras_heads.to_outputs(outputs, heads, signature)

    def to_tflite(self, heads: tuple[OutputHead, ...], signature: Signature) -> bytes:
        """Convert to a float32 .tflite with the signature's names.

        Raises `Refused`, naming the operators that LiteRT does not have.
        """
        flat = self._flattened(heads, signature.task)
        features = sum(self.sizes)
        spec = self._tf.TensorSpec((None, features), "float32", name="input")
        builtin = {"supported_ops": [self._tf.lite.OpsSet.TFLITE_BUILTINS]}
        try:
            with _quiet(), _folder(self._scratch) as folder, unrolled(self.model, self._keras):
                file = folder / "model.tflite"
                flat(np.zeros((2, features), np.float32))
                flat.export(file, format="litert", verbose=False, input_signature=[spec], target_spec=builtin)
                names = keras_heads.graph_output_names(len(signature.outputs))
                return stamp.stamp(file.read_bytes(), names, signature, self.kind)
        except MemoryError:
            raise
        except Exception as error:  # the converter does not define its own errors
            raise Refused(_conversion_fault(error)) from error

    def _arrange(self, flat: Any) -> Any:
        """Split [rows, features], float64 or float32, into the model's inputs, each of its own type."""
        tf = self._tf
        parts = tf.split(flat, self.sizes, axis=1) if len(self.sizes) > 1 else [flat]
        shaped = []
        for part, tensor in zip(parts, self.inputs, strict=True):
            part = part if len(tensor.shape) == 2 else tf.reshape(part, (-1, *tensor.shape[1:]))
            shaped.append(part if part.dtype == tensor.dtype else tf.cast(part, tensor.dtype))
        structure = getattr(self.model, "_inputs_struct", None)
        if structure is None or len(shaped) == 1:
            return shaped[0] if len(shaped) == 1 else shaped
        return self._keras.tree.pack_sequence_as(structure, shaped)

    def _flat(self, answered: Any) -> list[Any]:
        return list(self._keras.tree.flatten(answered))

    def _flattened(self, heads: tuple[OutputHead, ...], task: str) -> Any:
        tf, outer = self._tf, self
        base: Any = self._keras.Model

        class Flattened(base):  # type: ignore[misc]
            def __init__(self, model: Any) -> None:
                super().__init__()
                self.model = model

            def call(self, rows: Any) -> Any:
                raw = outer._flat(self.model(outer._arrange(rows), training=False))
                return keras_heads.to_graph_outputs(tf, raw, heads, task)

        return Flattened(self.model)


def as_matrix(rows: Rows) -> Array:
    """float64 [rows, features]."""
    columns = rows.columns
    matrix = rows.matrix if columns is None else np.column_stack(columns)
    assert matrix is not None
    return matrix


def _libraries() -> tuple[Any, Any]:
    os.environ.update(_SETTINGS)
    gc.disable()  # collections during the imports cost a quarter of their time, and find next to nothing
    try:
        with _quiet():
            import keras
            import tensorflow
    except ModuleNotFoundError as error:
        raise Refused(
            "the format keras needs TensorFlow, which is not installed: install the extra keras "
            "(pip install 'trivium[keras]')"
        ) from error
    finally:
        gc.enable()
    if keras.backend.backend() != "tensorflow":
        raise Refused(f"Keras runs on {keras.backend.backend()}; the format keras needs TensorFlow")
    with contextlib.suppress(RuntimeError):  # already set when the first model was loaded
        tensorflow.config.threading.set_intra_op_parallelism_threads(1)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    return keras, tensorflow


def _inputs(model: Any) -> list[Any]:
    """The input tensors. Raises `Refused`, naming the input, unless only the number of rows is open."""
    inputs = list(getattr(model, "inputs", None) or [])
    if not inputs:
        raise Refused("the shape of the model's input is unknown; add keras.Input(shape) as its first layer")
    for tensor in inputs:
        shape = tuple(tensor.shape)
        if tensor.dtype == "string":
            raise Refused(f"the input {tensor.name!r} takes strings, which LiteRT does not support")
        if len(shape) < 1 or shape[0] is not None:
            raise Refused(
                f"the input {tensor.name!r} takes {shape[0]} rows at a time; save it with batch_size=None"
            )
        if None in shape[1:]:
            raise Refused(f"the input {tensor.name!r} has the open shape {list(shape)}; give every dimension")
    return inputs


def _refuse_stateful_layers(model: Any) -> None:
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False) is True:
            raise Refused(
                f"the layer {layer.name!r} is stateful: a row's answer would depend on earlier calls; build "
                "the model with stateful=False, load its weights, and save it"
            )


def _use_float32(model: Any, keras: Any) -> list[str]:
    """Let mixed-precision layers compute in float32, as LiteRT does. Their weights are float32 already."""
    mixed = [layer for layer in model._flatten_layers() if layer.dtype_policy.name.startswith("mixed_")]
    names = sorted({layer.dtype_policy.name for layer in mixed})
    for layer in mixed:
        layer.dtype_policy = keras.dtype_policies.DTypePolicy("float32")
    return [f"trained with {name}: measured and served in float32" for name in names]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard the output of TensorFlow's C++ code, which does not go through Python's streams."""
    saved = [(fd, os.dup(fd)) for fd in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd, _ in saved:
            os.dup2(null, fd)
        yield
    finally:
        for fd, copy in saved:
            os.dup2(copy, fd)
            os.close(copy)
        os.close(null)


@contextlib.contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """A directory under `scratch` for all temporary files: the supervisor deletes `scratch` after a kill."""
    before, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        tempfile.tempdir = before


def _conversion_fault(error: Exception) -> str:
    unsupported = sorted({name for line in _UNSUPPORTED_OPS.findall(str(error)) for name in line.split(", ")})
    if unsupported:
        return f"the model uses {', '.join(unsupported)}, which is not among LiteRT's own operators"
    return f"the model cannot be converted to .tflite: {summarize_error(error)}"
