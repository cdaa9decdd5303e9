"""The engine `ray`: partitions of a job run on a Ray cluster, in actors that hold the model.

    engine     in the worker: sends partitions to a driver and records the reports
    driver     a process of its own and the only one connected to Ray; it has no database access and no keys
    actor      on the nodes of the cluster: runs one partition after another, like a lane
    messages   what these three exchange

Only `driver` and `actor` import Ray (extra `ray`). Web processes and workers do not import them.
"""
