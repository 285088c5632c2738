"""A migrated database for Prefect servers: migrating takes eleven seconds of a core."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

_NAME = "prefect.db"
_MIGRATE = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


def make_database(shared: Path) -> Path:
    """The migrated database in a folder; of the processes that ask for it, the first makes it."""
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            environment = os.environ | {"PREFECT_HOME": str(shared)}
            subprocess.run([sys.executable, "-c", _MIGRATE], env=environment, check=True)
            with closing(sqlite3.connect(shared / _NAME)) as database:  # one file, to be copied
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (shared / "done").touch()
    return shared / _NAME


def copy_database(database: Path, home: Path, name: str = _NAME) -> Path:
    """Makes a home whose first server has nothing to migrate."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.joinpath(name).touch(0o600)
    shutil.copyfile(database, home / name)
    return home
