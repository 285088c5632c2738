"""A new server's database: the same as Prefect's own migrations make it."""

from pathlib import Path

import pytest
from prefect_schema import migrated_schema

from flows.prefect_server import database
from flows.prefect_server.database import SCHEMA, create_database, revision


def lines(schema: str) -> list[str]:
    """Sorted, since a table's constraints come in any order."""
    return sorted(line.strip("\t ,") for line in schema.splitlines())


def test_the_schema_is_what_prefect_makes_of_an_empty_database(tmp_path: Path) -> None:
    written, migrated = SCHEMA.read_text("utf-8"), migrated_schema(tmp_path / "empty")
    if revision(migrated) != revision(written):  # a newer Prefect, which brings ours up to date
        (tmp_path / "ours").mkdir()
        create_database(f"sqlite:///{tmp_path}/ours/prefect.db")
        written = migrated_schema(tmp_path / "ours")
    assert lines(migrated) == lines(written), "python scripts/prefect_schema.py"


def test_it_is_made_once_and_only_where_prefect_can_go_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "prefect.db"
    url = f"sqlite+aiosqlite:///{path}"
    for other in (
        "postgresql+asyncpg://me@host/prefect",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true",
    ):
        create_database(other)
    create_database(f"sqlite:///{tmp_path}/missing/prefect.db")
    older = tmp_path / "schema.sql"
    older.write_text(SCHEMA.read_text("utf-8").replace(revision(SCHEMA.read_text()), "0123abcd"))
    with monkeypatch.context() as patch:
        patch.setattr(database, "SCHEMA", older)
        create_database(url)
    assert list(tmp_path.iterdir()) == [older]
    create_database(url)
    made = path.read_bytes()
    assert made.startswith(b"SQLite format 3")
    path.write_bytes(b"a user's own")
    create_database(url)
    assert path.read_bytes() == b"a user's own"
