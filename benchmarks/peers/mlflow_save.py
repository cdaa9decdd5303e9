"""Save the joblib model in MLflow's format, for `mlflow models serve`. Arguments: FOLDER."""

import sys

import mlflow.sklearn
from served import load

mlflow.sklearn.save_model(
    load(),
    sys.argv[1],
    pyfunc_predict_fn="predict_proba",
    serialization_format="cloudpickle",
)
