"""Estimators that do what a child must survive being given. Pickled by reference, imported in children."""

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


class Odd(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Predicts the first feature; the subclasses misbehave when they are loaded or asked."""

    def fit(self, X: Any, y: Any) -> Self:
        self.n_features_in_ = np.asarray(X).shape[1]
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        values = np.asarray(X)[:, 0].astype(float)
        self.asked(values)
        return values

    def asked(self, values: Any) -> None:
        pass

    def loaded(self) -> None:
        pass

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.loaded()


class SlowToLoad(Odd):
    def loaded(self) -> None:
        time.sleep(60)


class Says(Odd):
    """Writes its pid into a file when it is loaded, then waits."""

    def __init__(self, file: str = "") -> None:
        self.file = file

    def loaded(self) -> None:
        partial = Path(f"{self.file}.part")
        partial.write_text(str(os.getpid()))
        partial.rename(self.file)
        time.sleep(60)


class Once(Odd):
    """Waits when it is loaded for the first time, and loads quickly afterwards."""

    def __init__(self, file: str = "") -> None:
        self.file = file

    def loaded(self) -> None:
        if not Path(self.file).exists():
            Says(self.file).loaded()


class KillsItself(Odd):
    def loaded(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hungry(Odd):
    def loaded(self) -> None:
        self.much_ = np.ones(4 << 30, dtype=np.uint8)


class Segfaults(Odd):
    def loaded(self) -> None:
        ctypes.string_at(0)


class Exits(Odd):
    def loaded(self) -> None:
        os._exit(3)


class Obeys(Odd):
    """Does at `predict` what the first value says."""

    def asked(self, values: Any) -> None:
        if values[0] == -1:
            time.sleep(60)
        elif values[0] == -2:
            os.kill(os.getpid(), signal.SIGKILL)
        elif values[0] == -3:
            raise ValueError("this model knows no -3")
        elif values[0] == -4:
            raise RuntimeError("it broke")
        elif values[0] == -5:
            sys.stdout.write("chatter on stdout")


class Loading:
    """Pickles as a call of `then(model, *given)`: what is loaded is the model, and something happens."""

    def __init__(self, model: Any, then: Any, *given: Any) -> None:
        self._call = (then, (model, *given))

    def __reduce__(self) -> Any:
        return self._call


def wait(model: Any, file: str) -> Any:
    Says(file).loaded()
    return model


def wait_once(model: Any, file: str) -> Any:
    Once(file).loaded()
    return model


def crash(model: Any) -> Any:
    ctypes.string_at(0)
    return model


class HangsInConversion(Odd):
    """Answers as it should, but its converter to ONNX never comes to an end."""

    def loaded(self) -> None:
        from skl2onnx import update_registered_converter
        from skl2onnx.common.shape_calculator import calculate_linear_regressor_output_shapes as shapes

        def hang(scope: Any, operator: Any, container: Any) -> None:
            time.sleep(600)

        update_registered_converter(HangsInConversion, "HangsInConversion", shapes, hang)
