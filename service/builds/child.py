"""A build child's work: load the upload, describe it, compile it, measure it, report."""

from __future__ import annotations

from registry.build.job import Built, BuildJob


def build(job: BuildJob) -> Built:
    """Never raises for a bad model: that is `state="rejected"` with the reason in the report.

    Runs in a process that has called `sandbox.confine(job.memory_mb)`, with one thread per library.
    """
    raise NotImplementedError
