"""Train an estimator over partitions of a table, one step at a time.

Each step reads rows and the files of earlier steps, and writes one file. `steps.run` runs only in a build
child; the worker imports `fit_records`, `splitting` and `sampling`, which run no code of a model.
"""
