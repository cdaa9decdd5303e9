"""Signatures for tests: at least one per task, with all dtypes and unusual names."""

from __future__ import annotations

from registry.signature import Input, Output, Signature

MIXED = (
    Input("mean radius", "float64", minimum=6.9, maximum=28.1, example=17.99),
    Input("âge.v1", "int64", nullable=True, minimum=18.0, maximum=99.0),
    Input('country | "code" <b>', "string", categories=("FR", "DE"), closed=True),
    Input("plan", "string", nullable=True, categories=("free", "paid")),
    Input("grade", "int64", nullable=True, categories=(1, 2, 3), closed=True),
    Input("active", "bool", example=True),
    Input("ratio", "float32"),
)
NUMBERS = (Input("x0", "float64"), Input("x1", "float64", nullable=True))


def classifier(*classes: object, dtype: str = "string", inputs: tuple[Input, ...] = MIXED) -> Signature:
    label = Output("label", dtype, (-1,), classes)
    return Signature(
        "classification", inputs, (label, Output("probabilities", "float64", (-1, len(classes)), classes))
    )


SIGNATURES = {
    "strings": classifier("benign", "malignant"),
    "integers": classifier(0, 1, 2, dtype="int64"),
    "booleans": classifier(False, True, dtype="bool"),
    "floats": classifier(0.5, 1.0, dtype="float64"),
    "label-only": Signature("classification", NUMBERS, (Output("label", "string", (-1,), ("a", "b")),)),
    "multi-output": Signature(
        "classification",
        NUMBERS,
        (
            Output("y0.label", "int64", (-1,), (0, 1)),
            Output("y0.probabilities", "float64", (-1, 2), (0, 1)),
            Output("y1.label", "string", (-1,), ("x", "y")),
        ),
    ),
    "regression": Signature("regression", MIXED, (Output("value", "float64", (-1,)),)),
    "multi-regression": Signature(
        "regression", NUMBERS, (Output("values", "float64", (-1, 2), ("price", "days to sell")),)
    ),
    "clustering": Signature("clustering", NUMBERS, (Output("cluster", "int64", (-1,)),)),
    "outlier": Signature(
        "outlier", NUMBERS, (Output("label", "int64", (-1,)), Output("score", "float64", (-1,)))
    ),
    "outlier-without-score": Signature("outlier", NUMBERS, (Output("label", "int64", (-1,)),)),
    "transform": Signature("transform", NUMBERS, (Output("vector", "float64", (-1, 3)),)),
    "transform-strings": Signature("transform", NUMBERS, (Output("vector", "string", (-1, 2)),)),
}
