"""Edge: exports, device reports, rollouts that halt"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "exports",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("quantize", sa.String(), nullable=False),
        sa.Column("calibration", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("bounds", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("blob", sa.String(), nullable=True),
        sa.Column("bytes", sa.Integer(), nullable=True),
        sa.Column("zstd", sa.String(), nullable=True),
        sa.Column("min_runtime", sa.String(), nullable=True),
        sa.Column("report", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_exports_version_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exports")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_exports_blob"), "exports", ["blob"])
    op.create_index(op.f("ix_exports_version_id"), "exports", ["version_id"])
    op.create_table(
        "device_reports",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=True),
        sa.Column("message", sa.String(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_device_reports_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_reports")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_device_reports_at"), "device_reports", ["at"])
    op.create_index(
        op.f("ix_device_reports_model_id_version_device"), "device_reports", ["model_id", "version", "device"]
    )
    op.create_table(
        "tuf_metadata",
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("role", "version", name=op.f("pk_tuf_metadata")),
    )
    op.add_column("aliases", sa.Column("edge_previous", sa.Integer(), nullable=True))
    op.add_column("aliases", sa.Column("edge_halted", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("aliases", "edge_halted")
    op.drop_column("aliases", "edge_previous")
    op.drop_table("tuf_metadata")
    op.drop_table("device_reports")
    op.drop_table("exports")
