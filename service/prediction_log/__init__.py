"""The prediction log: what models were asked and what they answered, in Parquet files per model and version.

log_files        layout of the directory: names, complete files, replacement of merged files
log_tables       recorded calls -> Arrow record batches; the columns
recorder         collects the calls of a process and writes them, in one thread
log_reader       rows of a model in the order of time, with the labels that callers reported
log_maintenance  merges small files, deletes old rows and the logs of deleted models

Nothing here knows HTTP: web processes record and read, workers maintain and may read.
"""
