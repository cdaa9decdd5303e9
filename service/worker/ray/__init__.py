"""The engine `ray`: partitions of a job run on a Ray cluster, in actors that hold the model.

    engine     in the worker: sends partitions to a driver and records the reports
    driver     separate process, the only one connected to Ray; without database access and without keys
    actor      on the nodes of the cluster: runs one partition after another, like a lane
    messages   the messages between these three

Only `driver` and `actor` import Ray (extra `ray`). Web processes and workers do not import them.
"""
