"""The files of the batch road: streaming readers, durable writers, and joining what they wrote.

dataset      the structs that planning freezes          places    where files are, and whether they changed
reading      one way to read every format               formats: csvs, lines, parquet, ipc
records      bytes cut into whole records               cells     Arrow columns to checked rows
plain: digits, gathering, powers   the fast way through CSV
compact      Thrift, for Parquet's footers
writing      a partition's output and errors            assembly  all partitions' as one
balance      parts that lanes end together with

Nothing here holds more than a batch of rows, whatever the size of the files.
"""

from __future__ import annotations

from service.formats.assembly import PartErrors, assemble, assemble_errors
from service.formats.balance import balanced
from service.formats.dataset import BATCH_ROWS, Batch, Dataset, Fault, File, Part
from service.formats.format_table import extra_schema, suffix
from service.formats.reading import check_commas, check_head, open_dataset, read, split, tables
from service.formats.writing import ErrorWriter, PartWriter, Written

__all__ = [
    "BATCH_ROWS",
    "Batch",
    "Dataset",
    "ErrorWriter",
    "Fault",
    "File",
    "Part",
    "PartErrors",
    "PartWriter",
    "Written",
    "assemble",
    "assemble_errors",
    "balanced",
    "check_commas",
    "check_head",
    "extra_schema",
    "open_dataset",
    "read",
    "split",
    "suffix",
    "tables",
]
