"""What one manifest row asks for, checked as far as the row alone can tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sjc_engine.errors import SettingError
from sjc_engine.image_file import ImageError, ImageFacts, check_image
from sjc_engine.priors.sources import judge_error, lpips_error, prior_error
from sjc_engine.recipe_presets import Value
from sjc_engine.recipes import RECIPE_KEYS, Recipe, check_preset
from tasks.manifest.formats import META, shown

MAX_CELL = 100_000  # characters
MAX_ID = 128
MAX_SEED = 2**63 - 1
MAX_SEEDS = 10_000  # of one row

_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_ID}}}")
# 3.0 too: what pandas makes of whole numbers beside a blank cell
_SEEDS = re.compile(r"([0-9]{1,19})(?:\.0+|\s*-\s*([0-9]{1,19}))?")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Control characters but for line breaks, and halves of surrogate pairs: neither can be stored.
_CONTROL = re.compile(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One entry as the manifest asks for it; a seed range makes one Row for each seed.

    line: physical, 0 for what the command line asks for.
    """

    manifest: str  # its file
    manifest_sha256: str
    line: int
    row_id: str
    prompt: str
    negative_prompt: str
    image_path: Path | None
    image: ImageFacts | None
    seed: int
    prior: str | None
    recipe: str | None
    overrides: dict[str, Value]
    tags: list[str]
    meta: dict[str, str]


class Memo:
    """Answers to what many rows of one manifest ask again and again.

    allow_pickle: whether the run may read pickled weights.
    """

    def __init__(self, *, allow_pickle: bool = False) -> None:
        self.allow_pickle = allow_pickle
        self._answers: dict[Any, Any] = {}

    def get(self, question: Any, find: Callable[..., Any], *arguments: Any) -> Any:
        """What `find(*arguments)` returned when the question first came up."""
        if question not in self._answers:
            self._answers[question] = find(*arguments)
        return self._answers[question]

    def prior_error(self, prior: str) -> SettingError | None:
        """What is wrong with a prior's name and files."""
        error: SettingError | None = self.get(
            ("prior", prior), prior_error, prior, self.allow_pickle
        )
        return error

    def weights_error(self, key: str, value: str) -> SettingError | None:
        """The same of a recipe key of WEIGHTS."""
        error: SettingError | None = self.get(
            ("weights", key, value), WEIGHTS[key], value, self.allow_pickle
        )
        return error


class Cells:
    """The cells of one row; what is wrong with them goes to `errors`, under its column.

    given: those that are not blank.
    """

    def __init__(self, cells: Mapping[str, Any]) -> None:
        self.cells = cells
        self.errors: list[SettingError] = []
        self.given: dict[str, Any] = {}
        for column, value in cells.items():
            if value != "":
                self._check_characters(column, value)
                if not (isinstance(value, str) and value.isspace()):
                    self.given[column] = value

    def add_error(self, column: str, problem: str, fix: str) -> None:
        self.errors.append(SettingError(column, problem, fix))

    def text(self, column: str) -> str:
        """The cell's text, verbatim; "" if it is blank."""
        value = self.given.get(column)
        if value is None or isinstance(value, str):
            return value or ""
        self.add_error(column, *_not_text(value))
        return ""

    def texts(self, column: str) -> list[str]:
        """The parts of the cell, which is a list or "a;b", each once."""
        value = self.given.get(column)
        parts = value if isinstance(value, list) else self.text(column).split(";")
        if not all(isinstance(part, str) for part in parts):
            self.add_error(column, f"{shown(repr(value))} is not a list of text", 'write "a;b"')
            return []
        return list(dict.fromkeys(part.strip() for part in parts if part.strip()))

    def _check_characters(self, column: str, value: Any) -> None:
        for text in value if isinstance(value, list) else (value,):
            if not isinstance(text, str):
                continue
            if len(text) > MAX_CELL:
                problem = f"has {len(text):,} characters, and the limit is {MAX_CELL:,}"
                self.add_error(shown(column), problem, "shorten it; a quote may not be closed")
            elif found := _CONTROL.search(text):
                problem = f"has the control character {found[0]!a}"
                self.add_error(shown(column), problem, "remove it, or write a space")


class RowReader(Cells):
    """Reads the cells of one row of a manifest.

    folder: where paths of images start, None if the manifest is on S3.
    """

    def __init__(self, cells: Mapping[str, Any], folder: Path | None, memo: Memo) -> None:
        super().__init__(cells)
        self.folder = folder
        self.memo = memo

    def row_id(self) -> str:
        """The given id; "" if there is none or it is not valid."""
        value = self.given.get("id")
        if value is None:
            return ""
        if not isinstance(value, str) and type(value) is not int:
            self.add_error("id", *_not_text(value))
            return ""
        text = str(value)
        if not _ID.fullmatch(text) or text in (".", ".."):
            fix = "use 1 to 128 of A-Z a-z 0-9 . _ - (and not . or .. alone)"
            self.add_error("id", f"{shown(text)!r} is not a valid id", fix)
            return ""
        return text

    def rows(self, row_id: str, manifest: str, manifest_sha256: str, line: int) -> list[Row]:
        """The row's entries under this id, which mean nothing if there are `errors`."""
        seeds, ranged = self._seeds()
        image_path, image = self._image()
        prior = self._prior()
        row = Row(
            manifest=manifest,
            manifest_sha256=manifest_sha256,
            line=line,
            row_id=row_id,
            prompt=self._prompt(),
            negative_prompt=self.text("negative_prompt"),
            image_path=image_path,
            image=image,
            seed=seeds[0],
            prior=prior,
            recipe=self._recipe(prior),
            overrides=self._overrides(),
            tags=self.texts("tags"),
            meta=self._meta(),
        )
        rows = [replace(row, seed=s, row_id=f"{row_id}-s{s}") for s in seeds] if ranged else [row]
        if any(len(row.row_id) > MAX_ID for row in rows):
            self.add_error("id", f"is longer than {MAX_ID} characters with its seed", "shorten it")
        return rows

    def _prompt(self) -> str:
        if self.given.get("prompt") is None:
            self.add_error("prompt", "is blank", "write what to make, or remove the row")
        return self.text("prompt")

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
            self.add_error("seed", f"{shown(str(value))!r} is not a valid seed", fix)
            return [0], False
        first, last = int(found[1]), int(found[2] or found[1])
        if last > MAX_SEED:
            self.add_error("seed", f"{last} is too large", f"use at most {MAX_SEED}")
        elif last < first:
            self.add_error("seed", f"{value} counts down", f"write {last}-{first}")
        elif last - first >= MAX_SEEDS:
            problem = f"{value} is {last - first + 1:,} seeds"
            self.add_error("seed", problem, f"write at most {MAX_SEEDS:,} in one row")
        else:
            return list(range(first, last + 1)), found[2] is not None
        return [0], False

    def _image(self) -> tuple[Path | None, ImageFacts | None]:
        text = self.text("image")
        if not text:
            return None, None
        if _ADDRESS.match(text):
            problem = f"{shown(text)!r} is an address, and only files are read"
            self.add_error("image", problem, "download it, and give its path")
            return None, None
        if self.folder is None and not Path(text).is_absolute():
            fix = "copy the manifest and its images into a folder, or give a path on this machine"
            self.add_error("image", "images next to a manifest on S3 are not read", fix)
            return None, None
        path = (self.folder or Path()) / text
        try:
            return path, self.memo.get(("image", text), check_image, path)
        except ImageError as error:
            fix = error.fix if path.exists() else "give its path from the manifest's folder"
            self.add_error("image", error.problem, fix)
            return None, None

    def _prior(self) -> str | None:
        text = self.text("prior").strip()
        if text and (error := self.memo.prior_error(text)):
            self.errors.append(error)
            return None
        return text or None

    def _recipe(self, prior: str | None) -> str | None:
        text = self.text("recipe").strip()
        question = "recipe", prior, text
        if text and (error := self.memo.get(question, preset_error, prior, text)):
            self.errors.append(error)
        return text or None

    def _overrides(self) -> dict[str, Value]:
        overrides = {key: value for key, value in self.given.items() if key in RECIPE_KEYS}
        for key, value in overrides.items():
            # True, 1 and 1.0 are equal, and are not the same in a recipe.
            self.errors += self.memo.get((key, repr(value)), key_errors, key, value, self.memo)
        return overrides

    def _meta(self) -> dict[str, str]:
        meta = {}
        for column, value in self.cells.items():
            if not column.startswith(META):
                continue
            if not isinstance(value, str | int | float):
                self.add_error(shown(column), *_not_text(value))
            text = str(value).lower() if isinstance(value, bool) else str(value)
            meta[column.removeprefix(META)] = text
        return meta


def key_errors(key: str, value: Value, memo: Memo) -> list[SettingError]:
    """What is wrong with a recipe key's value, whatever the preset."""
    # What conflicts with another key may fit the preset's value of it.
    found = [error for error in Recipe().problems({key: value}) if not error.conflicts]
    if not found and key in WEIGHTS and (error := memo.weights_error(key, str(value).strip())):
        found.append(error)
    return found


def preset_error(prior: str | None, recipe: str) -> SettingError | None:
    """What is wrong with a preset's name; without a prior it may be any family's."""
    try:
        if prior is None:
            check_preset(recipe)
        else:
            Recipe.for_prior(prior, recipe)
    except SettingError as error:
        return error
    return None


# Recipe keys that name what an evaluation loads.
WEIGHTS: dict[str, Callable[[str, bool], SettingError | None]] = {
    "judge": judge_error,
    "lpips": lambda id, allow_pickle: lpips_error(id),
}


def _not_text(value: Any) -> tuple[str, str]:
    return f"{shown(repr(value))} is not text", "put it in quotes"
