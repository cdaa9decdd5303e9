"""How far answers may be from the measured ones when a runtime is measured again.

As `parity.TOLERANCE`: of a probability absolute, of another number relative to it or to its usual size. Twice
the bound between a model and its served form, since both may have moved.
"""

from __future__ import annotations

from registry.vocabulary import Format, Quantize

TOLERANCES: dict[Format, float] = {"sklearn-joblib": 2e-6, "onnx": 2e-4, "keras": 2e-4, "tflite": 2e-4}
EXPORT_TOLERANCES: dict[Quantize, float] = {"none": 2e-4, "float16": 2e-4, "dynamic": 1e-2, "int8": 1e-2}
"""Of exports. Integer arithmetic rounds to steps, and another release may round to the next one."""
