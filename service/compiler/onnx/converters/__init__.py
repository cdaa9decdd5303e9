"""Converters that are registered with skl2onnx in place of its own ones."""

from __future__ import annotations

from service.compiler.onnx.converters import simple_imputer, tree_ensembles


def register() -> None:
    tree_ensembles.register()
    simple_imputer.register()
