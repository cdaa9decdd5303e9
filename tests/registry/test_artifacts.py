"""Blobs: complete at their path or absent, however the upload ends."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from registry.artifacts import Store, check_sha256, create_directory, fsync_directory
from registry.errors import Damaged, DigestMismatch, Invalid, NotFound, TooLarge
from tests.harness.durability import Event, recorded
from tests.registry import child_actions
from tests.registry.helpers import processes, run_until_killed, threads

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


def _files(store: Store) -> list[Path]:
    return sorted(p for p in store.root.rglob("*") if p.is_file())


def _age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def test_a_blob_is_stored_under_the_sha256_of_its_bytes(store: Store) -> None:
    assert store.put([CONTENT[:1000], b"", CONTENT[1000:]], SHA) == (SHA, len(CONTENT), True)
    assert store.path(SHA).read_bytes() == CONTENT
    with store.open(SHA) as file:
        assert file.read() == CONTENT
    assert [(b.sha256, b.bytes) for b in store] == [(SHA, len(CONTENT))]
    assert _files(store) == [store.path(SHA)]


def test_the_empty_blob_can_be_stored(store: Store) -> None:
    blob = store.put([])
    assert (blob.sha256, blob.bytes) == (hashlib.sha256(b"").hexdigest(), 0)
    assert store.path(blob.sha256).read_bytes() == b""


def test_put_file_stores_the_bytes_of_a_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert store.put_file(tmp_path / "file") == (SHA, len(CONTENT), True)


def test_an_existing_blob_is_not_written_again(store: Store) -> None:
    store.put([CONTENT])
    _age(store.path(SHA), 3600)
    inode = store.path(SHA).stat().st_ino
    assert store.put([CONTENT]) == (SHA, len(CONTENT), False)
    assert store.path(SHA).stat().st_ino == inode
    assert next(iter(store)).age_s < 60  # its age was reset
    assert _files(store) == [store.path(SHA)]


@pytest.mark.parametrize(
    "damaged",
    [CONTENT[:-1], b"", CONTENT + b"x", b"X" + CONTENT[1:]],
    ids=["short", "empty", "long", "flipped"],
)
def test_a_damaged_blob_is_refused_until_it_is_put_again(store: Store, damaged: bytes) -> None:
    store.put([CONTENT])
    store.path(SHA).write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(Damaged, match=f"{SHA} is damaged: its {len(damaged)} bytes have another sha256"):
            store.verified_path(SHA)
    assert store.put([CONTENT], SHA) == (SHA, len(CONTENT), True)
    assert store.verified_path(SHA).read_bytes() == CONTENT
    assert _files(store) == [store.path(SHA)]


def test_a_blob_that_is_truncated_after_it_was_verified_is_refused(store: Store) -> None:
    store.put([CONTENT])
    assert store.verified_path(SHA) == store.path(SHA)
    store.path(SHA).write_bytes(CONTENT[:-1])
    with pytest.raises(Damaged):
        store.verified_path(SHA)
    store.delete(SHA)
    with pytest.raises(NotFound):
        store.verified_path(SHA)


def test_a_file_that_replaces_a_verified_blob_is_verified_again(store: Store, tmp_path: Path) -> None:
    store.put([CONTENT])
    store.verified_path(SHA)
    other = tmp_path / "of the same size"
    other.write_bytes(CONTENT[::-1])
    other.replace(store.path(SHA))
    with pytest.raises(Damaged):
        store.verified_path(SHA)


def test_bytes_with_another_digest_are_not_stored(store: Store) -> None:
    with pytest.raises(DigestMismatch) as raised:
        store.put([CONTENT, b"x"], SHA)
    assert SHA in str(raised.value)
    assert raised.value.errors[0].field == "sha256"
    assert _files(store) == []
    with pytest.raises(NotFound):
        store.path(SHA)


def test_an_interrupted_upload_leaves_no_file(store: Store) -> None:
    def chunks() -> Iterator[bytes]:
        yield CONTENT
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        store.put(chunks(), SHA)
    assert _files(store) == []


def test_leaving_a_writer_closes_its_file(store: Store) -> None:
    with store.writer() as writer:
        writer.write(CONTENT)
    assert writer._file.closed
    assert _files(store) == []


def test_an_upload_above_the_maximum_size_is_rejected_at_the_first_chunk_too_many(store: Store) -> None:
    with store.writer(max_bytes=10) as writer:
        writer.write(b"0123456789")
        with pytest.raises(TooLarge, match="larger than 10 bytes"):
            writer.write(b"x")
    assert _files(store) == []
    with store.writer(max_bytes=10) as writer:
        writer.write(b"0123456789")
        assert writer.commit().bytes == 10


def test_a_blob_is_not_at_its_path_before_the_commit(store: Store) -> None:
    with store.writer() as writer:
        writer.write(CONTENT)
        assert [p.parent for p in _files(store)] == [store.incoming]
        writer.commit(SHA)
        assert store.path(SHA).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "value", ["", "abc", SHA.upper(), SHA + "0", SHA[:-1] + "g", "../" + SHA, SHA + "\n"]
)
def test_an_invalid_sha256_is_rejected_by_all_methods(store: Store, value: str) -> None:
    for call in (check_sha256, store.path, store.delete, store.touch, store.open):
        with pytest.raises(Invalid):
            call(value)


def test_one_blob_put_by_many_threads_is_stored_once(store: Store) -> None:
    blobs = threads(*[lambda: store.put([CONTENT], SHA)] * 8)
    assert {(b.sha256, b.bytes) for b in blobs} == {(SHA, len(CONTENT))}  # type: ignore[union-attr]
    assert _files(store) == [store.path(SHA)]
    assert store.path(SHA).read_bytes() == CONTENT


def test_one_blob_put_by_many_processes_is_stored_once(store: Store) -> None:
    blobs = processes(child_actions.put, [(str(store.root), CONTENT)] * 4)
    assert {b[:2] for b in blobs} == {(SHA, len(CONTENT))}
    assert _files(store) == [store.path(SHA)]


def test_a_sweep_deletes_the_incoming_file_of_a_killed_writer(store: Store) -> None:
    run_until_killed(child_actions.write_and_die, str(store.root))
    (partial,) = _files(store)
    assert partial.parent == store.incoming
    assert list(store) == []
    assert store.sweep(older_than_s=3600) == 0  # its writer may still be running
    _age(partial, 7200)
    assert store.sweep(older_than_s=3600) == 1
    assert _files(store) == []


def test_sweeps_do_not_disturb_concurrent_uploads(store: Store) -> None:
    def upload() -> None:
        for i in range(60):
            store.put([f"{i}".encode()])

    def sweep() -> int:
        return sum(store.sweep(older_than_s=3600) for _ in range(200))

    assert threads(upload, upload, sweep, sweep) == [None, None, 0, 0]
    assert len(list(store)) == 60


def test_delete_if_older_deletes_only_old_blobs(store: Store) -> None:
    store.put([CONTENT])
    assert not store.delete_if_older(SHA, older_than_s=3600)
    assert store.path(SHA).read_bytes() == CONTENT
    _age(store.path(SHA), 7200)
    assert store.delete_if_older(SHA, older_than_s=3600)
    assert not store.delete_if_older(SHA, older_than_s=3600)
    assert _files(store) == []


def test_a_file_of_exactly_the_maximum_age_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put([CONTENT])
    upload = store.incoming / "upload"
    upload.touch()
    for file in (store.path(SHA), upload):
        os.utime(file, (1000.0, 1000.0))
    monkeypatch.setattr(time, "time", lambda: 1010.0)
    assert not store.delete_if_older(SHA, older_than_s=10.0)
    assert store.sweep(older_than_s=10.0) == 0
    assert store.sweep(older_than_s=9.9) == 1
    assert store.delete_if_older(SHA, older_than_s=9.9)


def test_a_blob_that_is_deleted_while_all_are_listed_is_left_out(store: Store) -> None:
    contents = (b"%d" % n for n in range(2000))
    in_one_directory = [c for c in contents if hashlib.sha256(c).hexdigest().startswith("00")]
    both = {store.put([content]).sha256 for content in in_one_directory[:2]}
    listing = iter(store)
    (other,) = both - {next(listing).sha256}
    store.delete(other)
    assert list(listing) == []


def test_a_blob_put_during_its_deletion_is_kept(store: Store) -> None:
    """In each round, an old blob is put again while it is deleted."""

    def put(content: bytes) -> str:
        return store.put([content]).sha256

    for number in range(60):
        content = f"round {number}".encode()
        sha256 = put(content)
        _age(store.path(sha256), 7200)
        threads(lambda c=content: put(c), lambda s=sha256: store.delete_if_older(s, 3600))  # type: ignore[misc]
        assert store.path(sha256).read_bytes() == content


def test_deleting_and_touching_a_missing_blob_does_nothing(store: Store) -> None:
    store.delete(SHA)
    assert not store.touch(SHA)
    store.put([CONTENT])
    assert store.touch(SHA)
    store.delete(SHA)
    assert list(store) == []


def test_a_blob_deleted_while_it_is_put_again_is_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage collection may delete it between the check that it exists and the comparison of its bytes."""
    store.put([CONTENT])
    touch = store.touch

    def touch_then_collect(sha256: str) -> bool:
        exists = touch(sha256)
        store.delete(sha256)
        return exists

    monkeypatch.setattr(store, "touch", touch_then_collect)
    assert store.put([CONTENT]).created
    assert store.path(SHA).read_bytes() == CONTENT


def test_files_that_are_not_blobs_are_not_listed(store: Store) -> None:
    store.put([CONTENT])
    (store.path(SHA).parent / ".DS_Store").write_bytes(b"")
    assert [b.sha256 for b in store] == [SHA]


def test_an_upload_on_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "blobs")
    writer = store.writer()
    file = writer._file
    with writer:
        writer._file = Mock(wraps=file, close=Mock(side_effect=OSError(28, "No space left on device")))
        writer.write(b"x")
    file.close()
    assert list(store.incoming.iterdir()) == []


@pytest.mark.parametrize("chunks", [[b"small"], [CONTENT, b"the end"]], ids=["small", "large"])
def test_a_blob_is_fsynced_before_it_is_renamed_and_its_directories_are_fsynced(
    store: Store, chunks: list[bytes]
) -> None:
    with recorded() as log:
        sha256 = store.put(chunks).sha256
    log.saved(store.path(sha256))
    directory = sha256[:2]
    name = next(e.source.name for e in log.events if e.kind == "rename" and e.source)
    assert log.steps(store.root, "fsync", "rename", "mkdir") == [
        f"fsync incoming/{name}",
        f"mkdir {directory}",
        "fsync .",
        f"rename incoming/{name} -> {directory}/{sha256}",
        f"fsync {directory}",
    ]


def test_a_blob_is_never_opened_for_writing_at_its_path(store: Store) -> None:
    with recorded() as log:
        store.put([CONTENT])
    opened = [e.path.parent for e in log.events if e.kind == "open"]
    assert opened == [store.incoming]


def test_each_process_fsyncs_a_new_directory_once(store: Store) -> None:
    """Another process may have created the directory a moment ago, without its fsync yet."""
    other = Store(store.root)
    contents = (b"%d" % n for n in range(2000))
    in_one_directory = [c for c in contents if hashlib.sha256(c).hexdigest().startswith("00")]
    first, second, third = in_one_directory[:3]
    store.put([first])
    with recorded() as log:
        sha256 = other.put([second]).sha256
        other.put([third])
    assert log.position("fsync", store.root) < log.position("rename", store.path(sha256))
    assert [e.path for e in log.events].count(store.root) == 1


def test_the_replacement_of_a_damaged_blob_is_durable(store: Store) -> None:
    store.put([b"small"])
    sha256 = next(iter(store)).sha256
    store.path(sha256).write_bytes(b"smal_")
    with recorded() as log:
        assert store.put([b"small"]).created
    log.saved(store.path(sha256))


def test_a_failed_fsync_of_a_new_directory_is_repeated(store: Store) -> None:
    def break_disk(event: Event) -> None:
        if event.path == store.root:
            raise OSError(5, "Input/output error")

    with recorded(break_disk), pytest.raises(OSError, match="Input/output"):
        store.put([CONTENT])
    with recorded() as log:
        store.put([CONTENT])
    assert log.position("fsync", store.root) < log.position("rename", store.path(SHA))


def test_an_existing_blob_is_acknowledged_after_an_fsync_of_its_directory(store: Store) -> None:
    """The writer that renamed it may not have done this fsync yet."""
    store.put([CONTENT])
    with recorded() as log:
        assert not store.put([CONTENT]).created
    directory = SHA[:2]
    assert log.steps(store.root, "fsync", "rename") == [f"fsync {directory}"]


def test_existing_bytes_are_rejected_under_another_digest(store: Store) -> None:
    store.put([CONTENT])
    _age(store.path(SHA), 3600)
    with pytest.raises(DigestMismatch):
        store.put([CONTENT], "0" * 64)
    with pytest.raises(NotFound):
        store.path("0" * 64)
    assert next(iter(store)).age_s > 3000  # a rejected upload keeps no blob from garbage collection


def test_the_incoming_file_of_an_existing_blob_is_deleted(store: Store) -> None:
    store.put([CONTENT])
    with store.writer() as writer:
        writer.write(CONTENT)
        assert not writer.commit(SHA).created
    assert _files(store) == [store.path(SHA)]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failed_fsync_or_rename_leaves_no_blob(store: Store, step: str) -> None:
    def break_disk(event: Event) -> None:
        if event.kind == step:
            raise OSError(5, "Input/output error")

    with recorded(break_disk), pytest.raises(OSError, match="Input/output"):
        store.put([CONTENT])
    assert _files(store) == []


def test_a_new_store_survives_a_power_failure(tmp_path: Path) -> None:
    with recorded() as log:
        Store(tmp_path / "home" / "blobs")
    assert log.entry_synced(tmp_path / "home" / "blobs") > log.entry_synced(tmp_path / "home")
    with recorded() as log:
        Store(tmp_path / "home" / "blobs")
    assert log.steps(tmp_path, "fsync") == []


def test_only_the_owner_can_read_incoming_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "blobs")
    assert stat.S_IMODE(store.incoming.stat().st_mode) == 0o700


def test_each_new_directory_is_fsynced_in_its_parent(tmp_path: Path) -> None:
    with recorded() as log:
        create_directory(tmp_path / "a" / "b" / "c", 0o700)
    assert log.steps(tmp_path) == ["mkdir a", "fsync .", "mkdir a/b", "fsync a", "mkdir a/b/c", "fsync a/b"]
    assert stat.S_IMODE((tmp_path / "a" / "b" / "c").stat().st_mode) == 0o700
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with recorded() as log:
        create_directory(tmp_path / "a" / "b" / "c", 0o700)
    assert log.events == []


def test_a_directory_that_another_process_creates_meanwhile_is_no_error(tmp_path: Path) -> None:
    def create(event: Event) -> None:
        if event.kind == "mkdir":
            event.path.mkdir()

    with recorded(create) as log:
        create_directory(tmp_path / "new")
    assert log.steps(tmp_path, "fsync") == ["fsync ."]


def test_an_fsync_of_a_directory_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    fsync_directory(tmp_path)

    def break_disk(event: Event) -> None:
        raise OSError(5, "Input/output error")

    with recorded(break_disk), pytest.raises(OSError, match="Input/output"):
        fsync_directory(tmp_path)
    assert psutil.Process().num_fds() == before
