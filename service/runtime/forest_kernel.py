"""The answers of a tree ensemble, compiled by numba: column steps, descent, sum of the leaves, link.

The descent works on lanes that do not wait for each other. For many rows, a lane is a row of a block: one
tree at a time and one level at a time, so that the tree and the block stay in the fastest cache. For few
rows, a lane is a tree: one row at a time. Both run the same functions and add the leaves of a row in the
order of the trees, so both give the same answers to the last bit.

The code checks no index; `service/runtime/node_file.py` has checked the table. It allocates nothing and
raises nothing, so it needs neither Python nor numba at run time: `kernel_code` stores and loads its machine
code. Only the process that compiles it imports this module.
"""

from __future__ import annotations

import math
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from registry.rows import Array
from service.runtime import kernel_table
from service.runtime.kernel_table import BEYOND_FLOAT32, NOT_FINITE
from service.runtime.numba_cache import inlined

ADD, SUBTRACT, MULTIPLY, DIVIDE, MAXIMUM, _, FILL = range(7)
assert kernel_table.OPERATIONS == ("add", "subtract", "multiply", "divide", "maximum", "minimum", "fill")
_, EXP, FRACTIONS, SIGMOID, SOFTMAX, ISOLATION = range(6)
assert kernel_table.LINKS == ("identity", "exp", "fractions", "sigmoid", "softmax", "isolation")
FLOAT32_MAX, FLOAT64_MAX = float(np.finfo(np.float32).max), float(np.finfo(np.float64).max)

RECORD = numba.from_dtype(kernel_table.RECORD)
SIGNATURE = types.int64(
    types.CPointer(RECORD),
    *(types.uint64, types.int64, types.uint64, types.uint64, types.uint64, types.uint64),
)


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_typing_context: Any, address: Any) -> Any:
    """Convert an address to an untyped pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def data_pointer(_typing_context: Any, array: Any, offset: Any) -> Any:
    """Read the address of an array's data from the array object at the address `array`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        field = builder.add(arguments[0], arguments[1])
        address = builder.load(builder.inttoptr(field, ir.IntType(64).as_pointer()))
        return builder.inttoptr(address, cgutils.voidptr_t)

    return types.voidptr(types.uint64, types.int64), generate


@inlined
def step(operation: int, value: float, number: float) -> float:
    """One column step, as numpy calculates it."""
    if operation == ADD:
        return value + number
    if operation == SUBTRACT:
        return value - number
    if operation == MULTIPLY:
        return value * number
    if operation == DIVIDE:
        return value / number
    if operation == FILL:
        return number if value != value else value
    if value != value or number != number:
        return np.nan
    if operation == MAXIMUM:
        return value if value > number else number
    return value if value < number else number


@inlined
def prepare_row(row: Array, operations: Array, numbers: Array, prepared: Array) -> tuple[bool, bool]:
    """Write the row after the column steps. Returns whether a number is NaN, and beyond float32."""
    has_nan = False
    is_beyond = False
    for f in range(len(row)):
        value = row[f]
        for s in range(len(operations)):
            value = step(operations[s], value, numbers[s, f])
        has_nan |= value != value
        is_beyond |= abs(value) > FLOAT32_MAX
        prepared[f] = value
    return has_nan, is_beyond


@inlined
def feature_value(numbers: Array, lane: int, stride: int, feature: int) -> Any:
    """The feature of a lane. The features of lane `j` begin at `numbers[j * stride]`."""
    return numbers[np.uint64(lane) * np.uint64(stride) + np.uint64(feature)]


@inlined
def descend(
    numbers: Array, stride: int, feature: Array, threshold: Array, left: Array, levels: int, at: Array
) -> None:
    for _ in range(levels):
        for j in range(len(at)):
            i = at[j]
            at[j] = left[i] + np.uint32(feature_value(numbers, j, stride, feature[i]) > threshold[i])


@inlined
def descend_with_nan(
    numbers: Array,
    stride: int,
    feature: Array,
    threshold: Array,
    left: Array,
    missing_right: Array,
    levels: int,
    at: Array,
) -> None:
    for _ in range(levels):
        for j in range(len(at)):
            i = at[j]
            value = feature_value(numbers, j, stride, feature[i])
            right = (value > threshold[i]) | (missing_right[i] & (value != value))
            at[j] = left[i] + np.uint32(right)


@inlined
def descend_to_leaves(
    numbers: Array,
    stride: int,
    feature: Array,
    threshold: Array,
    left: Array,
    missing_right: Array,
    has_nan: bool,
    at: Array,
    unfinished: Array,
) -> None:
    """Descend level by level with the lanes that are not at a leaf. `unfinished` is scratch."""
    count = 0
    for j in range(len(at)):
        unfinished[count] = j
        count += left[at[j]] != at[j]
    while count > 0:
        remaining = 0
        for u in range(count):
            j = unfinished[u]
            i = at[j]
            value = feature_value(numbers, j, stride, feature[i])
            right = value > threshold[i]
            if has_nan:
                right |= missing_right[i] & (value != value)
            i = left[i] + np.uint32(right)
            at[j] = i
            unfinished[remaining] = j
            remaining += left[i] != i
        count = remaining


@inlined
def descend_all(
    numbers: Array,
    stride: int,
    feature: Array,
    threshold: Array,
    left: Array,
    missing_right: Array,
    has_nan: bool,
    shallow: int,
    depth: int,
    at: Array,
    unfinished: Array,
) -> None:
    """Descend with all lanes to `shallow`, and then to their leaves."""
    if has_nan:
        descend_with_nan(numbers, stride, feature, threshold, left, missing_right, shallow, at)
    else:
        descend(numbers, stride, feature, threshold, left, shallow, at)
    if shallow < depth:
        descend_to_leaves(numbers, stride, feature, threshold, left, missing_right, has_nan, at, unfinished)


@inlined
def add(values: Array, at: Array, out: Array) -> None:
    """Add the values of each row's leaf to all outputs.

    The loops for one and two outputs are written out: a general loop costs a tenth of the descent's time.
    """
    if values.shape[1] == 1:
        add_to(values, at, out, 0)
    elif values.shape[1] == 2:
        for r in range(len(at)):
            i = at[r]
            out[r, 0] += values[i, 0]
            out[r, 1] += values[i, 1]
    else:
        for r in range(len(at)):
            for k in range(values.shape[1]):
                out[r, k] += values[at[r], k]


@inlined
def add_to(values: Array, at: Array, out: Array, output: Any) -> None:
    """Add the single value of each row's leaf to one output."""
    for r in range(len(at)):
        out[r, output] += values[at[r], 0]


@inlined
def add_trees(values: Array, at: Array, target: Array, out: Array) -> None:
    """Add the value of each tree's leaf to the outputs of one row."""
    if len(target) > 0:
        for t in range(len(at)):
            out[target[t]] += values[at[t], 0]
    elif values.shape[1] == 2:
        first, second = out[0], out[1]
        for t in range(len(at)):
            first += values[at[t], 0]
            second += values[at[t], 1]
        out[0], out[1] = first, second
    else:
        for t in range(len(at)):
            for k in range(values.shape[1]):
                out[k] += values[at[t], k]


@inlined
def first_largest(numbers: Array, start: int, stop: int) -> int:
    best = start
    for k in range(start + 1, stop):
        if numbers[k] > numbers[best]:
            best = k
    return best - start


@inlined
def is_above(raw: float, cut: float, inclusive: int) -> bool:
    return raw >= cut if inclusive else raw > cut


@inlined
def apply_link(record: Any, blocks: Array, raw: Array, numbers: Array, labels: Array) -> None:
    """Turn the raw answers of one row into its answers, as `NodeTable` defines. `raw` may be `numbers`."""
    if record.link == FRACTIONS:
        start = 0
        for b in range(len(blocks)):
            labels[b] = first_largest(raw, start, start + blocks[b])
            start += blocks[b]
    elif record.link == SIGMOID:
        labels[0] = is_above(raw[0], record.cut, record.inclusive)
        second = 1.0 / (1.0 + math.exp(-record.slope * raw[0]))
        numbers[0] = 1.0 - second
        numbers[1] = second
    elif record.link == SOFTMAX:
        labels[0] = first_largest(raw, 0, len(raw))
        largest = raw[labels[0]]
        total = 0.0
        for k in range(len(raw)):
            numbers[k] = math.exp(record.slope * (raw[k] - largest))
            total += numbers[k]
        for k in range(len(raw)):
            numbers[k] /= total
    elif record.link == EXP:
        for k in range(len(raw)):
            numbers[k] = math.exp(raw[k])
    elif record.link == ISOLATION:
        labels[0] = 1 if is_above(raw[0], record.cut, record.inclusive) else -1
        numbers[0] = record.cut_score - 2.0 ** (-record.slope * raw[0])


@inlined
def finish_row(record: Any, blocks: Array, raw: Array, numbers: Array, labels: Array) -> bool:
    """Finish the sums of one row and apply the link. Returns whether an answer is infinite or NaN."""
    for k in range(len(raw)):
        raw[k] /= record.divisor
    apply_link(record, blocks, raw, numbers, labels)
    is_finite = True
    for k in range(len(numbers)):
        is_finite &= abs(numbers[k]) <= FLOAT64_MAX
    return not is_finite


def kernel(dtype: Any) -> Any:
    """Return the function for thresholds of `dtype`. Float32 ones are of trees that refuse larger numbers."""
    number_bytes = np.dtype(dtype).itemsize
    bits_beyond = BEYOND_FLOAT32 if dtype is np.float32 else 0

    def answer(
        address: Any, rows_at: int, count: int, raw_at: int, numbers_at: int, labels_at: int, scratch_at: int
    ) -> int:
        """Answer `count` rows. Returns `BEYOND_FLOAT32`, `NOT_FINITE`, both or 0.

        `address` is that of the record, the others are those of array objects: `rows` float64 [count, width],
        `raw` float64 [count, outputs], `numbers` float64 [count, answers] (the same array as `raw`, except
        for the sigmoid), `labels` int64 [count, labels], and scratch.
        """
        record = carray(address, (1,))[0]
        offset, trees, width = record.data_offset, record.trees, record.width
        rows = carray(data_pointer(rows_at, offset), (count, width), np.float64)
        raw = carray(data_pointer(raw_at, offset), (count, record.outputs), np.float64)
        numbers = carray(data_pointer(numbers_at, offset), (count, record.answers), np.float64)
        labels = carray(data_pointer(labels_at, offset), (count, record.labels), np.int64)
        feature = carray(pointer(record.feature), (record.nodes,), np.uint32)
        threshold = carray(pointer(record.threshold), (record.nodes,), dtype)
        left = carray(pointer(record.left), (record.nodes,), np.uint32)
        missing = carray(pointer(record.missing_right), (record.nodes * record.has_missing,), np.bool_)
        values = carray(pointer(record.values), (record.nodes, record.leaf_width), np.float64)
        root = carray(pointer(record.root), (trees,), np.uint32)
        target = carray(pointer(record.target), (trees * record.has_target,), np.uint32)
        shallow = carray(pointer(record.shallow), (trees,), np.uint32)
        depth = carray(pointer(record.depth), (trees,), np.uint32)
        base = carray(pointer(record.base), (record.outputs,), np.float64)
        blocks = carray(pointer(record.blocks), (record.block_count,), np.int64)
        operations = carray(pointer(record.operations), (record.steps,), np.int64)
        step_numbers = carray(pointer(record.numbers), (record.steps, width), np.float64)

        few = count < record.few_rows
        block_rows = 1 if few else min(record.block_rows, count)
        lanes = trees if few else block_rows
        one_row = 0 * width  # the stride of lanes that share a row; a literal would be compiled separately
        scratch = data_pointer(scratch_at, offset)
        prepared = carray(scratch, (block_rows, width), dtype)
        flat = carray(scratch, (block_rows * width,), dtype)
        words = carray(scratch, (block_rows * width * number_bytes // 4 + 2 * lanes,), np.uint32)
        at = words[len(words) - 2 * lanes : len(words) - lanes]
        unfinished = words[len(words) - lanes :]

        is_beyond = False
        is_infinite = False
        for start in range(0, count, block_rows):
            size = min(block_rows, count - start)
            has_nan = False
            for r in range(size):
                row_nan, row_beyond = prepare_row(rows[start + r], operations, step_numbers, prepared[r])
                has_nan |= row_nan
                is_beyond |= row_beyond
                for k in range(record.outputs):
                    raw[start + r, k] = base[k]
            has_nan = has_nan and record.has_missing
            if few:
                for t in range(trees):
                    at[t] = root[t]
                descend_all(
                    flat, one_row, feature, threshold, left, missing, has_nan,
                    record.few_shallow, record.few_depth, at, unfinished,
                )  # fmt: skip
                add_trees(values, at, target, raw[start])
            else:
                for t in range(trees):
                    at[:size] = root[t]
                    descend_all(
                        flat, width, feature, threshold, left, missing, has_nan,
                        shallow[t], depth[t], at[:size], unfinished,
                    )  # fmt: skip
                    if record.has_target:
                        add_to(values, at[:size], raw[start : start + size], target[t])
                    else:
                        add(values, at[:size], raw[start : start + size])
            for r in range(start, start + size):
                is_infinite |= finish_row(record, blocks, raw[r], numbers[r], labels[r])
        return (bits_beyond if is_beyond else 0) | (NOT_FINITE if is_infinite else 0)

    return answer


KERNELS = {"answer_float32": kernel(np.float32), "answer_float64": kernel(np.float64)}
"""The functions of the compiled code, by their names in it."""


def compile_kernel() -> llvm.ModuleRef:
    """Compile all functions for this machine's processor, into one module of LLVM."""
    module = llvm.parse_assembly(NO_OWNED_ARRAYS)
    for name, function in KERNELS.items():
        options = {
            "nogil": True,
            "error_model": "numpy",
            "no_cpython_wrapper": True,
            "no_cfunc_wrapper": True,
        }
        compiled = numba.njit(SIGNATURE, **options)(function).overloads[SIGNATURE.args]
        native = compiled.fndesc.llvm_func_name
        assembly = compiled.library.get_llvm_str() + ENTRY.format(name=name, native=native)
        module.link_in(llvm.parse_assembly(assembly))
    called = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    if unknown := called - set(kernel_table.LIBRARY_FUNCTIONS):
        raise RuntimeError(f"the compiled kernel calls functions of Python or numba: {sorted(unknown)}")
    return module


NO_OWNED_ARRAYS = "define void @NRT_MemInfo_call_dtor(ptr %memory) { ret void }"
"""numba calls this function when the last reference to an array's memory is dropped. Here, all belongs to the
caller."""

ENTRY = """
define i64 @{name}(ptr %record, i64 %rows, i64 %count, i64 %raw, i64 %numbers, i64 %labels, i64 %scratch) {{
  %result = alloca i64
  %error = alloca ptr
  %status = call i32 @"{native}"(ptr %result, ptr %error, ptr %record, i64 %rows, i64 %count, i64 %raw,
    i64 %numbers, i64 %labels, i64 %scratch)
  %bits = load i64, ptr %result
  ret i64 %bits
}}
"""
"""A C function around one of numba, which returns its result by reference and a status, which is always 0."""
