"""The signature a user passes with a model: whole, or only what he corrects.

    {"task": "...",                                  which of the tasks the model can be served as
     "inputs": [{"name": "age", "dtype": "int64"}],  by name; what is left out stays as found
     "outputs": [{"name": "values", "classes": ["north", "south"]}]}

Inputs of a model that knows no feature names, published without an example, name its features in order.
`closed` and the outputs' dtypes and shapes are measured: giving them is no fault, contradicting them is.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from registry.errors import Refused
from registry.signature import DType, Input, Output, Scalar, Task


class GivenInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    dtype: DType | None = None
    nullable: bool | None = None
    categories: tuple[Scalar, ...] | None = None
    closed: bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    example: Scalar | None = None


class GivenOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    dtype: DType | None = None
    shape: tuple[int, ...] | None = None
    classes: tuple[Scalar, ...] | None = None


class Corrections(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    task: Task | None = None
    inputs: tuple[GivenInput, ...] = ()
    outputs: tuple[GivenOutput, ...] = ()

    @classmethod
    def read(cls, value: dict[str, Any] | None) -> Corrections:
        """Raises `Refused`, naming the place, when `value` is no signature or part of one."""
        try:
            corrections = msgspec.convert(value or {}, cls)
        except msgspec.ValidationError as error:
            raise Refused(f"the given signature is not one: {error}") from error
        names = corrections.names
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise Refused(f"the given signature names the input {twice[0]!r} more than once")
        return corrections

    @property
    def names(self) -> list[str]:
        return [i.name for i in self.inputs]

    def dtype(self, name: str) -> DType | None:
        return next((i.dtype for i in self.inputs if i.name == name), None)

    def require_known(self, names: list[str]) -> None:
        if unknown := [n for n in self.names if n not in names]:
            raise Refused(
                f"the given signature names the input {unknown[0]!r}, which is no feature of the model"
            )

    def apply(self, inputs: tuple[Input, ...]) -> tuple[Input, ...]:
        """`inputs` with everything that was given for them."""
        by_name = {i.name: i for i in self.inputs}
        return tuple(_apply(i, by_name[i.name]) if i.name in by_name else i for i in inputs)

    def pick_task(self, model: str, possible: tuple[Task, ...]) -> Task:
        if self.task is None:
            return possible[0]
        if self.task not in possible:
            raise Refused(
                f"the given task is {self.task}, but {model} can be served as {' or '.join(possible)}"
            )
        return self.task

    def check_outputs(self, outputs: tuple[Output, ...]) -> tuple[Output, ...]:
        """`outputs` with the targets' names that were given. Raises `Refused` for a contradiction."""
        found = {o.name: o for o in outputs}
        for wanted in self.outputs:
            if wanted.name not in found:
                raise Refused(
                    f"the given signature names the output {wanted.name!r}; the model has {', '.join(found)}"
                )
            found[wanted.name] = _check(found[wanted.name], wanted)
        return tuple(found.values())


def _apply(found: Input, given: GivenInput) -> Input:
    fields: tuple[Literal["dtype", "nullable", "categories", "minimum", "maximum", "example"], ...]
    fields = ("dtype", "nullable", "categories", "minimum", "maximum", "example")
    changed = {f: getattr(given, f) for f in fields if getattr(given, f) is not None}
    if given.categories is not None:
        kind = str if changed.get("dtype", found.dtype) == "string" else (bool, int, float)
        if not all(isinstance(v, kind) for v in given.categories):
            raise Refused(f"the given categories of {given.name!r} are not all of its dtype")
    return msgspec.structs.replace(found, **changed)


def _check(found: Output, given: GivenOutput) -> Output:
    for field in ("dtype", "shape"):
        wanted, actual = getattr(given, field), getattr(found, field)
        if wanted is not None and wanted != actual:
            raise Refused(
                f"the given {field} of the output {given.name!r} is {wanted}; the model gives {actual}"
            )
    if given.classes is None or given.classes == found.classes:
        return found
    if found.name == "values" and len(given.classes) == found.shape[1] == len(set(given.classes)):
        return msgspec.structs.replace(found, classes=tuple(str(c) for c in given.classes))
    raise Refused(
        f"the given classes of the output {given.name!r} are not the model's: {list(found.classes or ())}"
    )
