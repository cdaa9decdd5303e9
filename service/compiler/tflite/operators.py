"""The .tflite operators that the compiler uses, as methods that compute the shapes of their results."""

from __future__ import annotations

import numpy as np

from service.compiler.tflite.writer import ROWS, GraphTensor, GraphWriter

Operand = GraphTensor | float
EXACT = "exact"
"""Prefix of the name of a dense layer that must not be quantized, because it is a look-up table."""
_ROWS = 1_000_003  # stands for the number of rows where numpy broadcasts shapes


class Graph(GraphWriter):
    """A graph with operators. Python numbers become float32 constants; broadcasting is that of numpy."""

    def _operand(self, value: Operand) -> GraphTensor:
        return value if isinstance(value, GraphTensor) else self.constant(value)

    def _both(self, code: str, a: Operand, b: Operand, table: str, dtype: str | None = None) -> GraphTensor:
        left, right = self._operand(a), self._operand(b)
        return self.operator(
            code, [left, right], broadcast(left.shape, right.shape), dtype or left.dtype, table=table
        )

    def add(self, a: Operand, b: Operand) -> GraphTensor:
        return self._both("ADD", a, b, "AddOptions")

    def sub(self, a: Operand, b: Operand) -> GraphTensor:
        return self._both("SUB", a, b, "SubOptions")

    def mul(self, a: Operand, b: Operand) -> GraphTensor:
        return self._both("MUL", a, b, "MulOptions")

    def div(self, a: Operand, b: Operand) -> GraphTensor:
        return self._both("DIV", a, b, "DivOptions")

    def minimum(self, a: Operand, b: Operand) -> GraphTensor:
        return self._both("MINIMUM", a, b, "MaximumMinimumOptions")

    def maximum(self, a: Operand, b: Operand) -> GraphTensor:
        return self._both("MAXIMUM", a, b, "MaximumMinimumOptions")

    def greater(self, a: Operand, b: Operand) -> GraphTensor:
        return self._both("GREATER", a, b, "GreaterOptions", "bool")

    def greater_equal(self, a: Operand, b: Operand) -> GraphTensor:
        return self._both("GREATER_EQUAL", a, b, "GreaterEqualOptions", "bool")

    def equal(self, a: Operand, b: Operand) -> GraphTensor:
        return self._both("EQUAL", a, b, "EqualOptions", "bool")

    def is_nan(self, a: GraphTensor) -> GraphTensor:
        return self._both("NOT_EQUAL", a, a, "NotEqualOptions", "bool")

    def select(self, condition: GraphTensor, a: Operand, b: Operand) -> GraphTensor:
        left, right = self._operand(a), self._operand(b)
        shape = broadcast(condition.shape, broadcast(left.shape, right.shape))
        operands = [condition, left, right]
        return self.operator("SELECT_V2", operands, shape, left.dtype, table="SelectV2Options")

    def _one(self, code: str, a: GraphTensor, table: str | None = None) -> GraphTensor:
        return self.operator(code, [a], a.shape, a.dtype, table=table)

    def neg(self, a: GraphTensor) -> GraphTensor:
        return self._one("NEG", a, "NegOptions")

    def abs(self, a: GraphTensor) -> GraphTensor:
        return self._one("ABS", a, "AbsOptions")

    def exp(self, a: GraphTensor) -> GraphTensor:
        return self._one("EXP", a, "ExpOptions")

    def log(self, a: GraphTensor) -> GraphTensor:
        return self._one("LOG", a)

    def sqrt(self, a: GraphTensor) -> GraphTensor:
        return self._one("SQRT", a)

    def square(self, a: GraphTensor) -> GraphTensor:
        return self._one("SQUARE", a, "SquareOptions")

    def logistic(self, a: GraphTensor) -> GraphTensor:
        return self._one("LOGISTIC", a)

    def tanh(self, a: GraphTensor) -> GraphTensor:
        return self._one("TANH", a)

    def relu(self, a: GraphTensor) -> GraphTensor:
        return self._one("RELU", a)

    def softmax(self, a: GraphTensor) -> GraphTensor:
        return self.operator("SOFTMAX", [a], a.shape, a.dtype, table="SoftmaxOptions", beta=1.0)

    def cast(self, a: GraphTensor, dtype: str) -> GraphTensor:
        return self.operator("CAST", [a], a.shape, dtype, table="CastOptions") if a.dtype != dtype else a

    def gather(self, a: GraphTensor, indices: GraphTensor, axis: int = 0) -> GraphTensor:
        shape = (*a.shape[:axis], *indices.shape, *a.shape[axis + 1 :])
        return self.operator("GATHER", [a, indices], shape, a.dtype, table="GatherOptions", axis=axis)

    def gather_in_row(self, a: GraphTensor, indices: GraphTensor) -> GraphTensor:
        """`a` [rows, n] at `indices` [rows, m], row by row."""
        return self.operator(
            "GATHER", [a, indices], indices.shape, a.dtype, 5, table="GatherOptions", axis=1, batchDims=1
        )

    def take(self, a: GraphTensor, columns: list[int]) -> GraphTensor:
        """Columns of [rows, n]."""
        if columns == list(range(a.width)):
            return a
        return self.gather(a, self.constant(columns, "int32"), axis=1)

    def concat(self, parts: list[GraphTensor], axis: int = 1) -> GraphTensor:
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(p.shape[axis] for p in parts)
        return self.operator(
            "CONCATENATION", parts, tuple(shape), parts[0].dtype, table="ConcatenationOptions", axis=axis
        )

    def reshape(self, a: GraphTensor, shape: tuple[int, ...]) -> GraphTensor:
        target = self.constant(shape, "int32")
        return self.operator(
            "RESHAPE", [a, target], shape, a.dtype, table="ReshapeOptions", newShape=list(shape)
        )

    def total(self, a: GraphTensor, axis: int, keep: bool = False) -> GraphTensor:
        return self._reduce("SUM", a, axis, keep)

    def largest(self, a: GraphTensor, axis: int, keep: bool = False) -> GraphTensor:
        return self._reduce("REDUCE_MAX", a, axis, keep)

    def _reduce(self, code: str, a: GraphTensor, axis: int, keep: bool) -> GraphTensor:
        shape = (*a.shape[:axis], *((1,) if keep else ()), *a.shape[axis + 1 :])
        axes = self.constant([axis], "int32")
        return self.operator(code, [a, axes], shape, a.dtype, table="ReducerOptions", keepDims=keep)

    def argmax(self, a: GraphTensor) -> GraphTensor:
        """[rows, k] -> int64 [rows]: the index of the first largest number."""
        axis = self.constant(1, "int32")
        int64 = 4  # TensorType
        return self.operator("ARG_MAX", [a, axis], (ROWS,), "int64", table="ArgMaxOptions", outputType=int64)

    def dense(
        self, a: GraphTensor, weights: object, bias: object, relu: bool = False, exact: bool = False
    ) -> GraphTensor:
        """`a` [rows, n] times `weights` [n, m] plus `bias` [m]. `exact`: is never quantized."""
        matrix = np.asarray(weights, dtype=np.float64).T
        added = np.broadcast_to(np.asarray(bias, dtype=np.float64), matrix.shape[:1])
        return self.operator(
            "FULLY_CONNECTED",
            [a, self.constant(matrix), self.constant(added)],
            (ROWS, matrix.shape[0]),
            "float32",
            table="FullyConnectedOptions",
            name=EXACT if exact else None,
            fusedActivationFunction=1 if relu else 0,  # ActivationFunctionType.RELU, NONE
        )


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    shapes = [tuple(_ROWS if n == ROWS else n for n in shape) for shape in (a, b)]
    return tuple(ROWS if n == _ROWS else n for n in np.broadcast_shapes(*shapes))
