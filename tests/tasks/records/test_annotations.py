"""What people say of assets: which files are read, what the tables make of them, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from task_samples import Write, make, rating, spec

from tasks.manifest.formats import ManifestError
from tasks.records.annotations import read_annotations, save_annotations
from tasks.records.verify import repair_store, verify_store
from tasks.store import open_store
from tasks.store.interface import Store
from tasks.tables.read import query, read_table
from tasks.tables.write import compact_store, rebuild_tables

DUCK, PIG = spec().asset_id, spec("a pig").asset_id
HEADER = "asset_id,key,value,who,when\n"
RATINGS = "SELECT prompt, rating, rating_count, rating_spread, labels FROM best_assets"


@pytest.fixture
def rated(store: Store, tmp_path: Path) -> Store:
    """A store with two finished assets."""
    for prompt in ("a duck", "a pig"):
        make(store, tmp_path, spec(prompt), "run1")
    return store


def annotate(store: Store, path: Path, who: str = "me") -> tuple[str, bool]:
    return save_annotations(store, read_annotations(store, path, who))


def ratings(store: Store) -> list[tuple[object, ...]]:
    rows = query(store, f"{RATINGS} ORDER BY prompt").to_pylist()
    return [tuple(row.values()) for row in rows]


def values(store: Store) -> list[tuple[object, ...]]:
    sql = "SELECT who, key, value FROM annotations ORDER BY ALL"
    return [tuple(row.values()) for row in query(store, sql).to_pylist()]


def test_nobody_has_rated(rated: Store) -> None:
    assert ratings(rated) == [("a duck", None, 0, None, []), ("a pig", None, 0, None, [])]
    assert read_table(rated, "assets", where="rating >= 4").empty
    assert read_table(rated, "annotations").empty
    assert verify_store(rated) == []


def test_people_agree_and_disagree(rated: Store, write: Write) -> None:
    annotate(
        rated,
        write(
            f"{HEADER}{DUCK},rating,5,anna,\n{DUCK},rating,2,ben,\n{PIG},rating,4.5,ben,\n"
            f'{DUCK},label,"round; toy;round",anna,\n{DUCK},label,toy;wet,ben,\n'
            f"{DUCK},material,rubber,anna,\n"
        ),
    )
    assert ratings(rated) == [
        ("a duck", 3.5, 2, 3.0, ["round", "toy", "wet"]),
        ("a pig", 4.5, 1, 0.0, []),
    ]
    frame = read_table(rated, "assets", columns=["prompt", "rating"], where="rating_spread >= 2")
    assert frame.to_dict("records") == [{"prompt": "a duck", "rating": 3.5}]
    assert ("anna", "material", "rubber") in values(rated)
    assert verify_store(rated) == []
    annotate(rated, write(f"asset_id,key,value\n{DUCK},label,\n"), "ben")
    assert ratings(rated)[0] == ("a duck", 3.5, 2, 3.0, ["round", "toy"])
    annotate(rated, write(f"asset_id,key,value\n{DUCK},label,\n"), "anna")
    assert ratings(rated)[0] == ("a duck", 3.5, 2, 3.0, [])


def test_a_later_value_replaces_the_earlier_whatever_comes_first(
    rated: Store, write: Write
) -> None:
    row = f"{DUCK},rating,{{}},anna,2026-01-{{}}T09:00:00{{}}\n".format
    annotate(rated, write(HEADER + row(3, "02", "Z") + row(1, "01", "+02:00")))
    assert values(rated) == [("anna", "rating", "3")]
    annotate(rated, write(HEADER + row(5, "03", "")))
    annotate(rated, write(HEADER + row(2, "01", "Z")))
    assert values(rated) == [("anna", "rating", "5")]
    annotate(rated, write(f"asset_id,key,value\n{DUCK},rating,4\n"), "anna")
    annotate(rated, write(f"asset_id,key,value\n{DUCK},rating,1\n{DUCK},rating,2\n"), "anna")
    assert values(rated) == [("anna", "rating", "2")]
    for action in (compact_store, rebuild_tables):
        action(rated)
        assert values(rated) == [("anna", "rating", "2")]
        assert verify_store(rated) == []
    # Whoever withdraws a rating has none.
    annotate(rated, write(f"asset_id,key,value\n{DUCK},rating,\n"), "anna")
    assert values(rated) == [("anna", "rating", None)]
    assert ratings(rated)[0] == ("a duck", None, 0, None, [])


def test_the_same_file_is_one_document(rated: Store, write: Write) -> None:
    path = write(f"asset_id,key,value\n{DUCK},rating,3\n{PIG},label,round\n")
    key, is_new = annotate(rated, path)
    assert is_new
    before = rated.get_bytes(key)
    as_json = [{"asset_id": DUCK, "key": "rating", "value": 3},
               {"asset_id": PIG, "key": "label", "value": ["round"]}]  # fmt: skip
    lines = write("".join(json.dumps(row) + "\n" for row in as_json), "m.jsonl")
    for again in (path, lines):
        assert annotate(rated, again) == (key, False)
    assert rated.get_bytes(key) == before
    assert list(rated.list("annotations/")) == [key]
    assert len(values(rated)) == 2
    assert annotate(rated, path, "ben")[1]


def test_every_bad_row_is_named_at_once(tmp_path: Path, write: Write) -> None:
    store = open_store(tmp_path / "store")
    make(store, tmp_path, spec(), "run1")
    path = write(
        "asset_id,key,value,who,wen\n"
        "0123456789abcdef,rating,3,,\n"
        f"{DUCK},,3,,\n{DUCK},rating,6,,\n{DUCK},rating,nan,,\n{DUCK},Ratings,4,,\n,label,x,,\n"
    )
    with pytest.raises(ManifestError) as caught:
        read_annotations(store, path, "me")
    fix = "write a number from 1 to 5, or nothing to withdraw one"
    assert str(caught.value).replace(str(path), "m.csv").split("\n") == [
        "m.csv:1: wen: is an unknown column; did you mean 'when'?",
        f"m.csv:2: asset_id: '0123456789abcdef' is not in {store.url};"
        f" take ids from `sjc assets --store {store.url}`",
        "m.csv:3: key: is blank; write rating, label or another word",
        f"m.csv:4: value: '6' is not a rating; {fix}",
        f"m.csv:5: value: 'nan' is not a rating; {fix}",
        "m.csv:6: key: 'Ratings' is not 'rating'; write rating, or another word",
        "m.csv:7: asset_id: is blank; name an asset",
    ]
    for content, problem in (
        ("asset_id,value\nx,1\n", "header: the column 'key' is missing"),
        (f"{HEADER}{DUCK},rating,3,,soon\n", "when: 'soon' is not a time; write 2026-01-31T09"),
        (f"{HEADER}{DUCK},rating,3,,2999-01-01\n", "when: 2999-01-01 is in the future"),
        (f"{HEADER}{DUCK},rating,3,\xe9,\n".encode("latin-1"), "file: byte 0xE9 is not UTF-8"),
        (f"{HEADER}{DUCK},ra\0ting,3,,\n", "key: has the control character"),
        (HEADER, "file: has no rows; add at least one asset_id"),
    ):
        with pytest.raises(ManifestError, match=f":[12]: {problem}"):
            read_annotations(store, write(content), "me")
    lines = [
        {"asset_id": 7, "key": "rating", "value": True},
        {"asset_id": DUCK, "key": "x", "value": {}},
    ]
    with pytest.raises(ManifestError) as caught:
        read_annotations(store, write("\n".join(map(json.dumps, lines)), "m.jsonl"), "me")
    assert [str(problem).partition("m.jsonl:")[2] for problem in caught.value.problems] == [
        "1: asset_id: 7 is not text; put it in quotes",
        f"1: value: 'true' is not a rating; {fix}",
        "2: value: {} is not text; put it in quotes",
    ]
    assert list(store.list("annotations/")) == []


def test_rows_that_a_crash_left_out_are_written_later(rated: Store) -> None:
    save_annotations(rated, [rating(spec(), "3")])
    for table in list(rated.list("tables/annotations/")):
        rated.delete(table)
    [finding] = verify_store(rated)
    assert finding.key == "tables/annotations"
    compact_store(rated)
    assert verify_store(rated) == []
    assert values(rated) == [("anna", "rating", "3")]


@pytest.mark.parametrize("change", [b"{", b'"value": "5"'])
def test_a_damaged_document_is_set_aside_and_its_rows_go(rated: Store, change: bytes) -> None:
    save_annotations(rated, [rating(spec("a pig"), "2", "ben")])
    key, _ = save_annotations(rated, [rating(spec(), "3")])
    content = rated.get_bytes(key).replace(b'"value": "3"', change)
    rated.put_bytes(key, change if change == b"{" else content, replace=True)
    [finding] = verify_store(rated)
    assert (finding.kind, finding.key) == ("annotations", key)
    repair_store(rated, [finding])
    assert verify_store(rated) == []
    assert values(rated) == [("ben", "rating", "2")]
    assert any(name.endswith(".damaged") for name in rated.list("annotations/"))
