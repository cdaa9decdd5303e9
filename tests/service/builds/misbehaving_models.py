"""Estimators that misbehave in a child process. Pickled by reference, and imported in children."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin


class MisbehavingModel(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Predicts the first feature; the subclasses misbehave at load or at predict."""

    def fit(self, X: Any, y: Any) -> Self:
        self.n_features_in_ = np.asarray(X).shape[1]
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        values = np.asarray(X)[:, 0].astype(float)
        self.on_predict(values)
        return values

    def on_predict(self, values: Any) -> None:
        pass

    def on_load(self) -> None:
        pass

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.on_load()


class SlowToLoad(MisbehavingModel):
    def on_load(self) -> None:
        time.sleep(60)


class WaitsOnLoad(MisbehavingModel):
    """Writes its process id into a file at load, then waits."""

    def __init__(self, path: str = "") -> None:
        self.file = path

    def on_load(self) -> None:
        partial = Path(f"{self.file}.part")
        partial.write_text(str(os.getpid()))
        partial.rename(self.file)
        time.sleep(60)


class WaitsOnFirstLoad(MisbehavingModel):
    """Waits at its first load, and loads quickly afterwards."""

    def __init__(self, path: str = "") -> None:
        self.file = path

    def on_load(self) -> None:
        if not Path(self.file).exists():
            WaitsOnLoad(self.file).on_load()


class KillsItselfOnLoad(MisbehavingModel):
    def on_load(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class AllocatesTooMuch(MisbehavingModel):
    def on_load(self) -> None:
        self.array_ = np.ones(4 << 30, dtype=np.uint8)


class CrashesOnLoad(MisbehavingModel):
    def on_load(self) -> None:
        ctypes.string_at(0)


class ExitsOnLoad(MisbehavingModel):
    def on_load(self) -> None:
        os._exit(3)


class MisbehavesByFirstValue(MisbehavingModel):
    """The first value selects how it misbehaves at `predict`."""

    def on_predict(self, values: Any) -> None:
        if values[0] == -1:
            time.sleep(60)
        elif values[0] == -2:
            os.kill(os.getpid(), signal.SIGKILL)
        elif values[0] == -3:
            raise ValueError("this model rejects -3")
        elif values[0] == -4:
            raise RuntimeError("this model fails for -4")
        elif values[0] == -5:
            sys.stdout.write("printed by the model")
        elif values[0] == -6:
            [][6]


class CallsOnLoad:
    """Is pickled as a call of `function(model, *arguments)`, which returns the model."""

    def __init__(self, model: Any, function: Any, *arguments: Any) -> None:
        self._call = (function, (model, *arguments))

    def __reduce__(self) -> Any:
        return self._call


def wait_on_load(model: Any, path: str) -> Any:
    WaitsOnLoad(path).on_load()
    return model


def wait_on_first_load(model: Any, path: str) -> Any:
    WaitsOnFirstLoad(path).on_load()
    return model


def crash_on_load(model: Any) -> Any:
    ctypes.string_at(0)
    return model


class HangsInConversion(MisbehavingModel):
    """Predicts correctly, but its conversion to ONNX never ends."""

    def on_load(self) -> None:
        from skl2onnx import update_registered_converter
        from skl2onnx.common.shape_calculator import calculate_linear_regressor_output_shapes as shapes

        def hang(scope: Any, operator: Any, container: Any) -> None:
            time.sleep(600)

        update_registered_converter(HangsInConversion, "HangsInConversion", shapes, hang)
