"""Workflows: steps, parts, saved groups."""

from alembic import op

from pgqueue.cli.migrate import run_file

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Run the SQL file of the same name. There is no way back: a backup is one."""
    run_file(op.get_context(), __file__)
