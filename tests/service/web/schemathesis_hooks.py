"""Hooks that test_schemathesis.py loads into the schemathesis process."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import Case, HookContext
from schemathesis.generation.meta import CoveragePhaseData

SCHEDULES = {"POST /v1/schedules", "PATCH /v1/schedules/{schedule}"}
IN_JOB = ("job -> ", "Object with valid 'job' value: ")
"""Beginnings of the descriptions of cases that vary something within a schedule's job."""


@schemathesis.hook
def filter_case(context: HookContext, case: Case[Any]) -> bool:
    """Skip short timeouts of predictions, which are rightly answered with 504, and repeated cases.

    The coverage phase also sends the fields of the job in a schedule to POST /v1/jobs. The examples and the
    fuzzing phase still send schedules with every field of their jobs.
    """
    if _is_short(case.headers.get("X-Request-Timeout")):
        return False
    if case.meta is None or not isinstance(case.meta.phase.data, CoveragePhaseData):
        return True
    return case.operation.label not in SCHEDULES or not case.meta.phase.data.description.startswith(IN_JOB)


def _is_short(timeout: object) -> bool:
    try:
        return 0 < float(str(timeout)) < 20
    except ValueError:
        return False
