"""Registry: a stable random identifier"""

from __future__ import annotations

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column: sa.Column[str] = sa.Column("registry_id", sa.String(), nullable=False, server_default="")
    op.add_column("revision", column)
    row = sa.table("revision", sa.column("registry_id"))
    op.execute(row.update().values(registry_id=uuid4().hex))


def downgrade() -> None:
    op.drop_column("revision", "registry_id")
