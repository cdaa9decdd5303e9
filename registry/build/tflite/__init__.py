"""scikit-learn -> .tflite without TensorFlow: `convert` writes the file, `read_metadata` reads it."""

from registry.build.tflite.convert import convert
from registry.build.tflite.metadata import read_entries, read_metadata

__all__ = ["convert", "read_entries", "read_metadata"]
