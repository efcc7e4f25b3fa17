"""${message}"""

from alembic import op
from pgqueue.cli.migrate import run_file

revision = "${up_revision}"
down_revision = ${repr(down_revision).replace("'", '"')}


def upgrade() -> None:
    """Run the SQL file of the same name. There is no way back: a backup is one."""
    run_file(op.get_context(), __file__)
