"""Schedules: whether their start was set explicitly"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column: sa.Column[bool] = sa.Column(
        "start_given", sa.Boolean(), nullable=False, server_default=sa.false()
    )
    op.add_column("schedules", column)


def downgrade() -> None:
    op.drop_column("schedules", "start_given")
