"""Why workers died, and what drivers wait for."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    loss = sa.Enum("accident", "memory", "crash", "deleted", name="loss", native_enum=False, length=16)
    op.add_column("attempts", sa.Column("loss", loss, nullable=True))
    op.add_column("drivers", sa.Column("waits_for", sa.Text(), nullable=True))
