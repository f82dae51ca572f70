"""Alembic's entry point: runs the migrations on the connection that `migrate` passes."""

from alembic import context

from app.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
