"""What inputs and outputs may be: media types, and how the names of such files end.

No Arrow in here: web processes and the command ask, too.
"""

from __future__ import annotations

CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
OUTPUTS = (PARQUET, CSV, LINES)

SUFFIXES = {
    CSV: (".csv",),
    PARQUET: (".parquet", ".pq"),
    LINES: (".jsonl", ".ndjson"),
    ARROW: (".arrow", ".arrows", ".feather", ".ipc"),
}
"""The first is the one that outputs get."""
COMPRESSED = (".gz", ".zst", ".bz2")
"""What may follow in the name of a text."""
BY_SUFFIX = {suffix: media_type for media_type, suffixes in SUFFIXES.items() for suffix in suffixes}
