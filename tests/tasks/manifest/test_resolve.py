"""Manifests: what is accepted, what is refused and how that is said, and the plan that follows."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from single_files import write_small_lora
from task_samples import Write, plan, problems
from tiny_priors import build_pixel_prior, build_zero123_prior

from sjc_engine.priors.loading.lora import pin
from sjc_engine.priors.sources import BUILTINS
from sjc_engine.recipes import Recipe
from tasks.manifest import formats
from tasks.manifest.formats import Records, shown
from tasks.manifest.resolve import ManifestError, Problem, read_entries, read_manifest

# --- what is accepted --------------------------------------------------------------------------


def test_every_column(write: Write) -> None:
    path = write(
        "id,prompt,negative_prompt,image,seed,prior,recipe,steps,guidance_scale,"
        "variance_reduction,tags,meta.source,meta.note\n"
        'a.1_B-2,"a duck, ""big"" and red",blurry,,7,toybox,draft,12,5.5,false,'
        "a; b;;a,web,\n"
    )
    manifest = read_manifest(path)
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    [entry] = plan(path).entries
    assert (entry.line, entry.row_id, entry.duplicate_of) == (2, "a.1_B-2", None)
    assert entry.spec.prompt == 'a duck, "big" and red'
    assert entry.spec.negative_prompt == "blurry"
    assert (entry.spec.image, entry.image_path) == (None, None)
    assert (entry.spec.seed, entry.spec.prior, entry.spec.prior_revision) == (
        7, "toybox", "r-toybox",
    )  # fmt: skip
    expected = Recipe.for_prior("toybox", "draft").override(
        {"steps": 12, "guidance_scale": 5.5, "variance_reduction": False}
    )
    assert entry.spec.recipe == expected
    assert entry.tags == ["a", "b"]
    assert entry.meta == {"source": "web", "note": ""}


def test_a_whole_number_is_an_id(write: Write) -> None:
    [entry] = plan(write('{"prompt": "a duck", "id": 7}\n', "m.jsonl")).entries
    assert entry.row_id == "7"


def test_a_revision_of_a_prior_is_no_part_of_its_name(write: Write) -> None:
    path = write("prompt,prior\na duck,owner/name@v2\na duck,owner/name@c0ffee\n")
    asked: list[str] = []

    def revision(prior: str) -> str:
        asked.append(prior)
        return "c" * 40

    _, found = read_entries(path, prior_revision=revision)
    assert asked == ["owner/name@v2", "owner/name@c0ffee"]
    first, again = found.entries
    assert (first.spec.prior, first.spec.prior_revision) == ("owner/name", "c" * 40)
    assert again.duplicate_of == 0


def draw_ball(path: Path, side: int = 20, ground: str = "white") -> None:
    picture = Image.new("RGB", (side, side), ground)
    ImageDraw.Draw(picture).ellipse((3, 3, side - 4, side - 4), "red")
    picture.save(path)


def test_an_image_row(write: Write, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "a.png"
    draw_ball(picture)
    row = "a mug,pictures/a.png,kxic/zero123-xl,20,5"
    path = write(f"prompt,image,prior,image_elevation,silhouette_weight\n{row}\n")
    [entry] = plan(path).entries
    assert entry.spec.image == hashlib.sha256(picture.read_bytes()).hexdigest()
    assert entry.image_path == picture
    assert entry.spec.recipe.name == "zero123"
    assert entry.spec.recipe.optimize.image_elevation == 20
    asset_id = entry.spec.asset_id
    draw_ball(picture, ground="gold")
    assert problems(path) == [
        "m.csv:2: silhouette_weight: the image has neither transparency nor a white border,"
        " so it has no silhouette; cut the object out, or use 0"
    ]
    draw_ball(picture, 24)
    assert plan(path).entries[0].spec.asset_id != asset_id  # the same name, another picture


def test_which_zero_1_to_3_a_folder_is_may_be_a_guess(write: Write, tmp_path: Path) -> None:
    draw_ball(tmp_path / "a.png")
    folder = build_zero123_prior(tmp_path / "views")
    header, row = "prompt,image,prior,recipe,image_pose", f"a mug,a.png,{folder}"
    [warning] = plan(write(f"{header}\n{row},,\n{row},draft,\n")).warnings
    assert warning == (
        f"prior '{folder}' is taken for a Zero-1-to-3, which its files do not say; write --recipe"
        " zero123 to confirm, or stable-zero123 for a Stable Zero123"
    )
    for said in ("zero123,", "stable-zero123,", ",elevation"):
        assert plan(write(f"{header}\n{row},{said}\n")).warnings == []
    path = write(f"{header}\n{row},,\n")
    assert plan(path, overrides={"image_pose": "elevation"}).warnings == []
    assert plan(path, recipe="stable-zero123").entries[0].spec.recipe.optimize.radius == 3.8
    stable = folder.rename(tmp_path / "stable-zero123")
    found = plan(write(f"{header}\na mug,a.png,{stable},,\n"))
    assert "taken for a Stable Zero123" in found.warnings[0]
    assert found.entries[0].spec.recipe.optimize.image_pose == "elevation"


def test_recentering_wants_to_know_where_the_object_is(write: Write, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 40), "gold").save(picture)
    path = write("prompt,image,prior,image_recenter\na mug,a.png,kxic/zero123-xl,true\n")
    [problem] = problems(path)
    assert "image_recenter: the image has neither transparency" in problem
    image = Image.new("RGB", (60, 60), "white")
    ImageDraw.Draw(image).ellipse((2, 2, 18, 18), "red")
    image.save(picture)
    assert not [text for text in plan(path).warnings if "image: " in text]
    path = write("prompt,image,prior\na mug,a.png,kxic/zero123-xl\n")
    assert [text for text in plan(path).warnings if "or set image_recenter" in text]


def test_what_an_image_shows_is_a_warning_or_a_problem(write: Write, tmp_path: Path) -> None:
    draw_ball(tmp_path / "photo.png", ground="gold")
    Image.new("RGB", (20, 20), "white").save(tmp_path / "white.png")
    path = write("prompt,image,prior,seed\na mug,photo.png,kxic/zero123-xl,0-1\n")
    [warning] = [text for text in plan(path).warnings if "image: " in text]
    assert warning.endswith(
        "m.csv:2: image: it is not cut out: 100% of its border is neither white nor transparent;"
        " remove the background, and leave a margin around the object"
    )
    path = write("prompt,image,prior\na,white.png,kxic/zero123-xl\na,https://x.org/a.png,\n")
    first, second = problems(path)
    assert "white.png shows nothing: 0.00% of it differs from white; use one" in first
    assert second == (
        "m.csv:3: image: 'https://x.org/a.png' is an address, and only files are read;"
        " download it, and give its path"
    )


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        ("a.png,toybox,,", "image", "prior 'toybox' takes text only, not images; leave the image"),
        ("a.png,owner/name,,", "image", "prior 'owner/name' takes text only"),
        (",kxic/zero123-xl,,", "image", "prior 'kxic/zero123-xl' needs an image; name one"),
        (",toybox,5,", "input_view_weight", "prior 'toybox' takes text only, not images; use 0"),
        ("a.png,kxic/zero123-xl,,blurry", "negative_prompt", "prior 'kxic/zero123-xl' takes no w"),
        ("none.png,kxic/zero123-xl,,", "image", "none.png does not exist; give its"),
        ("text.png,kxic/zero123-xl,,", "image", "text.png is not an image; name a PNG"),
        ("torn.png,kxic/zero123-xl,,", "image", "torn.png is damaged ("),
        ("long.png,kxic/zero123-xl,,", "image", "long.png has 8193 x 16 pixels; use"),
    ],
)
def test_an_image_and_its_prior_must_fit(
    write: Write, tmp_path: Path, row: str, column: str, problem: str
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (8193, 16)).save(tmp_path / "long.png")
    (tmp_path / "text.png").write_text("picture")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    path = write(f"prompt,image,prior,input_view_weight,negative_prompt\na mug,{row}\n")
    [told] = problems(path)
    assert told.startswith(f"m.csv:2: {column}: {problem}")
    assert "; " in told


def test_a_setting_of_the_command_line_is_blamed_once(write: Write) -> None:
    path = write("prompt\na\nb\n")
    [told] = problems(path, overrides={"silhouette_weight": 1})
    assert told.startswith("command line: --set silhouette_weight: ")


def test_only_a_prompt(write: Write) -> None:
    [entry] = plan(write("prompt\na DSLR photo of a yellow duck\n")).entries
    assert entry.row_id == "a-dslr-photo-of-a-yellow-duck"
    assert entry.spec.seed == 0
    assert entry.spec.image is None
    assert entry.spec.negative_prompt == ""
    assert entry.spec.recipe == Recipe.for_prior("toybox")
    assert entry.prior_coverage == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfid,prompt\r\na,one duck\r\nb,two\r\n",
        b"id,prompt\na,one duck\nb,two",
        b"id,prompt\ra,one duck\rb,two\r",
        b'"id","prompt"\r\n\r\n"a","one duck"\r\n\r\n"b","two"\r\n\r\n',
    ],
    ids=["BOM and CRLF", "no last line end", "CR", "quoted with blank lines"],
)
def test_csv_dialects(write: Write, content: bytes) -> None:
    rows = read_manifest(write(content)).rows
    assert [(row.row_id, row.prompt) for row in rows] == [("a", "one duck"), ("b", "two")]


def test_lines_are_physical(write: Write) -> None:
    rows = read_manifest(write('prompt,id\n\n"one\r\n\ntwo",a\nthree,b\n"x\ny",c\nz,d\n')).rows
    assert [(row.row_id, row.line) for row in rows] == [("a", 3), ("b", 6), ("c", 7), ("d", 9)]
    assert rows[0].prompt == "one\r\n\ntwo"


def test_prompts_stay_verbatim(write: Write) -> None:
    prompts = ["  spaces ", "=cmd|' /C calc'!A0", "<script>", "'; DROP TABLE assets;"]
    prompts += ["../../etc/passwd", "{braces} %s \\n", "ünï 🦆", "\u2028 line", "\u202eleft"]
    text = io.StringIO()
    csv.writer(text).writerows([["prompt"], *([p] for p in prompts)])
    rows = read_manifest(write(text.getvalue())).rows
    assert [row.prompt for row in rows] == prompts
    assert len({row.row_id for row in rows}) == len(prompts)


def test_json_lines_and_parquet_say_the_same(write: Write, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "one", "seed": 3, "tags": ["x", "y"], "steps": 5, "meta.n": 1},
        {"id": "b", "prompt": "two\nlines", "guidance_scale": 2.5, "variance_reduction": True},
        {"id": "c", "prompt": "three", "seed": "0-1", "tags": "x;y", "meta.n": None},
    ]
    lines = read_manifest(
        write("\n" + "\n".join(json.dumps(row) for row in rows) + "\n", "m.jsonl")
    ).rows
    assert [row.line for row in lines] == [2, 3, 4, 4]
    assert [row.seed for row in lines] == [3, 0, 0, 1]
    assert lines[0].tags == lines[2].tags == ["x", "y"]
    assert lines[0].meta == {"n": "1"}
    assert lines[1].prompt == "two\nlines"
    assert lines[1].overrides == {"guidance_scale": 2.5, "variance_reduction": True}
    columns = {
        "id": ["a", "b"],
        "prompt": ["one", "two\nlines"],
        "seed": [3, None],
        "tags": [["x", "y"], None],
        "steps": pa.array([5.0, None]),
        "meta.n": [1, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    again = read_manifest(tmp_path / "m.parquet").rows
    assert [(r.line, r.row_id, r.prompt, r.seed, r.tags, r.meta) for r in again] == [
        (2, "a", "one", 3, ["x", "y"], {"n": "1"}),
        (3, "b", "two\nlines", 0, [], {}),
    ]
    assert plan(tmp_path / "m.parquet").entries[0].spec.recipe.optimize.steps == 5


def test_json_lines_end_at_line_feeds_alone(write: Write) -> None:
    prompt = "one\u2028two\u2029three"
    path = write(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\r\n", "m.jsonl")
    assert [row.prompt for row in read_manifest(path).rows] == [prompt]


def test_seed_ranges_make_entries(write: Write) -> None:
    entries = plan(write("id,prompt,seed\nduck,a duck,0-3\nx,a pig,5\n,a pig,7-8\n")).entries
    assert [(e.row_id, e.spec.seed, e.line) for e in entries] == [
        ("duck-s0", 0, 2), ("duck-s1", 1, 2), ("duck-s2", 2, 2), ("duck-s3", 3, 2),
        ("x", 5, 3), ("a-pig-s7", 7, 4), ("a-pig-s8", 8, 4),
    ]  # fmt: skip
    assert len({e.spec.asset_id for e in entries}) == 7


def test_derived_ids_are_unique_and_do_not_take_given_ones(write: Write) -> None:
    path = write("prompt,id\na duck,\na duck,\nA Duck!,\nb,a-duck-2\n鴨,\n")
    ids = [row.row_id for row in read_manifest(path).rows]
    assert ids[:4] == ["a-duck", "a-duck-3", "a-duck-4", "a-duck-2"]
    assert ids[4].startswith("prompt-")
    assert ids == [row.row_id for row in read_manifest(path).rows]


@pytest.mark.parametrize(
    ("cells", "count", "problem"),
    [
        ("x" * 128 + ",", 1, ""),
        ("x" * 129 + ",", 0, "is not a valid id"),
        ("x" * 125 + ",0-9", 10, ""),
        ("x" * 125 + ",0-10", 0, "id: is longer than 128 characters with its seed"),
        (",9223372036854775807", 1, ""),
        (",9223372036854775808", 0, "seed: 9223372036854775808 is too large"),
        (",9223372036854775806-9223372036854775807", 2, ""),
        (",5-10004", 10_000, ""),
        (",5-10005", 0, "seed: 5-10005 is 10,001 seeds"),
        (",7-7", 1, ""),
        (",7-6", 0, "seed: 7-6 counts down; write 6-7"),
    ],
)
def test_limits_can_be_reached(write: Write, cells: str, count: int, problem: str) -> None:
    path = write(f"prompt,id,seed\na duck,{cells}\n")
    if problem:
        with pytest.raises(ManifestError, match=problem):
            read_manifest(path)
    else:
        rows = read_manifest(path).rows
        assert len({row.row_id for row in rows}) == len({row.seed for row in rows}) == count


def test_a_cell_may_be_long(write: Write) -> None:
    """The csv module alone refuses fields above 131,072 characters."""
    csv.field_size_limit(131_072)
    prompt = "duck " * 20_000
    assert read_manifest(write(f"prompt\n{prompt}\n")).rows[0].prompt == prompt
    [problem] = problems(write(f"prompt\n{prompt}x\n"))
    assert problem.startswith("m.csv:2: prompt: has 100,001 characters, and the limit is 100,000")
    [problem] = problems(write(f"prompt,id\n{'x' * 9_000_000},a\n"))
    assert problem.startswith("m.csv:2: prompt: has 9,000,000 characters, and the limit is 100,000")
    [problem] = problems(write(f"prompt,id\nb,b\n{'x' * 11_000_000},a\n"))
    assert problem.startswith("m.csv:3: row: is not CSV (field larger than field limit")
    assert csv.field_size_limit() == 131_072, "the rest of the process keeps its limit"


# --- what is refused ---------------------------------------------------------------------------


def test_every_bad_row_is_named_at_once(write: Write) -> None:
    path = write(
        "id,prompt,seed,steps,prior,recipe\n"
        "ok,a duck,,,,\n"
        ",,,,,\n"
        'a/b,"two\nlines",-1,,,\n'
        "ok,a duck,1.5,many,nonsense,drift\n"
        "..,a duck,3-1,0,toybox,paper\n"
        "short,a duck\n"
        "long,a, duck,,,,\n"
        "last,a duck,,nan,,\n"
    )
    found = problems(path)
    assert [text.split(": ")[:2] for text in found] == [
        ["m.csv:3", "prompt"],
        ["m.csv:4", "id"],
        ["m.csv:4", "seed"],
        ["m.csv:6", "id"],
        ["m.csv:6", "seed"],
        ["m.csv:6", "prior"],
        ["m.csv:6", "recipe"],
        ["m.csv:6", "steps"],
        ["m.csv:7", "id"],
        ["m.csv:7", "seed"],
        ["m.csv:7", "recipe"],
        ["m.csv:7", "steps"],
        ["m.csv:8", "row"],
        ["m.csv:9", "row"],
        ["m.csv:10", "steps"],
    ]
    text = "\n".join(found)
    for part in [
        "prompt: is blank; write what to make, or remove the row",
        "id: 'a/b' is not a valid id; use 1 to 128 of A-Z a-z 0-9 . _ -",
        "id: 'ok' is the id of line 2 too; make it unique",
        "prior: 'nonsense' is unknown; use toybox, toybox-duck, an existing folder, or owner/name",
        "recipe: 'drift' is unknown; did you mean 'draft'?",
        "recipe: 'paper' is for stable_diffusion priors and does not fit 'toybox'; use one of"
        " toybox, fast, draft, sds",
        "seed: '3-1' counts down; write 1-3",
        "row: 2 cells, and the header has 6",
        "row: 7 cells, and the header has 6",
    ]:
        assert part.removeprefix("seed: '3-1'") in text


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("prompt,promt", "promt: is an unknown column; did you mean 'prompt'?"),
        ("prompt,guidance", "guidance: is an unknown column; did you mean 'guidance_end'?"),
        ("Prompt,id", "header: the column 'prompt' is missing; add it"),
        ("Prompt,id", "Prompt: is an unknown column; did you mean 'prompt'?"),
        ("prompt,zzz", "zzz: is an unknown column; remove it, or call it meta.NAME"),
        ("prompt,meta.", "meta.: is an unknown column"),
        ("prompt,id,id", "id: is in the header twice; keep one of the columns"),
        ("prompt,", "column 2: has no name; name it, or remove the column"),
        ("prompt;id", "header: cells are separated by ';'; use commas"),
        ("prompt\tid", "header: cells are separated by '\\t'; use commas"),
        ("id,seed", "header: the column 'prompt' is missing; add it"),
    ],
)
def test_bad_headers(write: Write, header: str, expected: str) -> None:
    cells = header.count(",") + 1
    found = problems(write(f"{header}\n{','.join('x' * cells)}\n"))
    assert any(text.startswith(f"m.csv:1: {expected}") for text in found), found


def test_rows_below_a_column_that_is_there_twice_are_not_read(write: Write) -> None:
    [found] = problems(write("prompt,id,id\n,a b,c\n"))
    assert found.startswith("m.csv:1: id: is in the header twice")


def test_other_separators_are_all_that_is_said(write: Write) -> None:
    [found] = problems(write("prompt;id\na duck;x\na pig, pink;y,z\n"))
    assert found.startswith("m.csv:1: header: cells are separated by ';'; use commas")


@pytest.mark.parametrize("length", [59, 60, 61, 200])
def test_a_long_text_is_shown_in_short(length: int) -> None:
    text = "x" * length
    assert shown(text) == (text if length <= 60 else "x" * 57 + "...")


def test_a_bad_header_does_not_hide_bad_rows(write: Write) -> None:
    found = problems(write("prompt,promt,id\na,b,c\n,b,d\na,b,c\n"))
    assert [text.split(": ")[:2] for text in found] == [
        ["m.csv:1", "promt"], ["m.csv:3", "prompt"], ["m.csv:4", "id"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "m.csv:1: file: has no rows; add at least one prompt"),
        (b"\n\n", "m.csv:1: file: has no rows"),
        (b"prompt\n", "m.csv:1: file: has no rows"),
        (b"prompt\na\nb\xe9\n", "m.csv:3: file: byte 0xE9 is not UTF-8; save it as UTF-8"),
        ("prompt\na\n".encode("utf-16"), "m.csv:1: file: is UTF-16; save it as UTF-8"),
        (b"prompt\na\x00b\n", r"m.csv:2: prompt: has the control character '\x00'"),
        (b"prompt\na\tb\n", r"m.csv:2: prompt: has the control character '\t'"),
        (b"prompt\n\x1b[31mred\n", r"m.csv:2: prompt: has the control character '\x1b'"),
        ("prompt\na\x85b\n".encode(), r"m.csv:2: prompt: has the control character '\x85'"),
        (b'prompt,id\nx,a\n"open,b\nx,c\n', "m.csv:3: row: is not CSV (unexpected end of data)"),
        (b'prompt,id\n"a"b,c\n', "m.csv:2: row: is not CSV (',' expected after '\"')"),
        (b"prompt,image\na,no.png\n", "m.csv:2: image: "),
        (b"prompt,image\na,..\n", "m.csv:2: image: "),
        (b"prompt,seed\na,9223372036854775808\n", "m.csv:2: seed: 9223372036854775808 is too"),
        (b"prompt,seed\na,0-10000\n", "m.csv:2: seed: 0-10000 is 10,001 seeds"),
        ("prompt,seed\na,٣\n".encode(), "m.csv:2: seed: '٣' is not a valid seed"),
        (b"prompt,steps\na,1e999\n", "m.csv:2: steps: "),
        (b"prompt,guidance_scale\na,inf\n", "m.csv:2: guidance_scale: "),
        (b"prompt,depth_loss\na,both\n", "m.csv:2: depth_loss: "),
        (b"prompt,prior\na,tests\n", "m.csv:2: prior: the folder tests has no model_index.json"),
        (b"prompt,id,seed\na,x,0-1\nb,x-s1,\n", "m.csv:3: id: 'x-s1' is the id of line 2 too"),
        (b"prompt,id,seed\na," + b"x" * 127 + b",0-1\n", "m.csv:2: id: is longer than 128"),
    ],
)
def test_bad_files(write: Write, content: bytes, expected: str) -> None:
    [problem] = problems(write(content))
    assert problem.startswith(expected), problem
    assert "; " in problem


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{}", "m.jsonl:1: prompt: is blank"),
        ("[1]", "m.jsonl:1: row: is not a JSON object"),
        ('{"prompt": "a"}\n{"prompt": ', "m.jsonl:2: row: is not JSON"),
        ('{"prompt": "a", "prompt": "b"}', "m.jsonl:1: row: is not JSON (a key is there twice)"),
        ('{"prompt": "a", "promt": 1}', "m.jsonl:1: promt: is an unknown column; did you mean"),
        ('{"prompt": 5}', "m.jsonl:1: prompt: 5 is not text"),
        ('{"prompt": "a", "id": true}', "m.jsonl:1: id: True is not text; put it in quotes"),
        ('{"prompt": "a", "id": 1.5}', "m.jsonl:1: id: 1.5 is not text; put it in quotes"),
        ('{"prompt": "a", "id": -7.0}', "m.jsonl:1: id: -7.0 is not text; put it in quotes"),
        ('{"prompt": "a", "seed": true}', "m.jsonl:1: seed: 'True' is not a valid seed"),
        ('{"prompt": "a", "seed": -1}', "m.jsonl:1: seed: '-1' is not a valid seed"),
        ('{"prompt": "a", "seed": 1.5}', "m.jsonl:1: seed: '1.5' is not a valid seed"),
        ('{"prompt": "a", "seed": NaN}', "m.jsonl:1: row: is not JSON (NaN is not"),
        ('{"prompt": "a", "seed": 1e999}', "m.jsonl:1: seed: 'inf' is not a valid seed"),
        ('{"prompt": "a", "steps": [5]}', "m.jsonl:1: steps: "),
        ('{"prompt": "a", "steps": {"a": 5}}', "m.jsonl:1: steps: "),
        ('{"prompt": "a", "tags": [5]}', "m.jsonl:1: tags: [5] is not a list of text"),
        ('{"prompt": "a", "tags": ["x", 5]}', "m.jsonl:1: tags: ['x', 5] is not a list of text"),
        ('{"prompt": "a", "meta.x": {}}', "m.jsonl:1: meta.x: {} is not text"),
        ('{"prompt": "a\\u0000"}', "m.jsonl:1: prompt: has the control character"),
        ('{"prompt": "\\ud83e"}', "m.jsonl:1: prompt: has the control character '\\ud83e'"),
        ('{"prompt": "a", "tags": ["\\u0007"]}', "m.jsonl:1: tags: has the control character"),
        ("[" * 100_000, "m.jsonl:1: row: is not JSON"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "m.jsonl:1: row: is not JSON"),
    ],
)
def test_bad_json_lines(write: Write, content: str, expected: str) -> None:
    [problem] = problems(write(content, "m.jsonl"))
    assert problem.startswith(expected), problem


def test_a_files_problems_are_found_once() -> None:
    """Also of records that are read again; without a file there are none."""
    assert list(Records("m.csv", None)) == []
    records = Records("m.csv", None, open=lambda: io.BytesIO(b"prompt\n"))
    for _ in range(2):
        assert list(records) == []
        assert [problem.problem for problem in records.problems] == ["has no rows"]


def test_bad_parquet(write: Write, tmp_path: Path) -> None:
    [problem] = problems(write(b"PAR1 no parquet PAR1", "m.parquet"))
    assert problem.startswith("m.parquet:1: file: is not a readable Parquet file")
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"prompt": [b"a"]}), path)
    assert problems(path) == ["m.parquet:1: prompt: has the type binary; store it as text"]
    pq.write_table(pa.table({"prompt": ["a", None], "seed": [1.5, math.nan]}), path)
    assert [text.split(": ")[:2] for text in problems(path)] == [
        ["m.parquet:2", "seed"], ["m.parquet:3", "prompt"],
    ]  # fmt: skip


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "m.xlsx").write_text("prompt\na\n")
    cases = {
        "none.csv": "does not exist; check the path",
        "m.xlsx": "its name ends in none of .csv, .tsv, .jsonl, .parquet, .txt, with or",
        "m.xlsx/x.csv": "does not exist",
        "x" * 300 + ".csv": "cannot be read (File name too long)",
    }
    for name, expected in cases.items():
        with pytest.raises(ManifestError) as caught:
            read_manifest(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}:1: file: {expected}")
    with pytest.raises(ManifestError, match="is not a regular file"):
        read_manifest("/dev/null")
    with pytest.raises(ManifestError, match="only files and s3:// are read; download it"):
        read_manifest("https://x.org/m.csv")


def test_plain_lists_and_what_spreadsheets_and_pandas_write(tmp_path: Path) -> None:
    ducks = [("a yellow duck", 3), ("a green mug", 0)]
    table = pd.DataFrame({"prompt": ["a yellow duck", "a green mug"], "seed": [3.0, math.nan]})
    table.to_csv(tmp_path / "index.csv")  # with a column of row numbers that has no name
    pd.read_csv(tmp_path / "index.csv").to_csv(tmp_path / "unnamed.csv", index=False)
    table.set_index(pd.Index([5, 7])).to_parquet(tmp_path / "index.parquet")
    table.to_csv(tmp_path / "packed.csv.gz", index=False)
    files = {
        "list.txt": "\ufeffa yellow duck\n\n  a green mug \n",
        "tabs.tsv": 'prompt\tseed\n"a yellow duck"\t3\na green mug\t\n',
        "excel.csv": "sep=;\r\nprompt;seed\r\na yellow duck;3\r\na green mug;\r\n",
        "columns.csv": "prompt,seed,,\na yellow duck,3,, \na green mug,\n",
        "floats.csv": "prompt,seed\na yellow duck,3.0\na green mug,0.00\n",
        "floats.jsonl": '{"prompt": "a yellow duck", "seed": 3.0}\n{"prompt": "a green mug"}\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8", newline="")
    for path in sorted(tmp_path.iterdir()):
        rows = read_manifest(path).rows
        wanted = [(p, 0) for p, _ in ducks] if path.suffix == ".txt" else ducks
        assert [(row.prompt, row.seed) for row in rows] == wanted, path.name
    lines = {path.name: [r.line for r in read_manifest(path).rows] for path in tmp_path.iterdir()}
    assert (lines["list.txt"], lines["excel.csv"], lines["packed.csv.gz"]) == (
        [1, 3],
        [3, 4],
        [2, 3],
    )
    packed = (tmp_path / "packed.csv.gz").read_bytes()
    assert read_manifest(tmp_path / "packed.csv.gz").sha256 == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("m.csv", "prompt,seed\na duck, yellow,\n", "m.csv:2: row: 3 cells, and the header has 2"),
        ("m.csv", "prompt,\na,b\n", "m.csv:1: column 2: has no name; name it"),
        ("m.csv", "prompt,,\na,,b\n", "m.csv:1: column 2: has no name; name it"),
        ("m.csv", ",prompt\nx,a\n", "m.csv:2: row: the column '' holds 'x'; name the column"),
        ("m.csv", "prompt,\n", "m.csv:1: file: has no rows"),
        ("m.csv", ",,\n", "m.csv:1: file: has no rows"),
        ("m.tsv", "prompt,seed\na,1\n", "m.tsv:1: header: cells are separated by ','; use commas,"),
        ("m.csv", "prompt\tseed\na\t1\n", "m.csv:1: header: cells are separated by '\\t'; use"),
        ("m.csv.gz", "prompt\na\n", "m.csv.gz:1: file: is not a whole gzip file (Not a gzipped"),
        ("m.parquet.gz", "PAR1", "m.parquet.gz:1: file: is not a whole gzip file (Not a gzipped"),
        ("m.csv", "prompt,seed\na,3.5\n", "m.csv:2: seed: '3.5' is not a valid seed"),
    ],
)
def test_what_looks_like_a_spreadsheet_and_is_wrong(
    write: Write, name: str, content: str, problem: str
) -> None:
    assert problems(write(content, name))[0].startswith(problem)


def test_a_line_may_be_as_long_as_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE", 20)
    path = write("x" * 19 + "\n" + "y" * 20 + "\n", "m.txt")
    [problem] = problems(path)
    assert problem.startswith("m.txt:2: row: is longer than 20 bytes; write one row on each line")
    rows = read_manifest(write("x" * 19 + "\n" + "y" * 20, "m.txt")).rows
    assert [len(row.prompt) for row in rows] == [19, 20]


def test_rows_before_a_line_that_cannot_be_read_are_checked(write: Write) -> None:
    seed, text = problems(write(b"prompt,seed\na,x\nb\xe9,\nc,y\n"))
    assert seed.startswith("m.csv:2: seed: 'x' is not a valid seed")
    assert text.startswith("m.csv:3: file: byte 0xE9 is not UTF-8")


def test_a_torn_gzip_file(tmp_path: Path, write: Write) -> None:
    whole = gzip.compress(b"prompt\n" + b"a yellow duck\n" * 1000)
    [problem] = problems(write(whole[:-20], "m.csv.gz"))
    assert problem.startswith("m.csv.gz:1: file: is not a whole gzip file")
    assert len(read_manifest(write(whole, "m.csv.gz")).rows) == 1000


# --- properties --------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    content=st.binary(max_size=300)
    | st.text(alphabet='prompt,id"\n\r;\t\0 meta.x', max_size=80).map(
        lambda text: b"prompt,id\n" + text.encode()
    ),
    ending=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".csv.gz"]),
)
def test_no_content_gives_a_traceback(
    content: bytes, ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{ending}"
    path.write_bytes(content)
    found: list[Problem] = []
    try:
        plan(path)
    except ManifestError as error:
        found = error.problems
    else:
        return
    assert found
    for problem in found:
        assert problem.line is not None
        assert problem.line >= 1
        assert str(problem).isprintable()


CELLS = st.lists(
    st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from(['"', ",", ";", "\n", "\r\n"]),
    max_size=20,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(CELLS.filter(str.strip), CELLS, CELLS), min_size=1, max_size=6),
    crlf=st.booleans(),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_no_column_is_ever_shifted(
    rows: list[tuple[str, str, str]],
    crlf: bool,
    quoting: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text, lines = io.StringIO(newline=""), []
    writer = csv.writer(text, lineterminator="\r\n" if crlf else "\n", quoting=quoting)
    writer.writerow(["meta.a", "prompt", "meta.b"])
    for prompt, a, b in rows:
        lines.append(1 + text.getvalue().count("\n"))
        writer.writerow([a, prompt, b])
    path = tmp_path_factory.getbasetemp() / "shift.csv"
    path.write_bytes(text.getvalue().encode())
    found = read_manifest(path).rows
    assert [(row.prompt, row.meta["a"], row.meta["b"]) for row in found] == rows
    assert [row.line for row in found] == lines


def test_loras_are_known_by_their_contents(write: Write, tmp_path: Path) -> None:
    path = write_small_lora(tmp_path / "one.safetensors", BUILTINS["toybox"])
    other = write_small_lora(tmp_path / "two.safetensors", BUILTINS["toybox"], scale=2.0)
    rows = ["", "none", f"{path}:0", path, f"{path}:0.5", other, f'"{path}, {other}:0.1"']
    table = write("prompt,loras\n" + "".join(f"a duck,{row}\n" for row in rows))
    entries = plan(table).entries
    assert [entry.duplicate_of for entry in entries] == [None, 0, 0, *[None] * 4]
    assert entries[3].spec.recipe.optimize.loras == pin(path)
    Path(path).rename(tmp_path / "moved.safetensors")
    write("prompt\na duck\n", "m.csv")
    [moved] = plan(
        tmp_path / "m.csv", overrides={"loras": str(tmp_path / "moved.safetensors")}
    ).entries
    assert moved.spec.asset_id == entries[3].spec.asset_id


def test_loras_that_cannot_be_used(write: Write, tmp_path: Path) -> None:
    foreign = write_small_lora(tmp_path / "x.safetensors", build_pixel_prior(tmp_path / "prior"))
    path = write(f"prompt,loras\na duck,{foreign}\na duck,no.safetensors\na duck,x.pt:1\n")
    shape, missing, name = problems(path)
    assert "2: loras: " in shape
    assert "is not of this model" in shape
    assert "3: loras: 'no.safetensors' cannot be read" in missing
    assert "4: loras: 'x.pt:1' is wrong; write FILE.safetensors:WEIGHT" in name
    path = write("prompt\na duck\n")
    assert "command line: --set loras: 'x.pt'" in problems(path, overrides={"loras": "x.pt"})[0]
