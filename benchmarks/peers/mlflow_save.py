"""Save the joblib model in MLflow's format, for `mlflow models serve`. Arguments: FOLDER."""

import json
import sys
from typing import Any

import mlflow.sklearn
import pandas as pd
from mlflow.models import infer_signature
from served import COLUMNS, FOLDER, load

options: dict[str, Any] = {}
if COLUMNS is not None:  # with a signature, MLflow gives columns their types
    rows = json.loads((FOLDER / "rows.json").read_text())
    options["signature"] = infer_signature(pd.DataFrame(rows).astype(COLUMNS))
mlflow.sklearn.save_model(
    load(),
    sys.argv[1],
    pyfunc_predict_fn="predict_proba",
    serialization_format="cloudpickle",
    **options,
)
