"""Versions and exports: the publisher's answers, the measured rows, and whether their answers still agree"""

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
    op.add_column("versions", answers)
    for table in TABLES:
        verification: sa.Column[dict[str, Any]] = sa.Column("verification", sa.JSON(), nullable=True)
        op.add_column(table, sa.Column("measured", sa.String(), nullable=True))
        op.add_column(table, verification)
        op.create_index(f"ix_{table}_measured", table, ["measured"])


def downgrade() -> None:
    for table in TABLES:
        op.drop_index(f"ix_{table}_measured", table)
        op.drop_column(table, "verification")
        op.drop_column(table, "measured")
    op.drop_column("versions", "answers")
