"""Thousands of manifests, most of them bad, against an oracle that knows which and where.

    python tests/support/manifest_fuzzer.py [--seed 0] [--count 10000]

Each case is a right manifest of random cells and at most one mistake, so that what must come out is
known from how it was made: every cell letter by letter, or a refusal that names the line. Cases of
kind `bytes` change random bytes of a CSV file instead; there a CSV parser of our own, written from
RFC 4180, says what may come out.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.manifest.resolve import Manifest, ManifestError, Resolved, read_entries

COLUMNS = ("id", "prompt", "negative_prompt", "seed", "guidance_scale", "tags", "meta.a", "meta.b")
TEXTS = ("prompt", "negative_prompt", "meta.a", "meta.b")
ENDS = {"csv": ("\n", "\r\n", "\r"), "jsonl": ("\n", "\r\n")}
# What comes out letter by letter, however odd: formulas, markup, paths, scripts, marks, line ends.
PIECES = (
    "a duck", "=1+2", "+cmd|' /C calc'!A0", "-1", "@SUM(A1)", "<script>alert(1)</script>", "%s{x}",
    "../../etc/passwd", "C:\\x", "'; DROP TABLE assets;--", '"', '""', ",", ";", "\n", "\r\n", " ",
    "🦆", "👩‍👩‍👧", "ünï", "e\u0301", "مرحبا", "\u202eleft", "\u200b", "\u2028", "\ufeff",
    "鴨", "\u00ad",
)  # fmt: skip
CONTROLS = "\x00\x01\x07\x08\t\x0b\x0c\x1b\x1f\x7f\x80\x85\x9f"
BAD_IDS = (
    "..", ".", "../x", "a/b", "a\\b", "/etc/passwd", "a b", "é", "a\nb", "x" * 129, "=1", "a:b",
    "~", "🦆", "a%2e", "-\u202e",
)  # fmt: skip
BAD_SEEDS = ("-1", "1.5", "x", "1e3", "٣", str(2**63), "3-1", "0-10000", "0x1", "1 2", "--", "∞")
BAD_SCALES = ("nan", "inf", "-inf", "1e999", "-1", "1001", "many", "1,5", "0x1", "1 0")
ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
LINE_END = re.compile(r"\r\n|\r|\n")

Row = dict[str, str]


@dataclass
class Case:
    """A manifest's bytes, and what must come of it.

    rows: all cells with their lines, or None if it must be refused. line: where a problem must be
    named, if that is known. may_fail: a refusal is right, too.
    """

    kind: str
    ending: str
    content: bytes
    rows: list[tuple[int, Row]] | None = None
    line: int | None = None
    may_fail: bool = False


@dataclass
class Tally:
    kinds: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    accepted: int = 0
    violations: list[str] = field(default_factory=list)


class Maker:
    """Makes cases from one source of random numbers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self, *, blank: bool) -> str:
        while True:
            text = "".join(self.random.choices(PIECES, k=self.random.randint(0, 5)))
            if blank or text.strip():
                return text

    def row(self, number: int) -> Row:
        choose = self.random.choice
        return {
            "id": choose((f"r{number}", f"r{number}.x-_Y", "")),
            "prompt": self.text(blank=False),
            "negative_prompt": self.text(blank=True),
            "seed": choose(("", "0", "7", str(2**63 - 1))),
            "guidance_scale": choose(("", "0", "7.5", "1e2")),
            "tags": choose(("", "a", "a;b", "=1;@x")),
            "meta.a": self.text(blank=True),
            "meta.b": self.text(blank=True),
        }

    def right(self) -> tuple[list[str], list[Row]]:
        """Columns in some order, `prompt` among them, and one to five rows."""
        others = self.random.sample(
            [c for c in COLUMNS if c != "prompt"], self.random.randint(0, len(COLUMNS) - 1)
        )
        columns = [*others, "prompt"]
        self.random.shuffle(columns)
        rows = [self.row(number) for number in range(self.random.randint(1, 5))]
        return columns, [{column: row[column] for column in columns} for row in rows]

    def case(self) -> Case:
        kind = self.random.choice([*KINDS, *["valid", "bytes"] * 4])
        return KINDS[kind](self, kind)

    def file(self, kind: str, columns: list[str], rows: list[Row], ending: str = "") -> Case:
        """The rows as a file of some kind; every one must come out."""
        ending = ending or self.random.choice(("csv", "csv", "jsonl", "parquet"))
        if ending == "csv":
            content, lines = self.csv(columns, [[row[c] for c in columns] for row in rows])
        elif ending == "jsonl":
            content, lines = self.jsonl([json.dumps(row, ensure_ascii=False) for row in rows])
        else:
            table = pa.table({c: [row[c] for row in rows] for c in columns})
            sink = io.BytesIO()
            pq.write_table(table, sink)
            content, lines = sink.getvalue(), list(range(2, len(rows) + 2))
        return Case(kind, ending, content, list(zip(lines, rows, strict=True)))

    def csv(self, columns: list[str], cells: list[list[str]]) -> tuple[bytes, list[int]]:
        end = self.random.choice(ENDS["csv"])
        quoting = self.random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        text, lines = "", []
        for number, row in enumerate([columns, *cells]):
            if number and self.random.random() < 0.1:
                text += end  # a blank line
            lines.append(len(LINE_END.findall(text)) + 1)
            line = io.StringIO(newline="")
            # The csv module leaves a cell with the other line end unquoted; readers end it there.
            odd = any(LINE_END.search(cell) for cell in row)
            quotes: Any = csv.QUOTE_ALL if odd else quoting
            csv.writer(line, lineterminator=end, quoting=quotes).writerow(row)
            text += line.getvalue()
        if self.random.random() < 0.3:
            text = text.removesuffix(end)
        mark = b"\xef\xbb\xbf" if self.random.random() < 0.3 else b""
        return mark + text.encode(), lines[1:]

    def jsonl(self, objects: list[str]) -> tuple[bytes, list[int]]:
        end = self.random.choice(ENDS["jsonl"])
        blank = [end if self.random.random() < 0.1 else "" for _ in objects]
        lines = [k + 1 + sum(map(bool, blank[: k + 1])) for k in range(len(objects))]
        return "".join(
            b + text + end for b, text in zip(blank, objects, strict=True)
        ).encode(), lines


def valid(maker: Maker, kind: str) -> Case:
    return maker.file(kind, *maker.right())


def bad_cell(column: str, make: Callable[[Maker], str], ending: str = "") -> Any:
    """One cell of a right manifest is wrong."""

    def build(maker: Maker, kind: str) -> Case:
        columns, rows = maker.right()
        wanted = maker.random.choice(TEXTS) if column == "*" else column
        if wanted not in columns:
            columns.insert(maker.random.randint(0, len(columns)), wanted)
            rows = [{wanted: "" if wanted != "prompt" else "a", **row} for row in rows]
        number = maker.random.randrange(len(rows))
        rows[number] = {**rows[number], wanted: make(maker)}
        case = maker.file(kind, columns, [{c: row[c] for c in columns} for row in rows], ending)
        assert case.rows is not None
        return Case(kind, case.ending, case.content, line=case.rows[number][0])

    return build


def control(maker: Maker) -> str:
    text = list(maker.text(blank=False))
    text.insert(maker.random.randint(0, len(text)), maker.random.choice(CONTROLS))
    return "".join(text)


def one_of(options: tuple[str, ...]) -> Callable[[Maker], str]:
    return lambda maker: maker.random.choice(options)


def wrong_count(change: int) -> Any:
    """A row with a cell too few or too many."""

    def build(maker: Maker, kind: str) -> Case:
        columns, rows = maker.right()
        columns = [*columns, *({"meta.a", "meta.b"} - set(columns))]
        cells = [[row.get(c, "x") for c in columns] for row in rows]
        number = maker.random.randrange(len(cells))
        position = maker.random.randint(0, len(columns) - 1)
        if change < 0:
            del cells[number][position]
        else:
            cells[number].insert(position, maker.text(blank=True))
        content, lines = maker.csv(columns, cells)
        return Case(kind, "csv", content, line=lines[number])

    return build


def bad_header(maker: Maker, kind: str) -> Case:
    columns, rows = maker.right()
    how = maker.random.choice(("twice", "unknown", "no prompt", "no name", "capital", "semicolons"))
    extra = {"twice": maker.random.choice(columns), "unknown": "promptt", "no name": " "}
    if how in extra:
        header, cells = [*columns, extra[how]], [[*row.values(), "x"] for row in rows]
    else:
        new = {"no prompt": "meta.prompt", "capital": "Prompt", "semicolons": "prompt;id"}[how]
        header = [new if c == "prompt" else c for c in columns]
        cells = [list(row.values()) for row in rows]
    content, _ = maker.csv(header, cells)
    return Case(kind, "csv", content, line=1)


def same_id(maker: Maker, kind: str) -> Case:
    columns, rows = maker.right()
    columns = [*columns, *({"id"} - set(columns))]
    rows = [{**row, "id": f"r{k}"} for k, row in enumerate([*rows, dict(rows[0])])]
    rows[-1]["id"] = rows[maker.random.randrange(len(rows) - 1)]["id"]
    case = maker.file(kind, columns, rows)
    assert case.rows is not None
    return Case(kind, case.ending, case.content, line=case.rows[-1][0])


def bad_encoding(maker: Maker, kind: str) -> Case:
    """A byte that is no UTF-8, or another encoding altogether."""
    case = maker.file(kind, *maker.right(), maker.random.choice(("csv", "jsonl")))
    text = case.content
    how = maker.random.choice(("byte", "utf-16", "latin-1"))
    if how == "utf-16":
        return Case(kind, case.ending, text.decode("utf-8-sig").encode("utf-16"), line=1)
    if how == "latin-1":
        return Case(kind, case.ending, text + "caf\xe9".encode("latin-1"))
    at = maker.random.choice([k for k in range(len(text) + 1) if _starts(text, k)])
    wrong = maker.random.choice((b"\xff", b"\xfe", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5"))
    return Case(kind, case.ending, text[:at] + wrong + text[at:])


def _starts(text: bytes, at: int) -> bool:
    """Whether a character starts here, after a mark at the very beginning."""
    return at >= 3 and (at == len(text) or text[at] & 0xC0 != 0x80)


def broken_quotes(maker: Maker, kind: str) -> Case:
    columns, rows = maker.right()
    content, lines = maker.csv(columns, [list(row.values()) for row in rows])
    end = "\r\n" if b"\r\n" in content else "\n" if b"\n" in content else "\r"
    tail = maker.random.choice(('"never closed', '"a"b', '"a" ', '"a" "b"', '"""'))
    cells = ",".join([tail, *["x"] * (len(columns) - 1)])
    joined = content if content.endswith((b"\n", b"\r")) else content + end.encode()
    line = len(LINE_END.findall(joined.decode("utf-8-sig"))) + 1
    del lines
    return Case(kind, "csv", joined + cells.encode(), line=line)


def broken_json(maker: Maker, kind: str) -> Case:
    _, rows = maker.right()
    objects = [json.dumps(row) for row in rows]
    objects_of = ('"tags": [[1]]', '"meta.x": {}', '"seed": true', '"prompt": "b"', '"seed": NaN')
    wrong = ['{"prompt": ', "[1]", '"a"', "{'prompt': 'a'}", '{"prompt": 5}', "[" * 5000]
    wrong += [f'{{"prompt": "a", {cell}}}' for cell in objects_of] + ['{"prompt": "\\ud800"}']
    number = maker.random.randrange(len(objects))
    objects[number] = maker.random.choice(wrong)
    content, lines = maker.jsonl(objects)
    return Case(kind, "jsonl", content, line=lines[number])


def broken_parquet(maker: Maker, kind: str) -> Case:
    content = maker.file(kind, *maker.right(), "parquet").content
    how = maker.random.choice(("cut", "tail", "type", "text"))
    if how == "cut":
        content = content[: maker.random.randrange(len(content))]
    elif how == "tail":
        content += b"x" * maker.random.randint(1, 20)
    elif how == "text":
        content = b"prompt\na\n"
    else:
        kinds = ([b"a"], [{"a": "b"}], [[["a"]]])
        sink = io.BytesIO()
        pq.write_table(pa.table({"prompt": maker.random.choice(kinds)}), sink)
        content = sink.getvalue()
    return Case(kind, "parquet", content)


def nothing(maker: Maker, kind: str) -> Case:
    ending = maker.random.choice(("csv", "jsonl", "txt", "parquet"))
    return Case(kind, ending, maker.random.choice((b"", b"\n\n", b"\xef\xbb\xbf", b" \n", b"\r")))


def changed_bytes(maker: Maker, kind: str) -> Case:
    """Some bytes are deleted, repeated, changed or moved; our own parser says what there is."""
    content = bytearray(maker.file(kind, *maker.right(), "csv").content)
    for _ in range(maker.random.randint(1, 4)):
        at = maker.random.randrange(len(content) + 1)
        more = maker.random.choice((b'"', b",", b"\n", b"\r", b"\x00", b"\xff", b'""', b"x", b" "))
        what = maker.random.choice(("insert", "delete", "replace"))
        content[at : at + (what != "insert")] = b"" if what == "delete" else more
    return Case(kind, "csv", bytes(content), parse(bytes(content)), may_fail=True)


def parse(content: bytes) -> list[tuple[int, Row]] | None:
    """The rows of a CSV file by RFC 4180, with blank lines left out; None for what is none."""
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None
    table: list[tuple[int, list[str]]] = []
    at = line = 0
    while at < len(text):
        row, first = [], line
        while True:
            if text[at : at + 1] == '"':
                closing = at + 1
                while True:
                    closing = text.find('"', closing)
                    if closing < 0:
                        return None
                    if text[closing : closing + 2] != '""':
                        break
                    closing += 2
                cell, at = text[at + 1 : closing].replace('""', '"'), closing + 1
            else:
                found = re.compile(r"[^,\r\n]*").match(text, at)
                assert found is not None
                cell, at = found[0], found.end()
            row.append(cell)
            line += len(LINE_END.findall(cell))
            if text[at : at + 1] != ",":
                break
            at += 1
        end = LINE_END.match(text, at)
        if end is None and at < len(text):
            return None
        at, line = (end.end(), line + 1) if end else (at, line)
        if row != [""]:
            table.append((first + 1, row))
    if not table:
        return None
    header, width = table[0][1], len(table[0][1])
    while header and not header[-1].strip():  # blank columns behind the last one
        header = header[:-1]
    if len(set(header)) < len(header) or "prompt" not in header:
        return None
    for _, row in table[1:]:
        if len(row) not in (len(header), width) or any(map(str.strip, row[len(header) :])):
            return None
    return [(line, dict(zip(header, row, strict=False))) for line, row in table[1:]]


KINDS: dict[str, Callable[[Maker, str], Case]] = {
    "valid": valid,
    "control character": bad_cell("*", control),
    "id": bad_cell("id", one_of(BAD_IDS)),
    "same id": same_id,
    "blank prompt": bad_cell("prompt", one_of(("", " ", "\n", "\u00a0 \u3000"))),
    "seed": bad_cell("seed", one_of(BAD_SEEDS)),
    "scale": bad_cell("guidance_scale", one_of(BAD_SCALES)),
    "long cell": bad_cell("*", lambda maker: "x" * 100_001),
    "short row": wrong_count(-1),
    "extra cell": wrong_count(1),
    "header": bad_header,
    "encoding": bad_encoding,
    "quotes": broken_quotes,
    "JSON": broken_json,
    "Parquet": broken_parquet,
    "nothing": nothing,
    "bytes": changed_bytes,
}


def judge(case: Case, folder: Path) -> tuple[str, bool]:
    """What is wrong with how the manifest was read, "" if nothing is; whether it was accepted."""
    path = folder / f"case.{case.ending}"
    path.write_bytes(case.content)
    try:
        manifest, plan = read_entries(path, prior_revision=lambda prior: "r")
    except ManifestError as error:
        if case.rows is not None and not case.may_fail:
            return f"was refused: {error}", False
        lines = [problem.line for problem in error.problems]
        if case.line is not None and case.line not in lines:
            return f"line {case.line} was not named: {error}", False
        if not all(part.isprintable() for part in str(error).split("\n")):
            return f"a message has control characters: {error!s:.200}", False
        return "", False
    except Exception:
        return traceback.format_exc(), False
    if case.rows is None:
        return f"was accepted: {[row.prompt for row in manifest.rows]}", True
    return compare(case.rows, manifest, plan), True


def compare(rows: list[tuple[int, Row]], manifest: Manifest, plan: Resolved) -> str:
    """What differs between the rows of an accepted manifest and those that it has."""
    wanted = [(line, expected(row)) for line, row in rows]
    found = [
        (
            row.line,
            {
                "prompt": row.prompt,
                "negative_prompt": row.negative_prompt,
                "seed": row.seed,
                "tags": row.tags,
                "meta": row.meta,
                "scale": row.overrides.get("guidance_scale"),
            },
        )
        for row in manifest.rows
    ]
    if found != wanted:
        return f"{found} instead of {wanted}"
    given = [row.get("id", "").strip() and row["id"] for _, row in rows]
    ids = [row.row_id for row in manifest.rows]
    if len(set(ids)) < len(ids) or not all(ID.fullmatch(row_id) for row_id in ids):
        return f"ids {ids}"
    if any(want and want != got for want, got in zip(given, ids, strict=True)):
        return f"ids {ids} instead of {given}"
    if [entry.spec.prompt for entry in plan.entries] != [row["prompt"] for _, row in rows]:
        return "the plan has other prompts"
    return ""


def expected(row: Row) -> dict[str, Any]:
    """What a row's cells mean."""
    words = row.get("negative_prompt", "")
    seed, scale = row.get("seed", "").strip(), row.get("guidance_scale", "")
    tags = [tag.strip() for tag in row.get("tags", "").split(";")]
    return {
        "prompt": row["prompt"],
        "negative_prompt": words if words.strip() else "",
        "seed": int(seed.partition(".")[0]) if seed else 0,
        "tags": list(dict.fromkeys(tag for tag in tags if tag)),
        "meta": {c.removeprefix("meta."): row[c] for c in row if c.startswith("meta.")},
        "scale": scale if scale.strip() else None,
    }


def fuzz(seed: int, count: int, folder: Path) -> Tally:
    """Judges so many manifests."""
    tally, maker = Tally(), Maker(seed)
    for number in range(count):
        case = maker.case()
        tally.kinds[case.kind] += 1
        tally.bad += case.rows is None
        wrong, accepted = judge(case, folder)
        tally.accepted += accepted
        if wrong:
            tally.violations.append(f"{number} ({case.kind}): {wrong}\n{case.content[:500]!r}")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(arguments.seed, arguments.count, Path(folder))
    for violation in tally.violations[:20]:
        print(violation)
    print(", ".join(f"{count} {kind}" for kind, count in tally.kinds.most_common()))
    print(
        f"{arguments.count} manifests, {tally.bad} of them bad, {tally.accepted} accepted, "
        f"{len(tally.violations)} violations"
    )
    sys.exit(bool(tally.violations))


if __name__ == "__main__":
    main()
