"""Continuations, errbacks, history and progress."""

from alembic import op

from pgqueue.cli.migrate import run_file

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Run the SQL file of the same name. There is no way back: a backup is one."""
    run_file(op.get_context(), __file__)
