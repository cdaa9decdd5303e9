"""The signature that a user passes with a model: complete, or only the fields that he corrects.

    {"task": "...",                                  one of the tasks that the model can be served as
     "inputs": [{"name": "age", "dtype": "int64"}],  by name; fields left out keep their measured values
     "outputs": [{"name": "values", "classes": ["north", "south"]}]}

For a model without feature names, published without an example, the inputs name its features in order.
`closed`, `enforced` and the outputs' dtypes and shapes are measured: they may be given, so that a whole
signature can be passed, but change nothing: other values are a warning, and another dtype or shape of an
output is rejected.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from registry.errors import Refused
from registry.signature import DType, Input, Output, Scalar, Task
from service.runtime.codec.columns import show


class InputCorrection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    dtype: DType | None = None
    nullable: bool | None = None
    categories: tuple[Scalar, ...] | None = None
    closed: bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    example: Scalar | None = None
    enforced: bool | None = None


class OutputCorrection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    dtype: DType | None = None
    shape: tuple[int, ...] | None = None
    classes: tuple[Scalar, ...] | None = None


class Corrections(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    task: Task | None = None
    inputs: tuple[InputCorrection, ...] = ()
    outputs: tuple[OutputCorrection, ...] = ()

    @classmethod
    def read(cls, value: dict[str, Any] | None) -> Corrections:
        """Raises `Refused`, naming the place, when `value` is not a signature or part of one."""
        try:
            corrections = msgspec.convert(value or {}, cls)
        except msgspec.ValidationError as error:
            raise Refused(f"the given signature cannot be read: {error}") from error
        names = corrections.names
        if repeated := sorted({n for n in names if names.count(n) > 1}):
            raise Refused(f"the given signature names the input {show(repeated[0])} more than once")
        return corrections

    @property
    def names(self) -> list[str]:
        return [i.name for i in self.inputs]

    @property
    def with_nullable(self) -> set[str]:
        """The inputs of which the user states whether they may be missing."""
        return {i.name for i in self.inputs if i.nullable is not None}

    def dtype(self, name: str) -> DType | None:
        return next((i.dtype for i in self.inputs if i.name == name), None)

    def require_features(self, names: list[str]) -> None:
        """Raise `Refused` when the given inputs name anything but these features."""
        if unknown := [n for n in self.names if n not in names]:
            raise Refused(
                f"the given signature names the input {show(unknown[0])}, which is not a feature of the model"
            )

    def apply(self, inputs: tuple[Input, ...]) -> tuple[Input, ...]:
        """`inputs` with the given fields replaced."""
        by_name = {i.name: i for i in self.inputs}
        return tuple(_corrected_input(i, by_name[i.name]) if i.name in by_name else i for i in inputs)

    def without_effect(self, inputs: tuple[Input, ...]) -> list[str]:
        """Warnings about given fields that are measured, and were measured otherwise in `inputs`."""
        measured = {i.name: i for i in inputs}
        return [
            f'"{field}" of the input {show(c.name)} is measured and stays {_as_json(not given)}; '
            f"the given {_as_json(given)} has no effect"
            for c in self.inputs
            for field, given in (("closed", c.closed), ("enforced", c.enforced))
            if given is not None and c.name in measured and given != getattr(measured[c.name], field)
        ]

    def pick_task(self, model: str, possible: tuple[Task, ...]) -> Task:
        """The given task, else the first possible one. Raises `Refused` for a task that is not possible."""
        if self.task is None:
            return possible[0]
        if self.task not in possible:
            raise Refused(
                f"the given task is {self.task}, but {model} can be served as {' or '.join(possible)}"
            )
        return self.task

    def check_outputs(self, outputs: tuple[Output, ...]) -> tuple[Output, ...]:
        """`outputs` with the given names of targets. Raises `Refused` for a contradiction."""
        by_name = {o.name: o for o in outputs}
        for correction in self.outputs:
            if correction.name not in by_name:
                raise Refused(
                    f"the given signature names the output {show(correction.name)}; "
                    f"the model has {', '.join(by_name)}"
                )
            by_name[correction.name] = _corrected_output(by_name[correction.name], correction)
        return tuple(by_name.values())


def _as_json(value: bool) -> str:
    return "true" if value else "false"


def _corrected_input(feature: Input, correction: InputCorrection) -> Input:
    fields: tuple[Literal["dtype", "nullable", "categories", "minimum", "maximum", "example"], ...]
    fields = ("dtype", "nullable", "categories", "minimum", "maximum", "example")
    changed = {f: getattr(correction, f) for f in fields if getattr(correction, f) is not None}
    if correction.categories is not None:
        kind = str if changed.get("dtype", feature.dtype) == "string" else (bool, int, float)
        if not all(isinstance(v, kind) for v in correction.categories):
            raise Refused(f"the given categories of {show(feature.name)} are not all of its dtype")
    return msgspec.structs.replace(feature, **changed)


def _corrected_output(output: Output, correction: OutputCorrection) -> Output:
    for field in ("dtype", "shape"):
        value, measured = getattr(correction, field), getattr(output, field)
        if value is not None and value != measured:
            raise Refused(
                f"the given {field} of the output {show(output.name)} is {value}; "
                f"the model returns {measured}"
            )
    classes = correction.classes
    if classes is None or classes == output.classes:
        return output
    if output.name == "values" and len(classes) == output.shape[1] == len(set(classes)):
        return msgspec.structs.replace(output, classes=tuple(str(c) for c in classes))
    raise Refused(
        f"the given classes of the output {show(output.name)} are not the model's: "
        f"{list(output.classes or ())}"
    )
