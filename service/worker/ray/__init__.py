"""The engine `ray`: a job's partitions on a Ray cluster, as descriptors over actors that hold the model.

engine     in the worker: hands the partitions to a driver and records what comes back
driver     a process of its own, the one that Ray knows; it has neither database nor keys
actor      on the cluster's nodes: does one partition after another, as a lane would
messages   what they say to each other

Only `driver` and `actor` import Ray (extra `ray`), and no web process and no worker imports those.
"""
