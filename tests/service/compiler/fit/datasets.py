"""Data sets of scikit-learn as data frames with the target `y`, and how to split them into partitions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits


def cancer() -> pd.DataFrame:
    """569 rows, 30 features; `y` is malignant (37 %) or benign."""
    dataset = load_breast_cancer(as_frame=True)
    features = dataset.data.rename(columns=lambda c: c.replace(" ", "_"))
    return features.assign(y=np.asarray(dataset.target_names)[dataset.target])


def digits() -> pd.DataFrame:
    """1797 rows, 64 features; `y` is 0 to 9."""
    dataset = load_digits(as_frame=True)
    return dataset.data.assign(y=dataset.target.astype("int64"))


def diabetes() -> pd.DataFrame:
    """442 rows, 10 features; `y` is a number."""
    dataset = load_diabetes(as_frame=True)
    return dataset.data.assign(y=dataset.target)


def split_frame(frame: pd.DataFrame, parts: int) -> list[pd.DataFrame]:
    """Split into consecutive parts of about equal length."""
    return [frame.iloc[rows].reset_index(drop=True) for rows in np.array_split(np.arange(len(frame)), parts)]


def without_target(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="y")
