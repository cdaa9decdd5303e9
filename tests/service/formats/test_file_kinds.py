"""Files of another kind than the input's media type are named as what they are."""

from __future__ import annotations

from base64 import b64decode, b64encode
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from registry.errors import Invalid
from registry.media_types import ARROW, CSV, NDJSON, PARQUET
from service.formats import file_kinds, reading
from tests.service.formats.read_all import A, read_all


@pytest.mark.parametrize(
    ("data", "media_type", "text"),
    [
        (b"<!DOCTYPE html>\n<html>\n", CSV, "an HTML or XML page"),
        (b"PK\x03\x04\x14\x00\x06\x00", CSV, "a ZIP archive or an Excel workbook; write CSV"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n",
            PARQUET,
            "a pointer of Git LFS",
        ),
        (b'[{"a": 1}]\n', NDJSON, r"a JSON array; write one object per line"),
        (b'{"b": 1}\n', CSV, "JSON; set the media type application/x-ndjson"),
        (b"PAR1....PAR1", CSV, "a Parquet file; set the media type application/vnd.apache.parquet"),
        (b"ARROW1\0\0", PARQUET, "an Arrow file or stream; set the media type"),
        (b"PARE....PARE", PARQUET, "an encrypted Parquet file; write it without encryption"),
        (b"SQLite format 3\0", PARQUET, "a SQLite database"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, data: bytes, media_type: str, text: str) -> None:
    (tmp_path / "orders").write_bytes(data)
    with pytest.raises(Invalid, match=f"'orders' is {text}"):
        read_all(tmp_path / "orders", media_type, [A])


def test_a_damaged_file_of_the_right_kind_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "orders").write_bytes(b"PAR1....PAR1")
    with pytest.raises(Invalid, match="'orders' is not a complete Parquet file"):
        read_all(tmp_path / "orders", PARQUET, [A])
    for data in (b"a,b\n1,2\n", b"\xef\xbb\xbfORDER,x\n", b'"a","b"\n', b"{a},b\n", b""):
        assert file_kinds.recognize(data, CSV) is None
    assert file_kinds.recognize(b"\xff\xff\xff\xff\x10", ARROW) is None


class PlainKeys(pe.KmsClient):
    """Wraps keys by returning them."""

    def __init__(self) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, master: str) -> bytes:
        return b64encode(key)

    def unwrap_key(self, wrapped: bytes, master: str) -> bytes:
        return b64decode(wrapped)


@pytest.mark.parametrize("plain_footer", [False, True])
def test_an_encrypted_parquet_file_is_named_as_one(tmp_path: Path, plain_footer: bool) -> None:
    encryption = pe.EncryptionConfiguration(
        footer_key="footer", column_keys={"column": ["a"]}, plaintext_footer=plain_footer
    )
    factory = pe.CryptoFactory(lambda config: PlainKeys())
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), encryption)
    table = pa.table({"a": [1.0]})
    with pq.ParquetWriter(tmp_path / "x.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(Invalid, match=r"'x\.parquet' is (an )?encrypted.*; write it without encryption"):
        read_all(tmp_path / "x.parquet", PARQUET, [A])


def test_latin1_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("a,gr\xf6\xdfe\n1,2\n".encode("latin1"))
    with pytest.raises(Invalid, match=r"is not UTF-8 .*, perhaps Latin-1 .*; save the file as UTF-8"):
        reading.open_dataset(str(tmp_path / "x.csv"), CSV)
    (tmp_path / "x.jsonl").write_bytes('{"a": 1, "g": "\xf6"}\n{"a": 2, "g": "x"}\n'.encode("latin1"))
    (fault,) = read_all(tmp_path / "x.jsonl", NDJSON, [A], ["g"]).faults
    assert "perhaps Latin-1; save the file as UTF-8" in fault.message
