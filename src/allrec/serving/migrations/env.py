"""What alembic runs: the migrations, on the connection and in the transaction that ``database.migrate`` opened."""

from alembic import context

from allrec.serving.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
