"""Files of a directory, and how a change of a file is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry.errors import Changed, Invalid, Missing
from service.formats import sources
from service.formats.sources import OpenedFile

DIGEST = "ab" + "0" * 62


def test_a_change_of_the_size_or_of_the_time_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "input.csv"
    path.write_bytes(b"a\n1\n")
    (file,) = sources.list_files(str(path), ())
    time_ns = path.stat().st_mtime_ns
    with OpenedFile(file) as opened:
        opened.check_unchanged()
        os.utime(path, ns=(time_ns, time_ns + 1))
        with pytest.raises(Changed, match="it was written to"):
            opened.check_unchanged()
        os.utime(path, ns=(time_ns, time_ns))
        opened.check_unchanged()
        path.write_bytes(b"a\n12\n")
        os.utime(path, ns=(time_ns, time_ns))
        with pytest.raises(Changed, match="it was written to"):
            opened.check_unchanged()
    with pytest.raises(Changed, match="it was written to"):
        OpenedFile(file)
    path.unlink()
    with pytest.raises(Changed, match="it is gone"):
        OpenedFile(file)


@pytest.mark.parametrize(
    ("place", "is_blob"),
    [
        (f"ab/{DIGEST}", True),
        (f"cd/{DIGEST}", False),
        (f"ab/{DIGEST[:-1]}", False),
        (f"ab/{DIGEST}0", False),
        (f"ab/{DIGEST}.csv", False),
    ],
)
def test_only_an_uploaded_file_may_have_another_time(tmp_path: Path, place: str, is_blob: bool) -> None:
    """Uploading it again updates its time."""
    path = tmp_path / place
    path.parent.mkdir()
    path.write_bytes(b"a\n1\n")
    (file,) = sources.list_files(str(path), ())
    os.utime(path, ns=(1, 1))
    with OpenedFile(file) if is_blob else pytest.raises(Changed):
        OpenedFile(file).__exit__()
    path.write_bytes(b"a\n12\n")
    with pytest.raises(Changed):
        OpenedFile(file)


def test_files_are_listed_by_name_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "C.CSV", ".hidden", "_SUCCESS"):
        (tmp_path / name).write_bytes(name.encode())
    files = sources.list_files(str(tmp_path), [".csv"])
    assert [(f.name, f.bytes) for f in files] == [("C.CSV", 5), ("a.csv", 5), ("b.csv", 5)]
    assert [f.location for f in files] == [str(tmp_path / f.name) for f in files]


def test_a_directory_of_hidden_files_and_other_kinds_of_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").touch()
    with pytest.raises(Missing, match="contains no files"):
        sources.list_files(str(tmp_path), [".csv"])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(Invalid, match="is not a regular file"):
        sources.list_files(str(tmp_path), [".csv"])
    with pytest.raises(Invalid, match="cannot be read"):
        sources.list_files(str(tmp_path / "missing.csv"), [".csv"])
