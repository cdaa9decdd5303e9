"""Prediction logs: their settings by model, and labels of predictions"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prediction_logs",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("sample", sa.Double(), nullable=False),
        sa.Column("keep_days", sa.Integer(), nullable=True),
        sa.Column("max_mb", sa.Integer(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", name="pk_prediction_logs"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_prediction_logs_model_id"),
    )
    op.create_table(
        "labels",
        sa.Column("prediction_id", sa.String(), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("prediction_id", "row", "key_id", name="pk_labels"),
    )
    op.create_index("ix_labels_at", "labels", ["at"])


def downgrade() -> None:
    op.drop_table("labels")
    op.drop_table("prediction_logs")
