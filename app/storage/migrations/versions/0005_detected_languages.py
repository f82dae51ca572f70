"""detected languages of transcripts."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "transcripts", sa.Column("detected_language", sa.String(length=20), nullable=True)
    )
