"""Files of other kinds are named, with the way in, before anything loads them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import joblib
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression

from registry.errors import Refused
from registry.vocabulary import Format
from service.compiler import foreign_files
from tests.service.compiler.helpers import build_file


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.joblib"))
    return content.getvalue()


def table() -> pa.Table:
    return pa.table({"a": [1.0, 2.0]})


def parquet() -> bytes:
    content = io.BytesIO()
    pq.write_table(table(), content)
    return content.getvalue()


def npy() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


def graph() -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in ("x", "y")]
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return onnx.helper.make_model(inner).SerializeToString()


SAVED_MODEL = b"\x08\x01\x12\x04\x0a\x02\x12\x00"
SAFETENSORS = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
FOREIGN = {
    "lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
        "a Git LFS pointer",
        "git lfs",
    ),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page", "download the file"),
    "html without doctype": (b'<head lang="en"><html>', "an HTML page", "download the file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(2000), "an HDF5 file (.h5)", ".keras"),
    "saved model": (SAVED_MODEL, "a TensorFlow SavedModel", ".keras"),
    "zipped saved model": (
        zipped("m/saved_model.pb", "m/variables/v"),
        "an archive of a TensorFlow SavedModel",
        "save",
    ),
    "skops": (zipped("schema.json", "1.npy"), "a skops archive", "skops.io.load"),
    "torch": (zipped("m/data.pkl", "m/version"), "a PyTorch file (.pt)", "torch.onnx.export"),
    "npz": (zipped("a.npy", "b.npy"), "a file of NumPy arrays (.npz)", "joblib.dump"),
    "office": (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Office document", ""),
    "zip": (zipped("model.joblib"), "a zip archive", "unpack it"),
    "damaged zip": (zipped("model.joblib")[:40], "a damaged or truncated zip archive", "publish it again"),
    "tar": (tarred(), "a tar archive", "unpack it"),
    "tar.gz": (gzip.compress(tarred()), "a tar archive, compressed", "unpack it"),
    "html.gz": (gzip.compress(b"<html></html>"), "an HTML page, compressed", "download"),
    "npy": (npy(), "a NumPy array (.npy)", "joblib.dump"),
    "parquet": (parquet(), "a Parquet file", "--example"),
    "xgboost json": (b'{"learner":{"attributes":{}}}', "an XGBoost model (.json)", "convert_xgboost"),
    "xgboost ubj": (
        b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner{",
        "an XGBoost model (.ubj)",
        "convert_xgboost",
    ),
    "lightgbm": (b"tree\nversion=v4\nnum_class=1\n", "a LightGBM model (.txt)", "convert_lightgbm"),
    "catboost": (b"CBM1" + bytes(60), "a CatBoost model (.cbm)", 'format="onnx"'),
    "catboost json": (b'{"features_info": {}}', "a CatBoost model (.json)", 'format="onnx"'),
    "json": (b'{"a": [1, 2]}', "a JSON document", "joblib.dump"),
    "pmml": (b'<?xml version="1.0"?>\n<PMML version="4.4">', "a PMML document", "joblib.dump"),
    "xml": (b'<?xml version="1.0"?><net/>', "an XML document", "joblib.dump"),
    "rds": (gzip.compress(b"X\n\x00\x00\x00\x03"), "an R file (.rds)", "ONNX"),
    "rds, bzip2": (bz2.compress(b"X\n\x00\x00\x00\x03"), "an R file (.rds)", "ONNX"),
    "safetensors": (
        struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + bytes(4),
        "a safetensors file",
        "torch",
    ),
    "java": (b"\xac\xed\x00\x05sr", "a serialized Java object", "ONNX"),
    "empty": (b"", "empty", "complete"),
}
OWN = {
    "onnx": (graph(), "an ONNX graph"),
    "keras": (zipped("config.json", "metadata.json", "model.weights.h5"), "a .keras archive"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(40), "a .tflite model"),
    "sklearn-joblib": (pickle.dumps(LogisticRegression()), "a pickle"),
}
FORMATS: tuple[Format, ...] = ("sklearn-joblib", "onnx", "keras", "tflite")


def reason(folder: Path, content: bytes, format: Format) -> str:
    file = folder / "upload"
    file.write_bytes(content)
    with pytest.raises(Refused) as caught:
        foreign_files.check(file, format)
    return str(caught.value)


@pytest.mark.parametrize("name", list(FOREIGN))
def test_a_file_of_another_kind_is_named_with_the_way_in(tmp_path: Path, name: str) -> None:
    content, kind, remedy = FOREIGN[name]
    for format in FORMATS:
        if format == "keras" and name in ("zip", "damaged zip"):
            continue  # the gate of archives names what they lack
        text = reason(tmp_path, content, format)
        assert text.startswith(f"the file is {kind}, not {foreign_files.EXPECTED[format]}")
        assert remedy in text
        assert "Error" not in text


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", list(OWN))
def test_a_file_of_another_format_names_the_format_to_publish_it_with(
    tmp_path: Path, name: Format, format: Format
) -> None:
    content, kind = OWN[name]
    if name == format:
        (tmp_path / "upload").write_bytes(content)
        foreign_files.check(tmp_path / "upload", format)
        return
    assert f"the file is {kind}, not " in (text := reason(tmp_path, content, format))
    assert text.endswith(f": publish it with --format {name}")


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress, bz2.compress])
def test_a_compressed_pickle_passes_as_a_pickle_only(tmp_path: Path, compress: object) -> None:
    content = compress(pickle.dumps(LogisticRegression()))  # type: ignore[operator]
    assert "--format sklearn-joblib" in reason(tmp_path, content, "onnx")
    foreign_files.check(tmp_path / "upload", "sklearn-joblib")


def test_content_that_nothing_recognizes_is_left_to_the_builder(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"\x01\x02\x03\x04" * 20)
    for format in FORMATS:
        foreign_files.check(tmp_path / "upload", format)


@pytest.mark.parametrize("format", FORMATS)
def test_a_build_refuses_a_foreign_file_before_it_loads_it(tmp_path: Path, format: Format) -> None:
    (tmp_path / "model.joblib").write_bytes(FOREIGN["hdf5"][0])
    built = build_file(tmp_path, tmp_path / "model.joblib", format=format)
    assert built.state == "rejected"
    assert built.report["reason"].startswith("the file is an HDF5 file (.h5), not ")


def test_a_pickle_that_needs_xgboost_names_its_converter(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"cxgboost.sklearn\nXGBClassifier\n.")
    built = build_file(tmp_path, tmp_path / "model.pkl")
    assert built.report["reason"] == (
        "the pickle needs the module 'xgboost', which is not installed here: "
        "convert the model to ONNX with onnxmltools.convert_xgboost and publish the .onnx file"
    )


def test_a_large_object_of_an_unknown_kind_is_recognized_at_once(tmp_path: Path) -> None:
    joblib.dump(np.zeros(1 << 20), tmp_path / "upload")
    assert foreign_files.recognize(tmp_path / "upload") == foreign_files.PICKLE
