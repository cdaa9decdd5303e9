"""Recognize what a published file is, by its first bytes, before anything loads it.

`check` is the first step of every build. One table, `_MAGIC`, has the kinds that their first bytes
show; archives, protobuf messages and texts are looked into. Nothing is unpickled or executed.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from registry.errors import Refused
from registry.vocabulary import Format
from service.compiler import pickle_file

START_BYTES = 4096
"""As much of a file is looked at; only zip archives and protobuf messages are read further."""
MAX_PROTOBUF_FIELDS = 10_000


class FileKind(NamedTuple):
    """What a file is, in words with an article, and what to do with it."""

    name: str
    remedy: str = ""
    format: Format | None = None  # of a file that can be published


EXPECTED: dict[Format, str] = {
    "sklearn-joblib": "a pickle",
    "onnx": "an ONNX graph",
    "keras": "a .keras archive",
    "tflite": "a .tflite model",
}

PICKLE = FileKind("a pickle", format="sklearn-joblib")
ONNX = FileKind("an ONNX graph", format="onnx")
KERAS = FileKind("a .keras archive", format="keras")
TFLITE = FileKind("a .tflite model", format="tflite")

CONVERTERS = {
    "xgboost": "convert the model to ONNX with onnxmltools.convert_xgboost",
    "lightgbm": "convert the model to ONNX with onnxmltools.convert_lightgbm",
    "catboost": 'save the model as ONNX with model.save_model("model.onnx", format="onnx")',
    "torch": "export the model to ONNX with torch.onnx.export",
}
"""How the models of other libraries become ONNX, by the module that their pickles need."""

_PUBLISH_ONNX = " and publish the .onnx file"
_XGBOOST, _LIGHTGBM, _CATBOOST, _TORCH = (
    CONVERTERS[library] + _PUBLISH_ONNX for library in ("xgboost", "lightgbm", "catboost", "torch")
)
_DUMP = "publish the fitted estimator itself, as written by joblib.dump"
_UNPACK = "unpack it and publish the model file inside"
_HDF5 = FileKind(
    "an HDF5 file (.h5)",
    'save a Keras model as .keras, keras.models.load_model("model.h5").save("model.keras"), and publish that',
)
_SAVED_MODEL = FileKind(
    "a TensorFlow SavedModel",
    'save the Keras model as .keras, model.save("model.keras"), or convert it with '
    "tf.lite.TFLiteConverter.from_saved_model and publish the .tflite",
)
_TENSORFLOW_GRAPH = FileKind("a TensorFlow graph (.pb)", _SAVED_MODEL.remedy)
_R = FileKind("an R file (.rds)", "models of R come in as ONNX or .tflite")
_TABLE = "it holds rows, not a model; pass rows with --example"
_TEXT = FileKind("a text file", _DUMP)
_DIRECTORY = FileKind("a directory", "publish one model file")
_ZIP = FileKind("a zip archive", _UNPACK)
_DAMAGED_ZIP = FileKind("a damaged or truncated zip archive", "publish it again, complete")
_UNCLEAR_ZIPS = (_ZIP, _DAMAGED_ZIP)
"""The gate of .keras archives names their faults."""

_MAGIC: dict[bytes, FileKind] = {
    b"version https://git-lfs": FileKind(
        "a Git LFS pointer", 'fetch the file that it stands for with "git lfs pull" and publish that'
    ),
    b"\x89HDF\r\n\x1a\n": _HDF5,
    b"CBM1": FileKind("a CatBoost model (.cbm)", _CATBOOST),
    b"tree\nversion=": FileKind("a LightGBM model (.txt)", _LIGHTGBM),
    b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner": FileKind("an XGBoost model (.ubj)", _XGBOOST),
    b"binf": FileKind("an XGBoost model in its older binary format", _XGBOOST),
    b"bs64": FileKind("an XGBoost model in its older binary format", _XGBOOST),
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": FileKind("a PyTorch file (.pt)", _TORCH),
    b"\x93NUMPY": FileKind("a NumPy array (.npy)", _DUMP),
    b"PAR1": FileKind("a Parquet file", _TABLE),
    b"ARROW1": FileKind("an Arrow file", _TABLE),
    b"FEA1": FileKind("a Feather file", _TABLE),
    b"X\n\x00\x00\x00": _R,
    b"RDX3\nX\n": _R,
    b"RDX2\nX\n": _R,
    b"GGUF": FileKind("a GGUF file", "language models cannot be served"),
    b"%PDF": FileKind("a PDF document"),
    b"\x89PNG\r\n\x1a\n": FileKind("a PNG image"),
    b"\xff\xd8\xff": FileKind("a JPEG image"),
    b"SQLite format 3\x00": FileKind("an SQLite database"),
    b"\xac\xed\x00\x05": FileKind("a serialized Java object", "models of Java come in as ONNX"),
    b"\x7fELF": FileKind("a program or shared library"),
    b"Rar!\x1a\x07": FileKind("a RAR archive", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": FileKind("a 7-Zip archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": FileKind("a file compressed with Zstandard", "decompress it and publish the result"),
}
"""The kinds of file that their first bytes show."""


def check(path: Path | str, format: Format) -> None:
    """Raise `Refused`, with what the file is and what to do, when it is known not to be of `format`."""
    kind = recognize(Path(path))
    if kind is None or kind.format == format or (format == "keras" and kind in _UNCLEAR_ZIPS):
        return
    raise Refused(explain(kind, format))


def explain(kind: FileKind, format: Format) -> str:
    """Example: "the file is an HDF5 file (.h5), not a pickle: save the model as .keras, ..."."""
    remedy = f"publish it with --format {kind.format}" if kind.format else kind.remedy
    return f"the file is {kind.name}, not {EXPECTED[format]}{': ' if remedy else ''}{remedy}"


def recognize(path: Path) -> FileKind | None:
    """The kind of a file or directory; None when its content does not show it. Looks through compression."""
    if path.is_dir():
        return _SAVED_MODEL if (path / "saved_model.pb").exists() else _DIRECTORY
    with path.open("rb") as file:
        start = file.read(START_BYTES)
        if start.startswith(b"PK\x03\x04"):
            return _zip_kind(path)
        if (kind := _kind(start)) is not None:
            return kind
        if pickle_file.is_compressed(start):
            return _compressed_kind(path)
        if (kind := _protobuf_kind(file)) is not None:
            return kind
    return None


def describe_text(path: Path) -> FileKind | None:
    """The kind of a file that no pickle reader could read, when it is text. Pickles may be text as well."""
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    text = start[: start.rfind(b"\n")] if len(start) == START_BYTES and b"\n" in start else start
    try:
        content = text.decode()
    except UnicodeDecodeError:
        return None
    printable = all(c.isprintable() or c in "\t\r\n\ufeff" for c in content)
    return _TEXT if content and printable else None


def _compressed_kind(path: Path) -> FileKind | None:
    try:
        start = next(pickle_file.blocks(path), b"")
    except pickle_file.DECOMPRESSION_ERRORS:
        return None
    if start.startswith(b"PK\x03\x04"):
        return FileKind("a compressed zip archive", _UNPACK)
    kind = _kind(start[:START_BYTES])
    if kind is None or kind.format == "sklearn-joblib" or kind is _R:
        return kind
    return FileKind(f"{kind.name}, compressed", kind.remedy or "decompress it and publish the result")


def _kind(start: bytes) -> FileKind | None:
    if not start:
        return FileKind("empty", "publish it again, complete")
    if (kind := next((k for magic, k in _MAGIC.items() if start.startswith(magic)), None)) is not None:
        return kind
    if start[4:8] == b"TFL3":
        return TFLITE
    if start[257:262] == b"ustar":
        return FileKind("a tar archive", _UNPACK)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27 and b'"dtype"' in start:
        return FileKind("a safetensors file", _TORCH)
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return PICKLE
    return _markup_kind(start.lstrip(b"\xef\xbb\xbf \t\r\n"))


def _markup_kind(start: bytes) -> FileKind | None:
    lower = start[:1024].lower()
    if lower.startswith((b"<!doctype html", b"<html")) or (lower.startswith(b"<") and b"<html" in lower):
        return FileKind(
            "an HTML page",
            "the download saved a web page, for example a form to sign in; download the file itself",
        )
    if lower.startswith(b"<") and b"<pmml" in lower:
        return FileKind("a PMML document", f"PMML cannot be read here; {_DUMP}")
    if lower.startswith(b"<?xml"):
        return FileKind("an XML document", _DUMP)
    if re.match(rb"[{\[]\s*[\"{\[\d\]}]", start):
        if (kind := next((k for key, k in _JSON_MODELS.items() if key in start), None)) is not None:
            return kind
        return FileKind("a JSON document", _DUMP)
    return None


_JSON_MODELS = {
    b'"learner"': FileKind("an XGBoost model (.json)", _XGBOOST),
    b'"tree_info"': FileKind("a LightGBM model (.json)", _LIGHTGBM),
    b'"features_info"': FileKind("a CatBoost model (.json)", _CATBOOST),
}
"""Models as JSON documents, by a key of the document."""


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return _DAMAGED_ZIP
    return next((kind for holds, kind in _ZIPS if holds(names)), _ZIP)


def _has(*files: str) -> Callable[[list[PurePosixPath]], bool]:
    return lambda names: set(files) <= {name.name for name in names}


_ZIPS: list[tuple[Callable[[list[PurePosixPath]], bool], FileKind]] = [
    (_has("config.json", "metadata.json", "model.weights.h5"), KERAS),
    (
        _has("schema.json"),
        FileKind(
            "a skops archive",
            'load it with skops.io.load, write it with joblib.dump(model, "model.joblib") and publish that',
        ),
    ),
    (_has("data.pkl"), FileKind("a PyTorch file (.pt)", _TORCH)),
    (_has("saved_model.pb"), FileKind("an archive of a TensorFlow SavedModel", _SAVED_MODEL.remedy)),
    (_has("[Content_Types].xml"), FileKind("an Office document")),
    (
        lambda names: bool(names) and all(name.suffix == ".npy" for name in names),
        FileKind("a file of NumPy arrays (.npz)", _DUMP),
    ),
]
"""Kinds of zip archive by the files inside."""


def _protobuf_kind(file: IO[bytes]) -> FileKind | None:
    """ONNX, SavedModel and graphs of TensorFlow are protobuf messages; their field numbers differ."""
    file.seek(0, 2)
    fields = _protobuf_fields(file, file.tell())
    if fields is None:
        return None
    if 1 in fields and 7 in fields:  # ir_version, graph
        return ONNX
    if fields == {1, 2} and _starts_with(file, b"\x08\x01\x12"):  # schema version 1, meta graphs
        return _SAVED_MODEL
    file.seek(0)
    start = file.read(START_BYTES)
    is_graph = start[:1] == b"\n" and b"Placeholder" in start and b"dtype" in start
    return _TENSORFLOW_GRAPH if is_graph and fields <= {1, 2, 3, 4, 5} else None


def _starts_with(file: IO[bytes], start: bytes) -> bool:
    file.seek(0)
    return file.read(len(start)) == start


def _protobuf_fields(file: IO[bytes], size: int) -> set[int] | None:
    """The numbers of the message's fields; None when the file is not one complete message."""
    fields: set[int] = set()
    position = 0
    for _ in range(MAX_PROTOBUF_FIELDS):
        if position == size:
            return fields or None
        file.seek(position)
        head = file.read(20)
        tag, used = _varint(head)
        number, wire = tag >> 3, tag & 7
        if not used or not 0 < number < 1000 or wire not in (0, 1, 2, 5):
            return None
        value, value_bytes = _varint(head[used:])
        position += used + {0: value_bytes, 1: 8, 2: value_bytes + value, 5: 4}[wire]
        if (wire in (0, 2) and not value_bytes) or position > size:
            return None
        fields.add(number)
    return fields


def _varint(content: bytes) -> tuple[int, int]:
    """(value, bytes read); 0 bytes when it does not end within ten."""
    value = 0
    for index, byte in enumerate(content[:10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, index + 1
    return 0, 0
