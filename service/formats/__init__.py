"""Tabular files of jobs: streaming readers, durable writers, assembly of the output.

Import from the submodules. The package itself imports nothing, so that web processes and the command line
can use `media_types` without pyarrow.
"""
