"""Media types of the files that jobs read and write, and of example rows, with their suffixes.

Request bodies, command options, checks and messages read these tables. The command line reads them too, so
this module imports nothing heavy.

A new output type needs an entry in `OutputType` and `SUFFIXES`, an encoder in `service/formats/writing.py`,
and a way to join parts in `service/formats/assembly.py`. A new input type needs an entry in `InputType` and
`SUFFIXES`, and a reader module that is registered in `service/formats/reading.py`.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

InputType = Literal[
    "text/csv",
    "application/vnd.apache.parquet",
    "application/x-ndjson",
    "application/vnd.apache.arrow.stream",
]
OutputType = Literal["text/csv", "application/vnd.apache.parquet", "application/x-ndjson"]
ExampleType = Literal["text/csv", "application/vnd.apache.parquet", "application/json"]
"""Types of example and calibration rows; `service/compiler/example.py` reads them."""

CSV: Final = "text/csv"
PARQUET: Final = "application/vnd.apache.parquet"
NDJSON: Final = "application/x-ndjson"
ARROW: Final = "application/vnd.apache.arrow.stream"
JSON: Final = "application/json"

INPUT_TYPES: tuple[InputType, ...] = get_args(InputType)
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)
EXAMPLE_TYPES: tuple[ExampleType, ...] = get_args(ExampleType)
TEXT_TYPES = (CSV, NDJSON)
"""Formats without column types. Their files may be compressed."""
BINARY_TYPES = tuple(media_type for media_type in INPUT_TYPES if media_type not in TEXT_TYPES)
"""Formats that a terminal cannot show."""

SUFFIXES: dict[str, tuple[str, ...]] = {
    CSV: (".csv",),
    PARQUET: (".parquet", ".pq"),
    NDJSON: (".jsonl", ".ndjson"),
    ARROW: (".arrow", ".arrows", ".feather", ".ipc"),
}
"""File name endings of each type. Outputs get the first one."""
COMPRESSION_SUFFIXES = (".gz", ".zst", ".bz2")
"""Further endings of compressed text files: `rows.csv.gz`."""

TYPE_BY_SUFFIX = {suffix: media_type for media_type, suffixes in SUFFIXES.items() for suffix in suffixes}
OUTPUT_TYPE_BY_SUFFIX = {suffix: media_type for media_type in OUTPUT_TYPES for suffix in SUFFIXES[media_type]}
EXAMPLE_TYPE_BY_SUFFIX: dict[str, ExampleType] = {".csv": CSV, ".parquet": PARQUET, ".json": JSON}


def input_suffixes(media_type: str) -> tuple[str, ...]:
    """Return the file name endings that a directory of `media_type` files may contain."""
    suffixes = SUFFIXES[media_type]
    if media_type == NDJSON:
        suffixes += (".json",)  # not in `SUFFIXES`: such a file may also be a single JSON array
    if media_type in TEXT_TYPES:
        return tuple(suffix + ending for suffix in suffixes for ending in ("", *COMPRESSION_SUFFIXES))
    return suffixes
