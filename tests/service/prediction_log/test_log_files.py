"""Files of a log are complete or absent, and a merged file counts once whenever a process is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.prediction_log import log_files
from service.prediction_log.log_parquet import merge_files
from tests.service.prediction_log.calls import inputs, read, simple_call, write_calls


class Killed(BaseException):
    """Ends a step as a kill does: no handler of `Exception` runs."""


def kill(*_: object) -> None:
    raise Killed


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of a version with three files."""
    for number in (1, 2, 3):
        path = write_calls(tmp_path, [simple_call(number), simple_call(number + 10)], f"a-{number}")
    return path.parent


def merge(directory: Path) -> Path:
    return merge_files(log_files.list_files(directory), "b-1")


def test_a_merged_file_replaces_its_sources(directory: Path, tmp_path: Path) -> None:
    merged = merge(directory)
    assert [path.name for path in directory.iterdir()] == [merged.name]
    assert log_files.list_files(directory)[0].level == 1
    assert inputs(read(tmp_path)) == [1, 2, 3, 11, 12, 13]


@pytest.mark.parametrize(
    ("step", "merged_files"),
    [("write_durably", 0), ("_rename", 0), ("_finish", 1), ("_finish_sources", 1)],
)
def test_a_kill_between_two_steps_of_a_replacement_loses_and_doubles_no_row(
    step: str, merged_files: int, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if step == "_rename":
            patch.setattr(Path, "rename", kill)
        elif step == "_finish_sources":  # one source is deleted already
            patch.setattr(log_files, "_finish", lambda journal: kill(_delete_one_source(journal)))
        else:
            patch.setattr(log_files, step, kill)
        with pytest.raises(Killed):
            merge(directory)
    assert inputs(read(tmp_path)) == [1, 2, 3, 11, 12, 13]
    log_files.finish_replacements(directory)
    log_files.delete_partial_files(directory, older_than_s=-1)
    assert inputs(read(tmp_path)) == [1, 2, 3, 11, 12, 13]
    files = log_files.list_files(directory)
    assert len(files) == (1 if merged_files else 3)
    assert sorted(path.name for path in directory.iterdir()) == sorted(f.path.name for f in files)


def _delete_one_source(journal: Path) -> None:
    (journal.parent / log_files._read_journal(journal)[0]).unlink()


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "m.7/1/x.parquet"

    def fail() -> None:
        with log_files.new_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(path.parent.iterdir()) == []


def test_only_the_last_part_of_a_directory_name_is_the_model_id() -> None:
    for name in ("iris", "iris.2", "1.2-3"):
        assert log_files.model_id_of(log_files.model_directory(Path("p"), name, 41)) == 41
    assert log_files.model_id_of(Path("p/.lock")) is None


def test_only_one_process_maintains_a_log(directory: Path) -> None:
    with log_files.maintaining(directory.parent) as first, log_files.maintaining(directory.parent) as second:
        assert (first, second) == (True, False)
