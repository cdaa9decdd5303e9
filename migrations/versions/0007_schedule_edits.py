"""Schedules: who changed which fields, and when"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    edits: sa.Column[list[Any]] = sa.Column("edits", sa.JSON(), nullable=False, server_default="[]")
    op.add_column("schedules", edits)


def downgrade() -> None:
    op.drop_column("schedules", "edits")
