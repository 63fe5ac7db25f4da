"""Runs that repeat a candidate with another seed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # every run so far is its candidate's first and only one
    op.add_column("runs", sa.Column("repeat", sa.Integer(), server_default="0", nullable=False))
