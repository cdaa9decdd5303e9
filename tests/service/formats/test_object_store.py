"""Input files in an object store, read from a local server with the S3 API."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any

import moto.server as moto
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Changed, Invalid, Unavailable
from registry.media_types import ARROW, CSV, NDJSON, PARQUET
from service.formats import reading, sources
from service.formats.sources import OpenedFile
from tests.service.formats.read_all import A, N, read_all


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from service.formats import object_store

    for name, value in {
        "AWS_ENDPOINT": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/data", method="PUT")).close()
    object_store._store_of.cache_clear()
    store = obstore.store.from_url("s3://data")
    yield store
    for chunk in obstore.list(store):
        obstore.delete(store, [o["path"] for o in chunk])
    object_store._store_of.cache_clear()


TABLE = pa.table({"n": [*range(2000)], "a": [i / 4 for i in range(2000)]})


def test_every_format_is_read_from_a_store(bucket: Any) -> None:
    for name, media_type in (("x.csv", CSV), ("x.parquet", PARQUET), ("x.jsonl", NDJSON), ("x.arrow", ARROW)):
        obstore.put(bucket, f"in/{name}", encoded(media_type))
        result = read_all(f"s3://data/in/{name}", media_type, [N, A], ["n"])
        assert result.columns == [TABLE["n"].to_pylist(), TABLE["a"].to_pylist()]


def encoded(media_type: str) -> bytes:
    out = pa.BufferOutputStream()
    if media_type == PARQUET:
        pq.write_table(TABLE, out, row_group_size=300)
    elif media_type == ARROW:
        with pa.ipc.new_file(out, TABLE.schema) as writer:
            writer.write_table(TABLE)
    elif media_type == CSV:
        pa.csv.write_csv(TABLE, out)
    else:
        lines = (f'{{"n": {r["n"]}, "a": {r["a"]}}}\n' for r in TABLE.to_pylist())
        return "".join(lines).encode()
    data: bytes = out.getvalue().to_pybytes()
    return data


def test_objects_directly_below_a_prefix_are_one_dataset(bucket: Any) -> None:
    for name, text in (("b", "n\n2\n"), ("a", "n\n1\n")):
        obstore.put(bucket, f"many/{name}.csv", text.encode())
    obstore.put(bucket, "many/_SUCCESS", b"")
    for location in ("s3://data/many", "s3://data/many/"):
        assert read_all(location, CSV, [N]).columns == [[1, 2]]
    obstore.put(bucket, "many/.hidden/c.csv", b"n\n3\n")
    obstore.put(bucket, "many/deeper/c.csv", b"n\n3\n")
    with pytest.raises(Invalid, match="contains a directory"):
        reading.open_dataset("s3://data/many", CSV)
    with pytest.raises(Invalid, match="no object exists at"):
        reading.open_dataset("s3://data/nowhere", CSV)


def test_keys_in_the_paths_of_objects_are_columns(bucket: Any) -> None:
    for path, n in (("day=2%2F1/b", 2), ("day=1 x/z#1?", 1), ("day=__HIVE_DEFAULT_PARTITION__/c", 3)):
        obstore.put(bucket, f"hive/{path}.csv", f"n\n{n}\n".encode())
    obstore.put(bucket, "hive/day=2%2F1/_SUCCESS", b"")
    result = read_all("s3://data/hive", CSV, [N], ["day"])
    assert (result.columns, result.extra) == ([[1, 2, 3]], {"day": ["1 x", "2/1", None]})
    obstore.put(bucket, "hive/day=4/_x=1/d.csv", b"n\n4\n")
    with pytest.raises(Invalid, match="are in directories with different columns"):
        reading.open_dataset("s3://data/hive", CSV)
    obstore.put(bucket, "hive/_delta_log/0.json", b"{}")
    with pytest.raises(Invalid, match="is a Delta Lake table"):
        reading.open_dataset("s3://data/hive", CSV)


def test_another_version_of_an_object_is_never_read(bucket: Any) -> None:
    obstore.put(bucket, "x.csv", b"n\n1\n")
    dataset = reading.open_dataset("s3://data/x.csv", CSV)
    (part,) = reading.split(dataset)
    batches = reading.read_batches(dataset, part, [N], [], None)
    next(batches)
    obstore.put(bucket, "x.csv", b"n\n2\n")
    with pytest.raises(Changed):
        next(batches)
    with pytest.raises(Changed):
        next(reading.read_batches(dataset, part, [N], [], None))
    obstore.delete(bucket, "x.csv")
    with pytest.raises(Changed):
        next(reading.read_batches(dataset, part, [N], [], None))


def test_an_error_of_the_store_is_unavailable_and_not_an_empty_input(bucket: Any) -> None:
    with pytest.raises(Unavailable, match="s3://no-such-bucket"):
        reading.open_dataset("s3://no-such-bucket/x.csv", CSV)


def test_a_range_of_an_object_ends_with_the_object(bucket: Any) -> None:
    obstore.put(bucket, "ten.txt", b"0123456789")
    (file,) = sources.list_files("s3://data/ten.txt", ())
    assert file.bytes == 10
    with OpenedFile(file) as opened:
        ranges = {(0, 10): b"0123456789", (0, 11): b"0123456789", (9, 1): b"9", (9, 5): b"9", (3, 2): b"34"}
        assert {place: opened.read_at(*place) for place in ranges} == ranges
        assert [opened.read_at(*place) for place in ((10, 1), (11, 1), (3, 0), (0, 0))] == [b""] * 4
