"""Tasks: number of failed attempts, without those whose worker died"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    failures: sa.Column[int] = sa.Column("failures", sa.Integer(), nullable=False, server_default="0")
    op.add_column("tasks", failures)


def downgrade() -> None:
    op.drop_column("tasks", "failures")
