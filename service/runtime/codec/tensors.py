"""Named tensors to rows, and outputs to named tensors, as the Open Inference Protocol defines them.

It knows no transport: `inference` reads and writes the bodies of its REST form. The protocol's datatypes are
converted to a feature's type where no value changes; the values are checked by `columns`, as in every format.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from registry.errors import Invalid, invalid_field
from registry.rows import Array, Outputs, Rows
from registry.schema import class_key
from registry.signature import DType, Output, Signature
from service.runtime.codec.columns import Column, Faults, read_column, rows_or_raise, show

MATRIX = "input"
"""The advertised name of the tensor that holds all features of a numeric model."""

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "BYTES": np.dtype("O"),
}
"""The protocol's datatypes, in the byte order of its binary form. BYTES holds strings."""

DATATYPE_OF: dict[DType, str] = {
    "float64": "FP64",
    "float32": "FP32",
    "int64": "INT64",
    "bool": "BOOL",
    "string": "BYTES",
}
_NUMBERS = "FP64, FP32, FP16, INT8 to INT64 or UINT8 to UINT64"


class TensorHead(NamedTuple):
    """An input tensor without its values."""

    name: str
    datatype: str
    shape: Sequence[int]

    @property
    def label(self) -> str:
        return f"the input {show(self.name)}"


TensorValues = Array | list[Any]
"""The values of a tensor, flat, in row-major order: an array, or values as in JSON, where None is missing."""


class Layout(NamedTuple):
    """Which tensor holds which feature: `sources` has one index into the tensors for each column.

    `is_matrix`: the one tensor holds all columns, `[rows, features]`.
    """

    rows: int
    sources: Sequence[int]
    is_matrix: bool


class OutputTensor(NamedTuple):
    name: str
    datatype: str
    values: Array

    @property
    def shape(self) -> list[int]:
        return list(self.values.shape)


class NumberMatrix:
    """Converts tensors of numbers at once, for a signature of float64 and int64 features.

    It accepts only what `Column.numbers` accepts for each column; `convert` returns None for all else.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._nullable = np.array([c.nullable for c in columns])
        self._integers = [j for j, c in enumerate(columns) if c.dtype == "int64"]
        self._low = np.array([columns[j].min_int for j in self._integers], dtype=np.float64)
        self._end = np.array([columns[j].max_int + 1 for j in self._integers], dtype=np.float64)

    @staticmethod
    def fits(columns: Sequence[Column]) -> bool:
        return all(c.dtype in ("float64", "int64") and c.closed_categories is None for c in columns)

    def convert(self, layout: Layout, values: Sequence[TensorValues]) -> Array | None:
        arrays = [v for v in values if not isinstance(v, list) and v.dtype.kind in "iuf"]
        if len(arrays) < len(values):
            return None
        matrix = np.empty((layout.rows, len(layout.sources)), dtype=np.float64)
        if layout.is_matrix:
            matrix[:] = arrays[0].reshape(matrix.shape)
        else:
            for j, source in enumerate(layout.sources):
                matrix[:, j] = arrays[source]
        finite = np.isfinite(matrix)
        if not finite.all():
            if np.isinf(matrix).any() or not (finite | self._nullable).all():
                return None
            matrix[~finite] = np.nan
        return matrix if self._has_integers(matrix) else None

    def _has_integers(self, matrix: Array) -> bool:
        """Report whether the columns of integers hold integers within their bounds, or NaN."""
        if not self._integers:
            return True
        numbers = matrix[:, self._integers]
        in_bounds = (numbers >= self._low) & (numbers < self._end) & (numbers == np.floor(numbers))
        return bool((in_bounds | np.isnan(numbers)).all())


class TensorRows:
    """A decoder for one signature."""

    def __init__(self, columns: Sequence[Column], max_rows: int) -> None:
        self._columns = columns
        self._max_rows = max_rows
        self._numeric = all(c.dtype != "string" for c in columns)
        self._positions = {c.name: j for j, c in enumerate(columns)}
        self._number_matrix = NumberMatrix(columns) if NumberMatrix.fits(columns) else None

    def layout(self, heads: Sequence[TensorHead], by_column: bool) -> Layout:
        """Assign the tensors to the features, and check their names, datatypes and shapes.

        `by_column`: each tensor is a column of a data frame, so none is a matrix. Raises `Invalid`. The
        values of an accepted layout are bounded: they are at most `max_rows` for each feature.
        """
        for head in heads:
            self._check_head(head)
        if not heads:
            raise invalid_field("inputs", f"there are no inputs; {self._usage()}", "one input or more")
        if len(heads) == 1 and not by_column and self._is_matrix(heads[0]):
            return Layout(heads[0].shape[0], [0] * len(self._columns), True)
        sources = self._match_names(heads, by_column)
        return Layout(self._common_rows(heads), sources, False)

    def rows(self, heads: Sequence[TensorHead], layout: Layout, values: Sequence[TensorValues]) -> Rows:
        """Convert the values of the tensors, one entry each. Raises `Invalid` with every fault."""
        if self._number_matrix is not None:
            matrix = self._number_matrix.convert(layout, values)
            if matrix is not None:
                return Rows(matrix=matrix)
        faults = Faults()
        width = len(self._columns)
        for column, source in zip(self._columns, layout.sources, strict=True):
            _check_datatype(column, heads[source], layout.is_matrix, faults)
            if layout.is_matrix:  # one fault: all columns have the same datatype
                faults.raise_any()
        faults.raise_any()
        arrays = []
        for j, (column, source) in enumerate(zip(self._columns, layout.sources, strict=True)):
            column_values = values[source][j::width] if layout.is_matrix else values[source]
            arrays.append(_convert(column, column_values, faults))
        return rows_or_raise(self._columns, arrays, layout.rows, faults)

    def _check_head(self, head: TensorHead) -> None:
        if head.datatype not in DATATYPES:
            message = f"{head.label} has the datatype {show(head.datatype)}; send {', '.join(DATATYPES)}"
            raise invalid_field(head.name, message, ", ".join(DATATYPES))
        shape = list(head.shape)
        if not shape or len(shape) > 2 or any(size < 0 for size in shape):
            raise self._shape_error(head)
        if not 1 <= shape[0] <= self._max_rows:
            message = f"{head.label} has {shape[0]} rows, shape {shape}; send 1 to {self._max_rows}"
            raise invalid_field(head.name, message, f"1 to {self._max_rows} rows")

    def _is_matrix(self, head: TensorHead) -> bool:
        """Report whether the only tensor holds all features. Raises `Invalid` if only its shape is wrong."""
        width = len(self._columns)
        if width == 1:
            return list(head.shape[1:]) in ([], [1])
        if not self._numeric:
            return False
        if len(head.shape) == 2 and head.shape[1] == width:
            return True
        if head.name in self._positions:
            return False
        raise self._shape_error(head)

    def _match_names(self, heads: Sequence[TensorHead], by_column: bool) -> list[int]:
        faults = Faults()
        sources = {head.name: index for index, head in enumerate(heads)}
        missing = [c for c in self._columns if c.name not in sources]
        for name, count in Counter(head.name for head in heads).items():
            if count > 1:
                faults.add(f"the input {show(name)} occurs {count} times; send it once", None, name)
        faults.raise_any()
        for head in heads:
            if head.name not in self._positions:
                faults.add_unknown("is not an input of this model", head.name, [c.name for c in missing])
        for column in missing:
            datatype = DATATYPE_OF[column.dtype]
            message = f"the input {show(column.name)} is missing; send {datatype} of shape [rows]"
            if self._numeric and not by_column:
                message += f", or all features as one tensor [rows, {len(self._columns)}]"
            faults.add(message, None, column.name, datatype)
        faults.raise_any()
        return [sources[c.name] for c in self._columns]

    def _common_rows(self, heads: Sequence[TensorHead]) -> int:
        first = heads[0]
        for head in heads:
            if list(head.shape[1:]) not in ([], [1]):
                message = f"{head.label} has shape {list(head.shape)}; send one value per row, [rows]"
                raise invalid_field(head.name, message, "[rows] or [rows, 1]")
            if head.shape[0] != first.shape[0]:
                message = (
                    f"{head.label} has {head.shape[0]} rows, but {show(first.name)} has {first.shape[0]}; "
                    "send as many in each input"
                )
                raise invalid_field(head.name, message, f"{first.shape[0]} rows")
        return first.shape[0]

    def _shape_error(self, head: TensorHead) -> Invalid:
        message = f"{head.label} has shape {show(list(head.shape))}; {self._usage()}"
        return invalid_field(head.name, message)

    def _usage(self) -> str:
        each = "one input per feature, [rows] or [rows, 1]"
        if not self._numeric:
            return f"send {each}"
        return f"send all features as one tensor [rows, {len(self._columns)}], or {each}"


def _check_datatype(column: Column, head: TensorHead, in_matrix: bool, faults: Faults) -> None:
    """Add a fault if the feature cannot have the datatype.

    A matrix has one datatype for all features, so a boolean feature may be 0 and 1 in it.
    """
    kind = DATATYPES[head.datatype].kind
    accepted, expected = "iuf", _NUMBERS
    if column.dtype == "string":
        accepted, expected = "O", "BYTES"
    elif column.dtype == "bool":
        accepted, expected = ("biuf", f"BOOL, {_NUMBERS}") if in_matrix else ("b", "BOOL")
    if kind not in accepted:
        feature = f"the feature {show(column.name)}" if in_matrix else "it"
        message = f"{head.label} is {head.datatype}; {feature} is {column.dtype}, send {expected}"
        faults.add(message, None, head.name, expected)


def _convert(column: Column, values: TensorValues, faults: Faults) -> Array | None:
    """Convert one column; None if a fault was added."""
    if isinstance(values, list):
        return read_column(column, values, _read_value, faults)
    array = None
    if column.dtype == "bool":
        if values.dtype.kind == "b":
            array = column.array(values)
            array = array if column.in_categories(array) else None
    else:
        array = column.numbers(values)
    return read_column(column, values.tolist(), _read_value, faults) if array is None else array


def _read_value(value: Any, column: Column) -> Any:
    """NaN is null. In a boolean column 0 and 1 are booleans."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if column.dtype == "bool" and not isinstance(value, bool) and value in (0, 1):
        return bool(value)
    return value


class TensorOutputs:
    """An encoder for one signature. The names are the signature's; `values` is called `value`."""

    def __init__(self, signature: Signature) -> None:
        self._outputs = {_output_name(o): o for o in signature.outputs}
        self.names = list(self._outputs)

    def tensor(self, name: str, outputs: Outputs) -> OutputTensor:
        """Return the output called `name`, which is one of `names`."""
        spec = self._outputs[name]
        datatype = DATATYPE_OF[spec.dtype]
        return OutputTensor(name, datatype, np.asarray(outputs[spec.name], dtype=DATATYPES[datatype]))


def _output_name(output: Output) -> str:
    return "value" if output.name == "values" else output.name


def describe_inputs(signature: Signature) -> list[dict[str, Any]]:
    """Return the metadata of the inputs: one tensor for a numeric model, else one for each feature.

    The parameter `features` of the one tensor is the JSON list of the features in their order.
    """
    if signature.numeric:
        names = [i.name for i in signature.inputs]
        parameters = {"features": json.dumps(names, ensure_ascii=False)}
        shape = [-1, len(names)]
        return [{"name": MATRIX, "datatype": "FP64", "shape": shape, "parameters": parameters}]
    return [{"name": i.name, "datatype": DATATYPE_OF[i.dtype], "shape": [-1]} for i in signature.inputs]


def describe_outputs(signature: Signature) -> list[dict[str, Any]]:
    """Return the metadata of the outputs. The parameter `classes` is the JSON list of the columns' names."""
    described = []
    for output in signature.outputs:
        tensor: dict[str, Any] = {
            "name": _output_name(output),
            "datatype": DATATYPE_OF[output.dtype],
            "shape": list(output.shape),
        }
        if output.classes and len(output.shape) > 1:
            classes = [class_key(c) for c in output.classes]
            tensor["parameters"] = {"classes": json.dumps(classes, ensure_ascii=False)}
        described.append(tensor)
    return described
