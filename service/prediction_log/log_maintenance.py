"""Maintenance of prediction logs by workers: merges small files, deletes old rows and unused labels.

Each step is safe to kill and to run in several workers: one of them holds a model's maintenance lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from secrets import token_hex

from registry import db, labels, prediction_logs
from registry.prediction_logs import LogSettings
from service import telemetry
from service.prediction_log import log_files
from service.prediction_log.log_files import LogFile

LOG_STEP_S = 30.0
"""Pause between two steps."""
MERGE_FILES = 16
"""As many files of one level and day become one file of the next level. A row is merged log16 times."""
MERGED_BYTES = 256 * 2**20
"""Larger files are not merged. They are what retention by size deletes at once."""
CLOSED_AFTER = timedelta(hours=1)
"""The files of a day are merged to one this long after its end."""
PARTIAL_S = 600.0
"""Unfinished files of killed processes are deleted this long after their last write."""
LABEL_MARGIN = timedelta(days=1)
"""Labels are kept at least this long: a prediction may not be written yet, or clocks may differ."""
KEPT_FILES = 8
"""A limit of size holds that many merged files at least: the oldest one is deleted whole."""
MB = 1 << 20

log = telemetry.logger(__name__)


class LogMaintenance:
    """Maintains every log below the directory `root`."""

    def __init__(self, root: Path, sessions: db.Sessions) -> None:
        self._root = root
        self._sessions = sessions

    def step(self) -> None:
        """Maintain all logs once. Failures are logged and do not stop the maintenance of other logs."""
        paths = sorted(self._root.iterdir()) if self._root.is_dir() else []
        directories = {log_files.model_id_of(path): path for path in paths}
        with db.reading(self._sessions) as session:  # after the listing: a new model's log is not listed yet
            settings = prediction_logs.by_model(session)
        oldest, all_maintained = datetime.now(UTC), True
        for model_id, directory in directories.items():
            if model_id is None:
                continue
            try:
                if model_id in settings:
                    self._maintain(directory, settings[model_id])
                else:
                    self._delete_log(directory)
                oldest = min([oldest, *(f.first for files in _files(directory).values() for f in files)])
            except FileNotFoundError:
                continue  # another worker deleted the log
            except Exception as error:  # the disk is full, or a file is damaged
                log.warning("prediction_log.not_maintained", directory=str(directory), error=str(error))
                all_maintained = False
        if all_maintained:  # otherwise `oldest` is not known
            self._delete_labels(oldest - LABEL_MARGIN)

    def _maintain(self, directory: Path, settings: LogSettings) -> None:
        with log_files.maintaining(directory) as allowed:
            if not allowed:
                return
            for version_directory in log_files.version_directories(directory).values():
                log_files.delete_partial_files(version_directory, PARTIAL_S)
                log_files.finish_replacements(version_directory)
            expired = expired_files(
                [f for files in _files(directory).values() for f in files], settings, datetime.now(UTC)
            )
            self._delete_files(directory, expired)
            for files in _files(directory).values():
                for group in mergeable_files(files, datetime.now(UTC), settings.max_mb):
                    from service.prediction_log.log_parquet import merge_files  # see service/startup.py

                    merge_files(group, f"{token_hex(5)}-0")

    def _delete_log(self, directory: Path) -> None:
        """Delete the log of a model that was deleted."""
        for files in _files(directory).values():
            for file in files:
                self._delete_labels_of(file.path)
        log_files.delete_log(directory)
        log.info("prediction_log.deleted", directory=directory.name)

    def _delete_files(self, directory: Path, files: Sequence[LogFile]) -> None:
        for file in files:
            self._delete_labels_of(file.path)
            with log_files.locked(directory, shared=False):
                file.path.unlink(missing_ok=True)
        if files:
            log.info("prediction_log.expired", directory=directory.name, files=len(files))

    def _delete_labels_of(self, path: Path) -> None:
        """Delete the labels of the predictions in a file, which is deleted next."""
        import pyarrow as pa  # see service/startup.py
        import pyarrow.parquet as pq

        try:
            for batch in pq.ParquetFile(path).iter_batches(1 << 16, columns=["id"]):
                with db.reading(self._sessions) as session:
                    labelled = labels.labelled(session, set(batch.column("id").to_pylist()))
                if labelled:
                    with self._sessions.begin() as session:
                        labels.delete_of_predictions(session, labelled)
        except pa.ArrowInvalid as error:  # damaged: its predictions are not known
            log.warning("prediction_log.damaged", file=str(path), error=str(error))

    def _delete_labels(self, moment: datetime) -> None:
        """Delete labels older than `moment`: a label is reported after its prediction, which is in no log."""
        with db.reading(self._sessions) as session:
            if not labels.any_older(session, moment):
                return
        with self._sessions.begin() as session:
            count = labels.delete_older(session, moment)
        log.info("labels.deleted", labels=count)


def expired_files(files: Sequence[LogFile], settings: LogSettings, moment: datetime) -> list[LogFile]:
    """Return the files that exceed a model's limits: older than `keep_days`, or the oldest above `max_mb`."""
    newest_first = sorted(files, key=lambda f: f.last, reverse=True)
    expired, total = [], 0
    for file in newest_first:
        total += file.path.stat().st_size
        too_old = settings.keep_days is not None and file.last <= moment - timedelta(days=settings.keep_days)
        if too_old or (settings.max_mb is not None and total > settings.max_mb * MB):
            expired.append(file)
    return expired


def mergeable_files(
    files: Sequence[LogFile], moment: datetime, max_mb: int | None = None
) -> list[list[LogFile]]:
    """Return groups of a version's files that should become one file each.

    `MERGE_FILES` of one level, or all of a day that is over. Files of different days stay apart, so that
    retention by age deletes single days. `max_mb`: the limit of the log.
    """
    most = MERGED_BYTES if max_mb is None else min(MERGED_BYTES, max_mb * MB // KEPT_FILES)
    small = [f for f in files if f.path.stat().st_size < most]
    groups = []
    for day, of_day in groupby(sorted(small, key=lambda f: f.first), key=lambda f: f.first.date()):
        members = list(of_day)
        is_over = (
            datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1) + CLOSED_AFTER < moment
        )
        levels = {0: members} if is_over else _by_level(members)
        for level in levels.values():
            groups += _limited(level, 2 if is_over else MERGE_FILES, most)
    return groups


def _by_level(files: Sequence[LogFile]) -> dict[int, list[LogFile]]:
    levels: dict[int, list[LogFile]] = {}
    for file in files:
        levels.setdefault(file.level, []).append(file)
    return levels


def _limited(files: Sequence[LogFile], min_files: int, most: int) -> list[list[LogFile]]:
    """Split files into groups of at least `min_files` and at most about `most` bytes."""
    groups: list[list[LogFile]] = []
    group: list[LogFile] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.path.stat().st_size
        if size >= most:
            groups.append(group)
            group, size = [], 0
    groups.append(group)
    return [g for g in groups if len(g) >= min_files or (len(g) > 1 and _size(g) >= most)]


def _size(files: Sequence[LogFile]) -> int:
    return sum(file.path.stat().st_size for file in files)


def _files(directory: Path) -> dict[int, list[LogFile]]:
    """Return the files of each version. Raises `FileNotFoundError` if the log was deleted."""
    with log_files.locked(directory, shared=True):
        versions = log_files.version_directories(directory)
        return {number: log_files.list_files(path) for number, path in versions.items()}
