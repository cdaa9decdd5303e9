"""Models in memory. ONNX Runtime's telemetry, which starts a thread at import, is switched off."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
