"""What the graphs written here and the runtime that runs them agree on. Imports nothing."""

INPUT_SUFFIX = ".in"
"""Ends the name of a graph input whose feature is called like one of the outputs."""
MISSING_STRING = "\ue000missing"
"""Stands for a missing string, which ONNX tensors cannot hold. Begins with a private-use character."""
