"""The cache of transcripts, so that a checkpoint decodes an utterance only once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Engine, select
from sqlalchemy.dialects import postgresql, sqlite

from app.contract.evaluation import Transcript
from app.storage.database import MOST_PARAMETERS, now, reading, writing
from app.storage.tables import transcripts


class StoredTranscripts:
    """Transcripts in the database, by the digest of everything that determines them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get_many(self, keys: Sequence[str]) -> dict[str, Transcript]:
        """Return the stored transcripts among the keys."""
        found: dict[str, Transcript] = {}
        with reading(self._engine) as connection:
            for start in range(0, len(keys), MOST_PARAMETERS):
                part = list(keys[start : start + MOST_PARAMETERS])
                query = select(transcripts).where(transcripts.c.key.in_(part))
                for row in connection.execute(query):
                    found[row.key] = Transcript(
                        hypothesis=row.hypothesis,
                        decode_seconds=row.decode_seconds,
                        detected_language=row.detected_language,
                    )
        return found

    def put_many(self, items: Mapping[str, Transcript]) -> None:
        """Store the transcripts, except where the key exists already."""
        if not items:
            return
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        rows = [{"key": key, **item.model_dump()} for key, item in items.items()]
        statement = dialect.insert(transcripts).on_conflict_do_nothing()
        with writing(self._engine) as connection:
            moment = connection.execute(select(now())).scalar_one()
            connection.execute(statement, [{**row, "created_at": moment} for row in rows])
