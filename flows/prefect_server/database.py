"""A new Prefect server's database, from the schema that the migrations of Prefect end in.

To replay them takes four seconds of a core. `python scripts/prefect_schema.py` writes the schema.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

SCHEMA = Path(__file__).with_name("schema.sql")


def revision(schema: str) -> str:
    """The last migration that is in a schema."""
    return schema.partition('INSERT INTO "alembic_version" VALUES(\'')[2].partition("'")[0]


def create_database(url: str) -> None:
    """Makes the SQLite file of a connection URL, if there is none; else does nothing.

    Prefect still applies what migrations are newer than the schema. A Prefect that is older has
    to make its own.
    """
    import prefect.server.database
    from sqlalchemy import make_url

    parts, schema = make_url(url), SCHEMA.read_text("utf-8")
    path = Path(parts.database or "")
    known = Path(prefect.server.database.__path__[0], "_migrations/versions/sqlite")
    # Anything else is PostgreSQL's name of a database, ":memory:", or SQLite's own kind of address
    if not path.is_absolute() or path.exists() or not path.parent.is_dir():
        return
    if any(known.glob(f"*_{revision(schema)}_*.py")):
        half = path.with_name(f"{path.name}.new")  # never seen by another server
        half.unlink(missing_ok=True)
        with closing(sqlite3.connect(half)) as database:
            database.executescript(schema)
        half.rename(path)
