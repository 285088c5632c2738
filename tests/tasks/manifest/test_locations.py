"""Manifests of several files, in a folder or on S3: one list of entries, each with its place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import boto3
import pytest
from task_samples import Write, plan, problems

from tasks.manifest.resolve import ManifestError, read_manifest
from tasks.records.runs import finish_run, start_run
from tasks.store import open_store
from tasks.store.interface import StoreError
from tasks.tables.read import query
from tasks.tables.write import record_run

FILES = {
    "b.csv": "id,prompt\nduck,a duck\nmug,a mug\n",
    "a.jsonl": '{"prompt": "a pig"}\n\n{"prompt": "a duck"}\n',
}
OTHERS = {".hidden.csv": "prompt\nno\n", "notes.txt": "no", "deeper/c.csv": "prompt\nno\n"}
PLACES = [
    ("a.jsonl", 1, "a-pig"),
    ("a.jsonl", 3, "a-duck"),
    ("b.csv", 2, "duck"),
    ("b.csv", 3, "mug"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "lists"
    (folder / "deeper").mkdir(parents=True)
    for name, content in (FILES | OTHERS).items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def prefix(s3_url: str) -> str:
    """The same files on S3."""
    bucket, _, key = s3_url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for name, content in (FILES | OTHERS).items():
        client.put_object(Bucket=bucket, Key=f"{key}/{name}", Body=content.encode())
    return s3_url


@pytest.mark.parametrize("where", ["folder", "prefix"])
def test_all_files_make_one_manifest(where: str, request: pytest.FixtureRequest) -> None:
    place = str(request.getfixturevalue(where))
    found = plan(place)  # type: ignore[arg-type]
    assert [(e.manifest, e.line, e.row_id) for e in found.entries] == [
        (f"{place}/{name}", line, row_id) for name, line, row_id in PLACES
    ]
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in FILES.items()}
    assert [e.manifest_sha256 for e in found.entries] == [digests[name] for name, *_ in PLACES]
    listed = "".join(f"{digests[name]}  {name}\n" for name in sorted(FILES))  # as sha256sum writes
    manifest = read_manifest(place)
    assert (manifest.name, manifest.sha256) == (
        place, hashlib.sha256(listed.encode()).hexdigest(),
    )  # fmt: skip
    [warning] = [text for text in found.warnings if "the same asset" in text]
    assert warning.startswith(f"{place}/b.csv:2: id: duck is the same asset as a-duck (")
    assert f"({place}/a.jsonl:3)" in warning


def test_one_file_on_s3(prefix: str) -> None:
    manifest = read_manifest(f"{prefix}/b.csv")
    assert manifest.sha256 == hashlib.sha256(FILES["b.csv"].encode()).hexdigest()
    assert [(row.manifest, row.line) for row in manifest.rows] == [
        (f"{prefix}/b.csv", n) for n in (2, 3)
    ]


def test_mistakes_name_their_file(folder: Path) -> None:
    (folder / "c.csv").write_text("id,prompt,seed\nmug,a red mug,\nx,,\n")
    (folder / "d.csv").write_text("id,prompt,seed\nlow,a,0-1\nlow-s1,b,\n")
    (folder / "e.csv").write_text("prompt,prior\na,nosuch\n")
    found = [text.replace(f"{folder}/", "").replace("lists/", "") for text in problems(folder)]
    assert [text.split("; ")[0] for text in found] == [
        "c.csv:2: id: 'mug' is the id of b.csv:3 too",
        "c.csv:3: prompt: is blank",
        "d.csv:3: id: 'low-s1' is the id of line 2 too",
        found[3].split("; ")[0],
    ]
    assert found[3].startswith("e.csv:2: prior: 'nosuch' is unknown")
    (folder / "c.csv").unlink()
    (folder / "d.csv").unlink()
    (folder / "e.csv").write_text("prompt,recipe\na,paper-duck\n")
    [text] = problems(folder)
    assert text.startswith("lists/e.csv:2: recipe: ")


def test_a_folder_without_manifests(tmp_path: Path, write: Write) -> None:
    write("no", "notes.txt")
    with pytest.raises(ManifestError, match=f"^{tmp_path}: file: holds no manifest; add a file"):
        read_manifest(tmp_path)


def test_what_s3_cannot_give(prefix: str) -> None:
    bucket = prefix.split("/")[2]
    cases = {
        f"{prefix}/none.csv": "it does not exist; check the address",
        f"{prefix}/empty": "holds no manifest; add a file",
        "s3://no-such-bucket/x.csv": "the bucket does not exist; create it",
    }
    for manifest, expected in cases.items():
        with pytest.raises(ManifestError) as caught:
            read_manifest(manifest)
        assert str(caught.value).startswith(f"{manifest}: file: ")
        assert expected in str(caught.value)
        assert "--store" not in str(caught.value)
    row = b"prompt,image,prior\na mug,mug.png,kxic/zero123-xl\n"
    boto3.client("s3").put_object(Bucket=bucket, Key="pictures.csv", Body=row)
    with pytest.raises(ManifestError, match=r"pictures.csv:2: image: .* S3 are not read; copy"):
        read_manifest(f"s3://{bucket}/pictures.csv")


def test_the_entries_table_names_each_rows_own_file(folder: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    manifest, entries = read_manifest(folder), plan(folder).entries
    run = start_run(store, "run1", manifest.name, manifest.sha256, entries, {})
    record_run(store, finish_run(store, run, {}))
    rows = query(store, "SELECT manifest, line, row_id FROM entries ORDER BY ALL").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (f"{folder}/{n}", *rest) for n, *rest in PLACES
    ]
    (run_row,) = query(store, "SELECT manifest FROM runs").to_pylist()
    assert run_row["manifest"] == str(folder)


NAMES = [
    "toys v2.csv",
    "a(1).csv",
    "Spielzeug für Kinder.csv",
    "100% (neu) & mehr!.csv",
    "#1 [x]'.csv",
    "new?.csv",
]


@pytest.mark.parametrize("folder", ["my lists", "lísts/deeper (2)", "a//b", "plain"])
def test_names_on_s3_are_the_users(s3_url: str, folder: str) -> None:
    bucket = s3_url.split("/")[2]
    for number, name in enumerate(NAMES):
        content = f"prompt\na toy {number}\n".encode()
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{folder}/{name}", Body=content)
    for number, name in enumerate(NAMES):
        [row] = read_manifest(f"s3://{bucket}/{folder}/{name}").rows
        assert (row.prompt, row.manifest) == (f"a toy {number}", f"s3://{bucket}/{folder}/{name}")
    for spelled in (folder, f"{folder}/"):
        rows = read_manifest(f"s3://{bucket}/{spelled}").rows
        assert sorted(row.manifest.rpartition("/")[2] for row in rows) == sorted(NAMES)
    with pytest.raises(StoreError, match="is not a valid key"):  # what we write keeps to the rule
        open_store(f"s3://{bucket}/{folder} x")
