"""Fast path for plain CSV: numbers and text of a block in one pass over its bytes.

A scoring job on CSV spends most of its time on parsing numbers. This parser reads numbers of 4 to 6 digits
four times as fast as pyarrow and more than twice as fast as polars. For 17 digits, which `repr` writes, it
is about as fast as polars. With short numbers and a cheap model, either library doubles the time of a job:
docs/adr/0022 has the measurements and the alternatives.

A block is plain if it contains no quotes, each row has as many cells as the header, no feature is a string
or a boolean, and each number has at most 19 significant digits and no spaces around it. Any other block is
left to pyarrow (`csv_reader`), which also produces all messages about invalid cells. Both paths return the
nearest float64 to the decimal digits, so the result does not depend on the path.

- `blocks`: the entry point. Chooses the columns, checks the values, builds a `Block`.
- `compiled`: the parser, compiled by numba. Functions that are compiled together must be in one module,
  because the cache of compiled code is keyed by the module's bytes (`service.runtime.numba_cache`).

Most numbers in files are short. `parse_short` examines sixteen bytes at once to locate the end of a number,
and converts up to seven digits with three multiplications. Longer numbers, exponents and signs are handled
by `parse_number`: eight digits at a time, then one multiplication by a 128-bit power of ten. Numbers that
these methods cannot round with certainty make the block not plain.

Sources: W. D. Clinger, "How to read floating point numbers accurately" (1990), for the exact case of small
mantissas and powers; D. Lemire, "Number parsing at a gigabyte per second" (2021), for eight digits at once
and for the multiplication by 128-bit powers of ten.
"""
