"""Models in memory. Nothing here phones home: ONNX Runtime would, from a thread it starts when imported."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
