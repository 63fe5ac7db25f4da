"""Runs that were begun and can be gone on with, searches that finish a training or begin with another model."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("partial", sa.JSON(), nullable=True))
    op.add_column("searches", sa.Column("origin", sa.JSON(), nullable=True))
    op.add_column("searches", sa.Column("continues", sa.JSON(), nullable=True))
