"""Smaller .tflite files by ai-edge-quantizer, and honest words where that brings nothing."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName

from registry.errors import Invalid, Refused
from registry.rows import Array, Rows
from service.compiler.tflite.metadata import read_metadata
from service.compiler.tflite.operator_versions import update_operator_versions
from service.compiler.tflite.operators import EXACT
from service.compiler.tflite.runtime_versions import codes, min_runtime, min_tflite, named, operators
from service.compiler.tflite.writer import DESCRIPTION

__all__ = ["Quantize", "min_runtime", "min_tflite", "nothing_to_gain", "operators", "quantize"]

Quantize = Literal["none", "float16", "dynamic", "int8"]
CALIBRATED = 500
"""So many calibration rows are looked at for the ranges of int8."""
CALIBRATED_NUMBERS = 1_000_000
"""Fewer rows where there are many features: every tensor of the graph is held for all of them at once."""
WEIGHTED = frozenset(
    {"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL", "EMBEDDING_LOOKUP"}
)
_ALL = qtyping.TFLOperationName.ALL_SUPPORTED
_DENSE = qtyping.TFLOperationName.FULLY_CONNECTED


def nothing_to_gain(tflite: bytes) -> str | None:
    """A sentence for people when a file has nothing that quantization could make smaller."""
    codes(tflite)  # raises for what is no .tflite
    if any(name in WEIGHTED and not out.startswith(EXACT) for name, out in named(tflite)):
        return None
    return (
        "quantization brings nothing here: the file compares, looks up and adds, without layers of weights; "
        "rounding its thresholds would only change the answers"
    )


def quantize(tflite: bytes, how: Quantize, calibration: Rows | None = None) -> bytes:
    """The file with smaller weights; the same bytes for `none`, and where there is `nothing_to_gain`.

    `float16`: weights halved. `dynamic`: int8 weights, activations int8 as they come. `int8`: both, with
    ranges from `calibration` (features in the file's order). Inputs and outputs stay float32. Of files of
    ours only layers of weights are touched: comparisons and look-ups stay exact. Raises `Refused` when int8
    lacks rows, or the quantizer cannot do it; `Invalid` when the rows do not fit or it is no .tflite.
    """
    if how == "none" or nothing_to_gain(tflite) is not None:
        return tflite
    if how == "int8" and (calibration is None or not len(calibration)):
        raise Refused("int8 needs calibration rows: publish the model with an example, or give some")
    feed = _feed(tflite, calibration) if how == "int8" and calibration is not None else []
    quiet = io.StringIO()  # the quantizer prints its progress
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # calibration keeps all tensors, which LiteRT warns of
            made = quantizer.Quantizer(tflite, _recipe(how, _is_ours(tflite)))
            seen = made.calibrate({_key(tflite): feed}, num_threads=1) if made.need_calibration else None
            small = update_operator_versions(
                bytes(made.quantize(seen, enable_progress_report=False).quantized_model)
            )
            Interpreter(model_content=small, num_threads=1).allocate_tensors()
            return small
    except (ValueError, RuntimeError, NotImplementedError, KeyError) as error:
        raise Refused(
            f"this model cannot be quantized as {how}: {(str(error).splitlines() or ['?'])[0]}"
        ) from error


def _is_ours(tflite: bytes) -> bool:
    return bool((schema.Model.GetRootAs(tflite).Description() or b"").decode() == DESCRIPTION)


def _recipe(how: Quantize, ours: bool) -> Any:
    """Of our own files only dense layers, but not the exact ones; of others all that can be."""
    made = recipe_manager.RecipeManager()
    every: dict[str, Any] = {"regex": ".*", "operation_name": _DENSE if ours else _ALL}
    if how == "float16":
        made.add_weight_only_config(**every, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    elif how == "dynamic":
        made.add_dynamic_config(**every, num_bits=8)
    else:
        made.add_static_config(**every, activation_num_bits=8, weight_num_bits=8)
    untouched = [(f"^{EXACT}.*", _DENSE)] if ours else []
    if not ours and how == "int8":
        untouched += [(".*", qtyping.TFLOperationName.INPUT), (".*", qtyping.TFLOperationName.OUTPUT)]
    for regex, operation in untouched:
        made.add_quantization_config(regex, operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return made.get_quantization_recipe()


def _key(tflite: bytes) -> str:
    keys = list(Interpreter(model_content=tflite).get_signature_list())
    if not keys:
        raise Refused("this .tflite file has no signature, which int8 calibration needs")
    return str(keys[0])


def _feed(tflite: bytes, calibration: Rows) -> list[dict[str, Array]]:
    """All rows as one batch, by input name. Raises `Invalid` when rows and inputs do not fit.

    One batch, because the quantizer keeps a moving average of each batch's smallest and largest number: over
    single rows that comes to about the mean, and every answer beyond it would be cut off.
    """
    interpreter = Interpreter(model_content=tflite)
    details = interpreter.get_signature_runner(_key(tflite)).get_input_details()
    if calibration.matrix is None:
        raise Invalid("calibration rows must be numbers")
    most = max(1, min(len(calibration), CALIBRATED, CALIBRATED_NUMBERS // calibration.matrix.shape[1]))
    spread = np.linspace(0, len(calibration) - 1, most).astype(int)  # the rows may be sorted by class
    rows = calibration.matrix[spread].astype(np.float32)
    shapes = {name: [int(n) for n in detail["shape"]][1:] for name, detail in details.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if len(sizes) > 1 and sum(sizes.values()) == rows.shape[1]:
        features = read_metadata(tflite)["features"]
        at = {name: [features.index(name)] for name in sizes} if set(sizes) == set(features) else {}
    else:
        at = {name: list(range(size)) for name, size in sizes.items()}
    if not at or sum(sizes.values()) != rows.shape[1]:
        raise Invalid(
            f"calibration rows have {rows.shape[1]} features, the model takes {sum(sizes.values())}"
        )
    return [{n: rows[:, at[n]].reshape(len(rows), *shapes[n]) for n in sizes}]
