"""A job reads uploaded artifacts and files inside the batch roots only, however its URI is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry.artifacts import Store
from registry.errors import Invalid, NotFound
from service.config import Settings
from service.submit import input_locations
from service.submit.input_locations import InputLocation

CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Create a batch root with files, beside a directory outside of it."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for path in (root / "a.csv", root / "sub" / "b.csv", tmp_path / "secret" / "c.csv"):
        path.write_text("x\n1\n")
    return root


def locate(root: Path, uri: str, media_type: str | None = None) -> InputLocation:
    settings = Settings(home=root.parent / "home", batch_roots=str(root))
    return input_locations.locate_input(
        settings, Store(settings.blobs), {"uri": uri, "media_type": media_type}
    )


def rejection(root: Path, uri: str) -> str:
    """Return the message with which `uri` is rejected."""
    with pytest.raises(Invalid) as raised:
        locate(root, uri)
    assert {e.field for e in raised.value.errors} <= {"input.uri", "input.media_type"}
    return str(raised.value)


@pytest.mark.parametrize(
    "uri", ["{}/a.csv", "file://{}/a.csv", "file://localhost{}/a.csv", "{}/sub/../a.csv", "{}//a.csv"]
)
def test_paths_and_file_uris_denote_the_same_file(root: Path, uri: str) -> None:
    assert locate(root, uri.format(root)) == InputLocation(str(root / "a.csv"), CSV)


def test_percent_escapes_are_decoded_in_uris_only(root: Path) -> None:
    file = root / "100%25 of it.csv"
    file.write_text("x\n1\n")
    assert locate(root, str(file)).location == str(file)
    assert locate(root, f"file://{root}/100%2525%20of%20it.csv").location == str(file)
    assert locate(root, f"file://{root}/%61.csv").location == str(root / "a.csv")


@pytest.mark.parametrize(
    "uri",
    [
        "{out}/c.csv",
        "{root}/../secret/c.csv",
        "file://{root}/../secret/c.csv",
        "file://{root}/%2e%2e/secret/c.csv",
        "file://{root}/..%2fsecret%2Fc.csv",
        "{root}x/c.csv",
        "{root}/sub/../../secret/c.csv",
        "/",
        "file:///etc/passwd",
    ],
)
def test_places_outside_the_roots_are_rejected(root: Path, uri: str) -> None:
    path = uri.format(root=root, out=root.parent / "secret")
    assert "is outside the batch roots" in rejection(root, path)


def test_links_that_lead_outside_the_root_are_rejected(root: Path) -> None:
    (root / "out").symlink_to(root.parent / "secret")
    (root / "out.csv").symlink_to(root.parent / "secret" / "c.csv")
    (root / "in.csv").symlink_to(root / "sub" / "b.csv")
    for uri in (f"{root}/out/c.csv", f"{root}/out", f"{root}/out.csv"):
        assert "is outside the batch roots" in rejection(root, uri)
    assert locate(root, f"{root}/in.csv").location == str(root / "sub" / "b.csv")


def test_a_root_may_be_a_link(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert locate(link, f"{link}/a.csv").location == str(root / "a.csv")
    assert locate(link, f"{root}/a.csv").location == str(root / "a.csv")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("a.csv", "is not an absolute path"),
        ("../elsewhere/a.csv", "is not an absolute path"),
        ("", "is not an absolute path"),
        ("https://127.0.0.1/a.csv", "input cannot be read from https://127.0.0.1"),
        ("file://elsewhere/a.csv", "input cannot be read from file://elsewhere"),
        ("ftp:a.csv", "input cannot be read from ftp://"),
        ("http://[", "is not a valid URI"),
        ("file:///data/%FF.csv", "is not valid UTF-8"),
        ("{}/a\0.csv", "cannot be resolved"),
        ("file://{}/a%00.csv", "cannot be resolved"),
        ("{}/circle", "circle"),
        ("{}/none.csv", "no file or directory exists at"),
        ("{}/" + "x" * 300 + ".csv", "no file or directory exists at"),
        ("{}/sub/none", "no file or directory exists at"),
    ],
)
def test_invalid_uris_and_missing_files_are_rejected_with_a_reason(
    root: Path, uri: str, message: str
) -> None:
    (root / "circle").symlink_to(root / "circle")
    assert message in rejection(root, uri.replace("{}", str(root)))


def test_without_a_root_nothing_can_be_read(root: Path) -> None:
    settings = Settings(home=root.parent / "home")
    with pytest.raises(Invalid, match=r"none are configured\); the operator configures them in"):
        input_locations.locate_input(settings, Store(settings.blobs), {"uri": str(root / "a.csv")})


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("s3://bucket/in", True),
        ("s3://bucket/in/a.csv", True),
        ("s3://bucket/input/a.csv", False),
        ("s3://bucket/in/../out/a.csv", False),
        ("s3://bucket/in/%2e%2e/out/a.csv", False),
        ("s3://bucket/", False),
        ("s3://other/in/a.csv", False),
        ("gs://bucket/in/a.csv", False),
        ("az://container/a.csv", True),
    ],
)
def test_object_store_uris_may_be_roots(root: Path, uri: str, allowed: bool) -> None:
    settings = Settings(home=root.parent / "home", batch_roots=f"s3://bucket/in:{root}:az://container")
    assert settings.roots == ("s3://bucket/in", str(root), "az://container")
    if allowed:
        assert input_locations.resolve_in_roots(settings.roots, uri) == uri
    else:
        with pytest.raises(Invalid, match="is outside the batch roots"):
            input_locations.resolve_in_roots(settings.roots, uri)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.csv", CSV),
        ("a.CSV", CSV),
        ("a.csv.gz", CSV),
        ("a.2026.parquet", PARQUET),
        ("a.jsonl.zst", "application/x-ndjson"),
        ("a.arrow", "application/vnd.apache.arrow.stream"),
        ("a.ipc", "application/vnd.apache.arrow.stream"),
        ("a.csv.xz", None),
        ("a.gz", None),
        ("csv", None),
        ("a.txt", None),
    ],
)
def test_the_suffix_of_a_file_determines_its_media_type(name: str, media_type: str | None) -> None:
    assert input_locations.media_type_by_name(f"/data/{name}") == media_type


def test_the_first_file_of_a_directory_determines_its_media_type(root: Path) -> None:
    directory = root / "many"
    directory.mkdir()
    for name in ("_SUCCESS", ".hidden.csv", "readme.txt", "part-1.parquet", "part-2.csv"):
        (directory / name).touch()
    assert locate(root, str(directory)) == InputLocation(str(directory), PARQUET)
    assert "does not show its media type" in rejection(root, str(root.joinpath("many", "readme.txt")))
    assert locate(root, f"{directory}/readme.txt", CSV) == InputLocation(f"{directory}/readme.txt", CSV)
    (root / "empty").mkdir()
    assert "is empty" in rejection(root, f"{root}/empty")


def test_an_artifact_is_located_in_the_store(root: Path) -> None:
    settings = Settings(home=root.parent / "home")
    store = Store(settings.blobs)
    sha256 = store.put([b"x\n1\n"]).sha256
    spec = {"artifact": sha256, "media_type": CSV}
    location = input_locations.locate_input(settings, store, spec)
    assert location == InputLocation(str(store.path(sha256)), CSV, "upload")
    named = input_locations.locate_input(settings, store, spec | {"file_name": "orders.csv"})
    assert named.name == "orders.csv"
    assert Path(location.location).is_absolute()
    with pytest.raises(NotFound):
        input_locations.locate_input(settings, store, {"artifact": "0" * 64, "media_type": CSV})


def test_a_directory_without_read_permission_is_rejected(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test simulates the error, because root may read every directory."""

    def deny(path: Path) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", deny)
    assert "cannot be read: Permission denied" in rejection(root, f"{root}/sub")
