"""Estimators made of estimators, and the one table of what can be compiled."""

from __future__ import annotations

from typing import Any

from sklearn import pipeline

from registry.build import forests
from registry.build.tflite import linear
from registry.build.tflite.answer import Answer, Context, Converter
from registry.build.tflite.columns import Columns
from registry.build.tflite.trees import forest
from registry.errors import Refused


def compile_model(context: Context, model: Any, columns: Columns) -> Answer:
    """Raises `Refused` by name for what has no TFLite form."""
    converter = CONVERTERS.get(type(model))
    if converter is None:
        raise Refused(f"{type(model).__name__} has no TFLite form; these do: {', '.join(supported())}")
    return converter(context, model, columns)


def supported() -> list[str]:
    return sorted({t.__name__ for t in CONVERTERS})


def _pipeline(context: Context, model: Any, columns: Columns) -> Answer:
    answer = Answer(columns=columns)
    for _, step in model.steps:
        if step is not None and step != "passthrough":
            assert answer.columns is not None
            answer = context.compile(context, step, answer.columns)
    return answer


def _forest(context: Context, model: Any, columns: Columns) -> Answer:
    return forest(context, forests.flatten(model), columns)


CONVERTERS: dict[type, Converter] = {
    **dict.fromkeys(forests.FAMILIES, _forest),
    **linear.CONVERTERS,
    pipeline.Pipeline: _pipeline,
}
