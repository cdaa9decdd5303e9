"""Batch: jobs, their partitions, schedules and their runs"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BY_BYTES = sa.String().with_variant(sa.String(collation="C"), "postgresql")
MOMENT = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    op.add_column("tasks", sa.Column("concurrency_key", sa.String(), nullable=True))
    op.add_column("versions", sa.Column("forest", sa.String(), nullable=True))
    op.create_index(op.f("ix_versions_forest"), "versions", ["forest"])
    _jobs()
    _partitions()
    _schedules()


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("model", BY_BYTES, nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("plan", JSON, nullable=True),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("output", sa.String(), nullable=True),
        sa.Column("errors", sa.String(), nullable=True),
        sa.Column("manifest", JSON, nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("schedule", sa.String(), nullable=True),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.Column("keep_s", sa.Double(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_jobs_version_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["jobs.id"], name=op.f("fk_jobs_parent_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sqlite_autoincrement=True,
    )
    for columns in (["state", "id"], ["model", "id"]):
        op.create_index(op.f(f"ix_jobs_{'_'.join(columns)}"), "jobs", columns)
    for column in ("version_id", "output", "errors", "parent_id", "expires_at"):
        op.create_index(op.f(f"ix_jobs_{column}"), "jobs", [column])


def _partitions() -> None:
    op.create_table(
        "partitions",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.Column("part", JSON, nullable=False),
        sa.Column("rows_total", sa.Integer(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("result", JSON, nullable=True),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_partitions_job_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_partitions_task_id")),
        sa.PrimaryKeyConstraint("job_id", "stage", "number", name=op.f("pk_partitions")),
    )
    op.create_index(op.f("ix_partitions_task_id"), "partitions", ["task_id"])


def _schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("name", BY_BYTES, nullable=False),
        sa.Column("job", JSON, nullable=False),
        sa.Column("cron", sa.String(), nullable=True),
        sa.Column("every_s", sa.Double(), nullable=True),
        sa.Column("timezone", sa.String(), nullable=False),
        sa.Column("start_at", MOMENT, nullable=False),
        sa.Column("catch_up", sa.Boolean(), nullable=False),
        sa.Column("overlap", sa.Boolean(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("next_at", MOMENT, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_schedules")),
    )
    op.create_index(op.f("ix_schedules_next_at"), "schedules", ["next_at"])
    op.create_table(
        "schedule_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("schedule", BY_BYTES, nullable=False),
        sa.Column("due_at", MOMENT, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("job_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["schedule"], ["schedules.name"], name=op.f("fk_schedule_runs_schedule"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_schedule_runs_job_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule_runs")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_schedule_runs_schedule_id"), "schedule_runs", ["schedule", "id"])
    op.create_index(op.f("ix_schedule_runs_job_id"), "schedule_runs", ["job_id"])


def downgrade() -> None:
    for table in ("schedule_runs", "schedules", "partitions", "jobs"):
        op.drop_table(table)
    op.drop_index(op.f("ix_versions_forest"), "versions")
    op.drop_column("versions", "forest")
    op.drop_column("tasks", "concurrency_key")
