"""What one manifest row asks for, checked as far as the row alone can tell."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sjc_engine.presets import PRESETS, Value
from sjc_engine.priors.conditioning import ImageError, check_image
from sjc_engine.priors.sources import BUILTINS, FAMILIES, HUB_ID
from sjc_engine.recipes import RECIPE_KEYS, Recipe
from tasks.manifest.files import META, Record, Records, shown

MAX_CELL = 100_000  # characters
MAX_ID = 128
MAX_SEED = 2**63 - 1
MAX_SEEDS = 10_000  # of one row

_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_ID}}}")
_SEEDS = re.compile(r"([0-9]{1,19})(?:\s*-\s*([0-9]{1,19}))?")
# Control characters but for line breaks, and halves of surrogate pairs: neither can be stored.
_CONTROL = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One entry as the manifest asks for it; a seed range makes one Row for each seed."""

    manifest: str  # its file
    manifest_sha256: str
    line: int
    row_id: str
    prompt: str
    negative_prompt: str
    image_path: Path | None
    image: str | None  # SHA-256 of the picture's bytes
    seed: int
    prior: str | None
    recipe: str | None
    overrides: dict[str, Value]
    tags: list[str]
    meta: dict[str, str]


class Memo:
    """Answers to what many rows of one manifest ask again and again."""

    def __init__(self) -> None:
        self._answers: dict[Any, Any] = {}

    def get(self, question: Any, find: Callable[..., Any], *arguments: Any) -> Any:
        """What `find(*arguments)` returned when the question first came up."""
        if question not in self._answers:
            self._answers[question] = find(*arguments)
        return self._answers[question]


class RowReader:
    """Reads the cells of one record. Problems go to `records`, and set `failed`."""

    def __init__(self, record: Record, records: Records, memo: Memo) -> None:
        self.cells = record.cells
        self.memo = memo
        self.line = record.line
        self.records = records
        self.failed = False
        self.given: dict[str, Any] = {}  # the cells that are not blank
        for column, value in self.cells.items():
            if value != "":
                self._check_characters(column, value)
                if not (isinstance(value, str) and value.isspace()):
                    self.given[column] = value

    def add_problem(self, column: str, problem: str, fix: str) -> None:
        self.records.add_problem(self.line, column, problem, fix)
        self.failed = True

    def row_id(self) -> str:
        """The given id; "" if there is none or it is not valid."""
        value = self.given.get("id")
        if value is None:
            return ""
        if not isinstance(value, str) and type(value) is not int:
            self.add_problem("id", *_not_text(value))
            return ""
        text = str(value)
        if not _ID.fullmatch(text) or text in (".", ".."):
            fix = "use 1 to 128 of A-Z a-z 0-9 . _ - (and not . or .. alone)"
            self.add_problem("id", f"{shown(text)!r} is no id", fix)
            return ""
        return text

    def rows(self, row_id: str) -> list[Row]:
        """The record's entries under this id, which mean nothing if it has `failed`."""
        seeds, ranged = self._seeds()
        image_path, image = self._image()
        prior = self._prior()
        row = Row(
            manifest=self.records.file,
            manifest_sha256=self.records.sha256,
            line=self.line,
            row_id=row_id,
            prompt=self._prompt(),
            negative_prompt=self._text("negative_prompt"),
            image_path=image_path,
            image=image,
            seed=seeds[0],
            prior=prior,
            recipe=self._recipe(prior),
            overrides=self._overrides(),
            tags=self._tags(),
            meta=self._meta(),
        )
        rows = [replace(row, seed=s, row_id=f"{row_id}-s{s}") for s in seeds] if ranged else [row]
        if any(len(row.row_id) > MAX_ID for row in rows):
            self.add_problem(
                "id", f"is longer than {MAX_ID} characters with its seed", "shorten it"
            )
        return rows

    def _text(self, column: str) -> str:
        """The cell's text, verbatim; "" if it is blank."""
        value = self.given.get(column)
        if value is None or isinstance(value, str):
            return value or ""
        self.add_problem(column, *_not_text(value))
        return ""

    def _check_characters(self, column: str, value: Any) -> None:
        for text in value if isinstance(value, list) else (value,):
            if not isinstance(text, str):
                continue
            if len(text) > MAX_CELL:
                problem = f"has {len(text):,} characters, and the limit is {MAX_CELL:,}"
                self.add_problem(shown(column), problem, "shorten it; a quote may not be closed")
            elif found := _CONTROL.search(text):
                problem = f"has the control character {found[0]!a}"
                self.add_problem(shown(column), problem, "remove it, or write a space")

    def _prompt(self) -> str:
        if self.given.get("prompt") is None:
            self.add_problem("prompt", "is blank", "write what to make, or remove the row")
        return self._text("prompt")

    def _seeds(self) -> tuple[list[int], bool]:
        """The seeds, and whether they were given as a range; [0] if they are wrong."""
        value = self.given.get("seed")
        if value is None:
            return [0], False
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            value = str(int(value))
        found = _SEEDS.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            fix = "write a whole number from 0, or a range such as 0-3"
            self.add_problem("seed", f"{shown(str(value))!r} is no seed", fix)
            return [0], False
        first, last = int(found[1]), int(found[2] or found[1])
        if last > MAX_SEED:
            self.add_problem("seed", f"{last} is too large", f"use at most {MAX_SEED}")
        elif last < first:
            self.add_problem("seed", f"{value} counts down", f"write {last}-{first}")
        elif last - first >= MAX_SEEDS:
            problem = f"{value} is {last - first + 1:,} seeds"
            self.add_problem("seed", problem, f"write at most {MAX_SEEDS:,} in one row")
        else:
            return list(range(first, last + 1)), found[2] is not None
        return [0], False

    def _image(self) -> tuple[Path | None, str | None]:
        text = self._text("image")
        if not text:
            return None, None
        if self.records.folder is None and not Path(text).is_absolute():
            fix = "copy manifest and pictures into a folder, or give a path on this machine"
            self.add_problem("image", "pictures beside a manifest on S3 are not read", fix)
            return None, None
        path = (self.records.folder or Path()) / text
        try:
            return path, self.memo.get(("image", text), check_image, path)
        except ImageError as error:
            problem, fix = split_error(error)
            if not path.exists():
                fix = "give its path from the manifest's folder"
            self.add_problem("image", problem, fix)
            return None, None

    def _prior(self) -> str | None:
        text = self._text("prior").strip()
        if text and (problem := self.memo.get(("prior", text), prior_problem, text)):
            self.add_problem("prior", *problem)
            return None
        return text or None

    def _recipe(self, prior: str | None) -> str | None:
        text = self._text("recipe").strip()
        question = "recipe", prior, text
        if text and (problem := self.memo.get(question, recipe_problem, prior, text)):
            self.add_problem("recipe", *problem)
        return text or None

    def _overrides(self) -> dict[str, Value]:
        overrides = {key: value for key, value in self.given.items() if key in RECIPE_KEYS}
        for key, value in overrides.items():
            # True, 1 and 1.0 are equal, and are not the same in a recipe.
            for problem in self.memo.get((key, repr(value)), key_problems, key, value):
                self.add_problem(key, *problem)
        return overrides

    def _tags(self) -> list[str]:
        value = self.given.get("tags")
        tags = value if isinstance(value, list) else self._text("tags").split(";")
        if not all(isinstance(tag, str) for tag in tags):
            self.add_problem("tags", f"{shown(repr(value))} is not a list of text", 'write "a;b"')
            return []
        return list(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))

    def _meta(self) -> dict[str, str]:
        meta = {}
        for column, value in self.cells.items():
            if not column.startswith(META):
                continue
            if not isinstance(value, str | int | float):
                self.add_problem(shown(column), *_not_text(value))
            text = str(value).lower() if isinstance(value, bool) else str(value)
            meta[column.removeprefix(META)] = text
        return meta


def key_problems(key: str, value: Value) -> list[tuple[str, str]]:
    """What is wrong with a recipe key's value, whatever the preset, and the fixes."""
    found = []
    try:
        Recipe().override({key: value})
    except ValueError as error:
        # An error that names two keys depends on the preset, which is not known here.
        if keys_named_in(error) == [key]:
            found.append(split_error(error, key))
    if key in WEIGHTS and isinstance(value, str) and (problem := WEIGHTS[key](value.strip())):
        found.append(problem)
    return found


def _not_text(value: Any) -> tuple[str, str]:
    return f"{shown(repr(value))} is not text", "put it in quotes"


def prior_problem(prior: str) -> tuple[str, str] | None:
    """What is wrong with a prior's name, and the fix; the hub is not asked."""
    if prior in BUILTINS:
        return None
    folder = Path(prior)
    if folder.is_dir():
        return _index_problem(folder)
    if HUB_ID.fullmatch(prior):
        return None
    fix = f"use {', '.join(BUILTINS)}, an existing folder, or owner/name on the hub"
    return f"{shown(prior)!r} is unknown", fix


def _index_problem(folder: Path) -> tuple[str, str] | None:
    fix = "name a diffusers model folder"
    if not (folder / "model_index.json").is_file():
        return f"the folder {folder} has no model_index.json", fix
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        kind = str(index.get("_class_name"))
    except (AttributeError, OSError, ValueError):
        return f"{folder}/model_index.json is not readable", fix
    if kind not in FAMILIES:
        return f"the folder {folder} has a {shown(kind)}", f"use one with {', '.join(FAMILIES)}"
    return None


def recipe_problem(prior: str | None, recipe: str) -> tuple[str, str] | None:
    """What is wrong with a preset's name, and the fix; without a prior it may be any family's."""
    if prior is not None:
        try:
            Recipe.for_prior(prior, recipe)
        except ValueError as error:
            return split_error(error)
        return None
    known = list(dict.fromkeys(name for family in PRESETS.values() for name in family))
    if recipe in known:
        return None
    close = difflib.get_close_matches(recipe, known, n=1)
    fix = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"
    return f"{shown(recipe)!r} is unknown", fix


def judge_problem(judge: str) -> tuple[str, str] | None:
    """What is wrong with a judge's name, and the fix; neither its files nor the hub are read."""
    if judge == "toybox" or Path(judge).is_dir() or HUB_ID.fullmatch(judge):
        return None
    fix = "use toybox, an existing folder, or owner/name on the hub"
    return f"{shown(judge)!r} is unknown", fix


def lpips_problem(lpips: str) -> tuple[str, str] | None:
    """The same for LPIPS weights."""
    if lpips == "none" or Path(lpips).is_dir():
        return None
    return f"{shown(lpips)!r} is no folder", "write none, or a folder of weights (docs/tables.md)"


# Recipe keys that name what an evaluation loads.
WEIGHTS = {"judge": judge_problem, "lpips": lpips_problem}


def split_error(error: ValueError | str, key: str = "") -> tuple[str, str]:
    """The engine's message as problem and fix; `key` names the column, and need not come twice."""
    problem, _, fix = str(error).partition("; ")
    return problem.removeprefix(f"{key} = "), fix or "see docs/manifests.md for its values"


def keys_named_in(error: ValueError) -> list[str]:
    """The recipe keys that an error of the engine names, in its order."""
    return [word for word in re.findall(r"\w+", str(error)) if word in RECIPE_KEYS]
