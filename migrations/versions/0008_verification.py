"""Versions and exports: the publisher's answers, the measured rows, and checks of them"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLES = ("versions", "exports")


def upgrade() -> None:
    answers: sa.Column[dict[str, Any]] = sa.Column("answers", sa.JSON(), nullable=True)
    verification: sa.Column[dict[str, Any]] = sa.Column("verification", sa.JSON(), nullable=True)
    op.add_column("versions", answers)
    op.add_column("versions", verification)
    op.add_column("versions", sa.Column("fallback", sa.String(), nullable=True))
    for table in TABLES:
        for column in ("measured", "libraries"):
            op.add_column(table, sa.Column(column, sa.String(), nullable=True))
            op.create_index(f"ix_{table}_{column}", table, [column])


def downgrade() -> None:
    for table in TABLES:
        for column in ("libraries", "measured"):
            op.drop_index(f"ix_{table}_{column}", table)
            op.drop_column(table, column)
    for column in ("fallback", "verification", "answers"):
        op.drop_column("versions", column)
