"""Aliases: traffic that is split over versions, and the results of shadow versions"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    traffic: sa.Column[dict[str, Any]] = sa.Column("traffic", sa.JSON(), nullable=True)
    op.add_column("alias_events", traffic)
    op.create_table(
        "alias_traffic",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("put_id", sa.Integer(), nullable=False),
        sa.Column("event_id", sa.Integer(), nullable=False),
        sa.Column("weights", sa.JSON(), nullable=False),
        sa.Column("segments", sa.JSON(), nullable=False),
        sa.Column("sticky_header", sa.String(), nullable=True),
        sa.Column("error_rate", sa.Double(), nullable=True),
        sa.Column("p99_ms", sa.Double(), nullable=True),
        sa.Column("shadow_version", sa.Integer(), nullable=True),
        sa.Column("shadow_alias", sa.String(), nullable=True),
        sa.Column("shadow_id", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("model_id", "alias", name="pk_alias_traffic"),
        sa.ForeignKeyConstraint(
            ["model_id", "alias"], ["aliases.model_id", "aliases.name"], name="fk_alias_traffic_model_id"
        ),
        sa.ForeignKeyConstraint(["put_id"], ["alias_events.id"], name="fk_alias_traffic_put_id"),
        sa.ForeignKeyConstraint(["event_id"], ["alias_events.id"], name="fk_alias_traffic_event_id"),
        sa.ForeignKeyConstraint(["shadow_id"], ["alias_events.id"], name="fk_alias_traffic_shadow_id"),
    )
    for column in ("put_id", "event_id", "shadow_id"):
        op.create_index(f"ix_alias_traffic_{column}", "alias_traffic", [column])
    op.create_table(
        "shadow_results",
        sa.Column("shadow_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("shadow_version", sa.Integer(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("agreed", sa.BigInteger(), nullable=False),
        sa.Column("difference_sum", sa.Double(), nullable=False),
        sa.Column("largest_difference", sa.Double(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("shed", sa.BigInteger(), nullable=False),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.Column("latency", sa.JSON(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("shadow_id", "version", "shadow_version", name="pk_shadow_results"),
        sa.ForeignKeyConstraint(
            ["shadow_id"], ["alias_events.id"], name="fk_shadow_results_shadow_id", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("shadow_results")
    op.drop_table("alias_traffic")
    op.drop_column("alias_events", "traffic")
