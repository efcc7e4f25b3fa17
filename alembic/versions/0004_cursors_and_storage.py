"""Claim cursors, storage settings, idle workers looked up from now on."""

from alembic import op

from pgqueue.cli.migrate import run_file

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Run the SQL file of the same name. There is no way back: a backup is one."""
    run_file(op.get_context(), __file__)
