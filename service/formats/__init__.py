"""Tabular files of jobs: streaming readers, durable writers, assembly of the output."""
