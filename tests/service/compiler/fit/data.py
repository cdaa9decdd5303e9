"""scikit-learn's own data sets, cut into partitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits


def cancer() -> pd.DataFrame:
    """569 rows, 30 features, `y` is malignant (37 %) or benign."""
    found = load_breast_cancer(as_frame=True)
    named = found.data.rename(columns=lambda c: c.replace(" ", "_"))
    return named.assign(y=np.asarray(found.target_names)[found.target])


def digits() -> pd.DataFrame:
    """1797 rows, 64 features, `y` is 0 to 9."""
    found = load_digits(as_frame=True)
    return found.data.assign(y=found.target.astype("int64"))


def diabetes() -> pd.DataFrame:
    """442 rows, 10 features, `y` is a number."""
    found = load_diabetes(as_frame=True)
    return found.data.assign(y=found.target)


def cut(frame: pd.DataFrame, parts: int) -> list[pd.DataFrame]:
    return [frame.iloc[rows].reset_index(drop=True) for rows in np.array_split(np.arange(len(frame)), parts)]


def rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="y")
