"""Write models of XGBoost, LightGBM and CatBoost as ONNX, rows, and each library's own answers to them.

README.md has the commands and the versions. Needs nothing of Trivium.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from onnxmltools import convert_lightgbm, convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from sklearn.datasets import load_iris
from xgboost import XGBClassifier

FOLDER = Path(__file__).parent
FLOWERS = load_iris(as_frame=True).data.set_axis(["f0", "f1", "f2", "f3"], axis=1).astype("float32")
SPECIES = load_iris().target
INPUT = [("input", FloatTensorType([None, 4]))]


def write_answers(name: str, model: Any, rows: pd.DataFrame) -> None:
    answers = pd.DataFrame({"label": np.asarray(model.predict(rows)).reshape(-1)})
    for label, column in zip(model.classes_, model.predict_proba(rows).T, strict=True):
        answers[f"probability.{label}"] = column
    answers.to_csv(FOLDER / f"{name}.answers.csv", index=False)


def main() -> None:
    rows = FLOWERS.mask(np.random.default_rng(0).random(FLOWERS.shape) < 0.1)
    xgboost = XGBClassifier(n_estimators=4, max_depth=3).fit(rows, SPECIES)
    lightgbm = LGBMClassifier(n_estimators=4, verbose=-1).fit(rows, SPECIES)
    catboost = CatBoostClassifier(iterations=4, depth=3, verbose=False).fit(rows, SPECIES)
    (FOLDER / "xgboost.onnx").write_bytes(convert_xgboost(xgboost, initial_types=INPUT).SerializeToString())
    graph = convert_lightgbm(lightgbm, initial_types=INPUT, zipmap=False)
    (FOLDER / "lightgbm.onnx").write_bytes(graph.SerializeToString())
    catboost.save_model(str(FOLDER / "catboost.onnx"), format="onnx")
    sample = rows.iloc[::5]
    sample.to_csv(FOLDER / "rows.csv", index=False)
    for name, model in (("xgboost", xgboost), ("lightgbm", lightgbm), ("catboost", catboost)):
        write_answers(name, model, sample)


if __name__ == "__main__":
    main()
