"""The table of job kinds is complete, and the modules that it names exist."""

from __future__ import annotations

import typing

import pytest

from registry.vocabulary import JOB_KINDS
from service.submit import job_kinds
from service.submit.admission import JobAdmission
from service.worker.job_work import JobWork


def test_the_table_has_an_entry_for_each_job_kind() -> None:
    assert tuple(job_kinds.KIND_TABLE) == JOB_KINDS


def test_each_kind_has_a_request_body_that_is_selected_by_its_name() -> None:
    bodies = job_kinds.body_classes()
    assert [typing.get_args(body.model_fields["kind"].annotation) for body in bodies] == [
        (kind,) for kind in JOB_KINDS
    ]


def test_each_kind_returns_the_model_of_a_spec() -> None:
    specs = {"score": {"model": "fraud"}, "train": {"publish": {"name": "fraud"}}}
    for kind in JOB_KINDS:
        admission = job_kinds.admission_of(kind)
        assert admission.model_of(specs[kind]) == "fraud"
        with pytest.raises(KeyError):
            admission.model_of({})


def test_a_kind_must_define_where_its_model_is() -> None:
    assert "model_path" in JobAdmission.__abstractmethods__


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_each_kind_has_a_work_class_with_all_methods(kind: str) -> None:
    methods = {name for name in vars(JobWork) if not name.startswith("_")}
    assert methods == {"plan", "partition", "assemble", "ray_input", "on_ray"}
    assert methods <= set(dir(job_kinds.work_class(kind)))
