"""Make .tflite files smaller with ai-edge-quantizer, and report where that gains nothing."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName

from registry.errors import Invalid, Refused
from registry.rows import Array, Rows
from registry.vocabulary import Quantize
from service.compiler.tflite.calibration import evenly_spaced
from service.compiler.tflite.metadata import read_metadata
from service.compiler.tflite.operator_versions import update_operator_versions
from service.compiler.tflite.operators import EXACT
from service.compiler.tflite.quantize_modes import MODES
from service.compiler.tflite.runtime_versions import named_operators, operator_codes
from service.compiler.tflite.writer import DESCRIPTION

MAX_CALIBRATION_ROWS = 500
MAX_CALIBRATION_NUMBERS = 1_000_000
"""Rows with many features are fewer: calibration holds every tensor of the graph for all rows at once."""
OPERATORS_WITH_WEIGHTS = frozenset(
    {"FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL", "EMBEDDING_LOOKUP"}
)
_ALL = qtyping.TFLOperationName.ALL_SUPPORTED
_DENSE = qtyping.TFLOperationName.FULLY_CONNECTED


def nothing_to_gain(tflite: bytes) -> str | None:
    """A sentence for the report if quantization cannot make the file smaller, else None."""
    operator_codes(tflite)  # raises `Invalid` if the bytes are not a .tflite file
    quantizable = (
        n in OPERATORS_WITH_WEIGHTS and not o.startswith(EXACT) for n, o in named_operators(tflite)
    )
    if any(quantizable):
        return None
    return (
        "quantization gains nothing: the file has comparisons, look-ups and sums, but no layers with "
        "weights; rounding its thresholds would only change the answers"
    )


def quantize(tflite: bytes, mode: Quantize, calibration: Rows | None = None) -> bytes:
    """Quantize a file. Inputs and outputs stay float32.

    `float16` halves the weights. `dynamic` has int8 weights and quantizes activations at run time. `int8`
    quantizes both, with ranges from `calibration` (features in the order of the file). Returns the
    same bytes for `none` and where there is `nothing_to_gain`. Of files that Trivium wrote, only layers with
    weights change; comparisons and look-ups stay exact.

    Raises `Refused` when calibration rows are missing or the quantizer fails, and `Invalid` when the rows do
    not fit the file or the bytes are not a .tflite file.
    """
    if mode == "none" or nothing_to_gain(tflite) is not None:
        return tflite
    batches = []
    if MODES[mode].needs_calibration:
        if calibration is None or not len(calibration):
            raise Refused(f"{mode} needs calibration rows: publish the model with an example, or give rows")
        batches = _calibration_batches(tflite, calibration)
    ignored = io.StringIO()  # the quantizer prints its progress
    try:
        with (
            contextlib.redirect_stdout(ignored),
            contextlib.redirect_stderr(ignored),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # LiteRT warns that calibration keeps all tensors
            return _run_quantizer(tflite, mode, batches)
    except (ValueError, RuntimeError, NotImplementedError, KeyError) as error:
        fault = (str(error).splitlines() or ["?"])[0]
        raise Refused(f"this model cannot be quantized as {mode}: {fault}") from error


def _run_quantizer(tflite: bytes, mode: Quantize, batches: list[dict[str, Array]]) -> bytes:
    run = quantizer.Quantizer(tflite, _recipe(mode, _is_written_by_trivium(tflite)))
    ranges = None
    if run.need_calibration:
        ranges = run.calibrate({_signature_key(tflite): batches}, num_threads=1)
    quantized = run.quantize(ranges, enable_progress_report=False).quantized_model
    content = update_operator_versions(bytes(quantized))
    Interpreter(model_content=content, num_threads=1).allocate_tensors()
    return content


def _is_written_by_trivium(tflite: bytes) -> bool:
    return bool((schema.Model.GetRootAs(tflite).Description() or b"").decode() == DESCRIPTION)


def _recipe(mode: Quantize, written_by_trivium: bool) -> Any:
    """Of Trivium's own files, quantize the dense layers that are not exact; of others, all operators."""
    recipe = recipe_manager.RecipeManager()
    MODES[mode].add_recipe(recipe, regex=".*", operation_name=_DENSE if written_by_trivium else _ALL)
    excluded = [(f"^{EXACT}.*", _DENSE)] if written_by_trivium else []
    if not written_by_trivium and MODES[mode].needs_calibration:  # inputs and outputs stay float32
        excluded += [(".*", qtyping.TFLOperationName.INPUT), (".*", qtyping.TFLOperationName.OUTPUT)]
    for regex, operation in excluded:
        recipe.add_quantization_config(regex, operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return recipe.get_quantization_recipe()


def _signature_key(tflite: bytes) -> str:
    keys = list(Interpreter(model_content=tflite).get_signature_list())
    if not keys:
        raise Refused("this .tflite file lacks a signature, which calibration needs")
    return str(keys[0])


def _calibration_batches(tflite: bytes, calibration: Rows) -> list[dict[str, Array]]:
    """One batch of all rows, by input name. Raises `Invalid` when the rows do not fit the inputs.

    The quantizer keeps a moving average of the smallest and largest number of each batch. With batches of one
    row, that is about the mean, and larger activations would be clipped.
    """
    interpreter = Interpreter(model_content=tflite)
    details = interpreter.get_signature_runner(_signature_key(tflite)).get_input_details()
    if calibration.matrix is None:
        raise Invalid("calibration rows must be numbers")
    features = calibration.matrix.shape[1]
    limit = max(1, min(MAX_CALIBRATION_ROWS, MAX_CALIBRATION_NUMBERS // features))
    rows = calibration.matrix[evenly_spaced(len(calibration), limit)].astype(np.float32)
    shapes = {name: [int(n) for n in detail["shape"]][1:] for name, detail in details.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if sum(sizes.values()) != features or not (columns := _columns_of_inputs(tflite, sizes)):
        raise Invalid(f"calibration rows have {features} features, the model has {sum(sizes.values())}")
    return [{n: rows[:, columns[n]].reshape(len(rows), *shapes[n]) for n in sizes}]


def _columns_of_inputs(tflite: bytes, sizes: dict[str, int]) -> dict[str, list[int]]:
    """The columns of each input. Several inputs must be the features; otherwise the result is empty."""
    if len(sizes) == 1:
        return {name: list(range(size)) for name, size in sizes.items()}
    features = read_metadata(tflite)["features"]
    return {name: [features.index(name)] for name in sizes} if set(sizes) == set(features) else {}
