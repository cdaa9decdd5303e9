"""Conventions between the graphs that the compiler writes and the runtimes that run them."""

INPUT_SUFFIX = ".in"
"""Ends the name of a graph input whose feature has the same name as an output."""
FLOAT32_RANGE = "trivium.float32_range"
"""Metadata of a graph whose estimator refuses numbers beyond float32: see `float32_range`."""
MISSING_STRING = "\ue000missing"
"""Stands for a missing string, which an ONNX tensor cannot hold. Begins with a private-use character."""
