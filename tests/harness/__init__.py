"""Helpers that tests and benchmarks share: a server process, models to publish, load and fault injection.

server         `trivium serve` in a child process
models         small fitted models, pickled
machine        free ports, CPU time, a description of the machine
load           a load generator over keep-alive connections
job_site       a server with a model and an input whose every answer is known
durability     the order of fsyncs, renames and commits
server_kills   kill -9 of the server while clients publish
worker_kills   kill -9 of the worker during one job
mutants        copies of a file with one fault, for benchmarks/mutation.py
job_faults     other faults during a job: stopped workers, a full disk, a changed input
"""
