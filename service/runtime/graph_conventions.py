"""Conventions between the graphs that the compiler writes and the runtimes that run them."""

INPUT_SUFFIX = ".in"
"""Ends the name of a graph input whose feature has the same name as an output."""
MISSING_STRING = "\ue000missing"
"""Stands for a missing string, which an ONNX tensor cannot hold. Begins with a private-use character."""
