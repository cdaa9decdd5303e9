"""scikit-learn -> .tflite without TensorFlow: `convert` writes the file, `read_metadata` reads it."""

from service.compiler.tflite.convert import Converted, convert, reduced, within
from service.compiler.tflite.metadata import read_entries, read_metadata

__all__ = ["Converted", "convert", "read_entries", "read_metadata", "reduced", "within"]
