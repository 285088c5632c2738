"""Writes what the migrations of the installed Prefect make: `python scripts/prefect_schema.py`."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from flows.prefect_server.database import SCHEMA

MIGRATE = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


def migrated_schema(home: Path) -> str:
    """The schema of the database in a Prefect home, which is made or brought up to date."""
    environment = os.environ | {"PREFECT_HOME": str(home)}
    subprocess.run([sys.executable, "-c", MIGRATE], env=environment, check=True)
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        return "\n".join(database.iterdump()) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        SCHEMA.write_text(migrated_schema(Path(home)), "utf-8")
