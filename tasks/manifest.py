"""Manifests: the rows of a file, and the plan of assets that follows from them.

`read_manifest` checks what the rows say by themselves; `resolve` adds the command line and the
priors' presets. Both report everything that is wrong at once, and neither changes a prompt.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sjc_engine.input_image import NO_SILHOUETTE, misfits, read_image
from sjc_engine.presets import Value
from sjc_engine.recipes import RECIPE_KEYS, Recipe
from sjc_engine.sources import takes_image
from sjc_engine.spec import AssetSpec
from sjc_engine.toybox.captions import NOUNS, coverage, unknown_words
from tasks.manifest_files import ManifestError, Problem, read_records
from tasks.manifest_rows import (
    WEIGHTS,
    Row,
    RowReader,
    blamed_keys,
    prior_problem,
    recipe_problem,
    split_error,
)

__all__ = [
    "Entry", "Manifest", "ManifestError", "Plan", "Problem", "Row", "read_manifest", "resolve",
]  # fmt: skip

DEFAULT_PRIOR = "toybox"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Manifest:
    """A manifest without mistakes of its own; `sha256` is that of the file."""

    path: Path
    sha256: str
    rows: list[Row]


@dataclass(frozen=True)
class Entry:
    """One manifest row and the asset that it points at.

    duplicate_of: the index in the plan of the first entry with the same asset, on later ones.
    prior_coverage: in [0, 1], for the embedded prior alone.
    """

    line: int
    row_id: str
    spec: AssetSpec
    tags: list[str]
    meta: dict[str, str]
    duplicate_of: int | None
    prior_coverage: float | None
    image_path: Path | None


@dataclass(frozen=True)
class Plan:
    """All entries in the manifest's order, and what to know before they run, a line each."""

    entries: list[Entry]
    warnings: list[str]


def read_manifest(path: str | Path) -> Manifest:
    """The rows of a CSV, JSONL or Parquet manifest; raises `ManifestError` with every problem."""
    path = Path(path)
    records, data = read_records(path)
    readers = [RowReader(record, records, path.parent) for record in records.rows]
    rows = [
        row
        for reader, row_id in zip(readers, _row_ids(readers), strict=True)
        for row in reader.rows(row_id)
    ]
    lines: dict[str, int] = {}
    for row in rows:  # a seed range may give a row the id of another
        if row.row_id in lines:
            problem = f"{row.row_id!r} is the id of line {lines[row.row_id]} too"
            records.blame(row.line, "id", problem, "make it unique")
        lines[row.row_id] = row.line
    if records.problems:
        raise ManifestError(sorted(records.problems, key=lambda problem: problem.line or 0))
    return Manifest(path, hashlib.sha256(data).hexdigest(), rows)


def resolve(
    manifest: Manifest,
    *,
    prior_revision: Callable[[str], str | None],
    prior: str | None = None,
    recipe: str | None = None,
    overrides: Mapping[str, Value] | None = None,
    limit: int | None = None,
) -> Plan:
    """The assets of a manifest: a row's word, else the command line's, else the preset's.

    `prior`, `recipe` and `overrides` are the command line's; `limit` keeps the first entries.
    `prior_revision` tells a prior's revision, or raises ValueError. Raises `ManifestError` with
    every problem.
    """
    resolver = _Resolver(str(manifest.path), prior_revision, prior, recipe, overrides or {})
    if limit is not None and limit < 1:
        resolver.blame(None, "--limit", f"{limit} leaves nothing", "use 1 or more")
    specs = [(row, resolver.spec(row)) for row in manifest.rows[:limit]]
    if resolver.problems:
        raise ManifestError(list(dict.fromkeys(resolver.problems)))
    entries: list[Entry] = []
    first: dict[str, int] = {}  # asset_id -> index of its first entry
    warnings: list[str] = []
    for row, spec in specs:
        place = f"{manifest.path}:{row.line}"
        position = first.setdefault(spec.asset_id, len(entries))
        duplicate_of = None if position == len(entries) else position
        if duplicate_of is not None:
            other = entries[duplicate_of]
            warnings.append(
                f"{place}: id: {row.row_id} is the same asset as {other.row_id} "
                f"(line {other.line}); it is made once"
            )
        covered = coverage(row.prompt) if spec.prior == DEFAULT_PRIOR else None
        if covered is not None and covered < 1:
            warnings.append(f"{place}: prompt: {_not_covered(row.prompt, covered)}")
        entries.append(
            Entry(
                line=row.line,
                row_id=row.row_id,
                spec=spec,
                tags=row.tags,
                meta=row.meta,
                duplicate_of=duplicate_of,
                prior_coverage=covered,
                image_path=row.image_path,
            )
        )
    return Plan(entries, list(dict.fromkeys(warnings)))


def _row_ids(readers: Sequence[RowReader]) -> list[str]:
    """The given ids, and for the other rows ids made from their prompts."""
    lines: dict[str, int] = {}
    ids = []
    for reader in readers:
        row_id = reader.row_id()
        if row_id in lines:
            problem = f"{row_id!r} is the id of line {lines[row_id]} too"
            reader.blame("id", problem, "make it unique")
        elif row_id:
            lines[row_id] = reader.line
        ids.append(row_id)
    uses: Counter[str] = Counter()
    for position, reader in enumerate(readers):
        if not ids[position]:
            slug = row_id = reader.slug()
            while row_id in lines:
                uses[slug] += 1
                row_id = f"{slug}-{uses[slug] + 1}"
            lines[row_id] = reader.line
            ids[position] = row_id
    return ids


class _Resolver:
    """Rows to specs under one command line; collects what is wrong."""

    def __init__(
        self,
        file: str,
        prior_revision: Callable[[str], str | None],
        prior: str | None,
        recipe: str | None,
        overrides: Mapping[str, Value],
    ) -> None:
        self.file = file
        self.prior_revision = prior_revision
        self.prior, self.recipe = prior, recipe
        self.overrides = {k: v for k, v in overrides.items() if k in RECIPE_KEYS}
        self.problems: list[Problem] = []
        self.revisions: dict[str, str | ValueError] = {}
        for key in overrides.keys() - self.overrides.keys():
            try:
                Recipe().override({key: overrides[key]})
            except ValueError as error:
                self.blame(None, f"--set {key}", *split_error(error))

    def blame(self, line: int | None, column: str, problem: str, fix: str) -> None:
        """A problem of a row or, without a line, of the command line."""
        file = COMMAND_LINE if line is None else self.file
        self.problems.append(Problem(file, line, column, problem, fix))

    def spec(self, row: Row) -> AssetSpec:
        """What the row asks for; worth nothing if there are problems."""
        prior = row.prior or (DEFAULT_PRIOR if self.prior is None else self.prior)
        revision = self._revision(row, prior)
        recipe = self._recipe(row, prior)
        if not prior_problem(prior):
            self._check_image(row, prior, recipe)
        return AssetSpec(
            prompt=row.prompt,
            negative_prompt=row.negative_prompt,
            image=row.image,
            seed=row.seed,
            prior=prior,
            prior_revision=revision,
            recipe=recipe,
        )

    def _check_image(self, row: Row, prior: str, recipe: Recipe) -> None:
        """Blames what does not go together: prior, picture, and the settings for pictures."""
        r, has_image = recipe.optimize, row.image is not None
        wrong = misfits(prior, takes_image(prior), has_image, row.negative_prompt, r)
        path = row.image_path if r.silhouette_weight and not wrong else None
        if path and read_image(path).opacity is None:
            wrong = [("silhouette_weight", NO_SILHOUETTE)]
        for setting, problem in wrong:
            if setting in self.overrides and setting not in row.overrides:
                self.blame(None, f"--set {setting}", *split_error(ValueError(problem)))
            else:
                self.blame(row.line, setting, *split_error(ValueError(problem)))

    def _revision(self, row: Row, prior: str) -> str:
        line, column = (row.line, "prior") if row.prior else (None, "--prior")
        if not row.prior and (problem := prior_problem(prior)):
            self.blame(line, column, *problem)
            return ""
        if prior not in self.revisions:  # finding it may read all weights, or ask the hub
            try:
                self.revisions[prior] = self.prior_revision(prior) or ""
            except ValueError as error:
                self.revisions[prior] = error
        found = self.revisions[prior]
        if isinstance(found, ValueError):
            self.blame(line, column, *split_error(found))
            return ""
        return found

    def _recipe(self, row: Row, prior: str) -> Recipe:
        if not row.prior and prior_problem(prior):  # nobody can tell which presets fit it
            if not row.recipe and self.recipe and (wrong := recipe_problem(None, self.recipe)):
                self.blame(None, "--recipe", *wrong)
            return Recipe()
        try:
            recipe = Recipe.for_prior(prior, row.recipe or self.recipe)
        except ValueError as error:
            column = "recipe" if row.recipe else "prior"
            if row.recipe or row.prior:
                self.blame(row.line, column, *split_error(error))
            else:
                self.blame(None, "--recipe", *split_error(error))
            return Recipe()
        values = {**self.overrides, **row.overrides}
        while True:
            try:
                recipe = recipe.override(values)
                break
            except ValueError as error:
                # The engine stops at the first mistake; leave it out to find the next one.
                named = [key for key in blamed_keys(error) if key in values]
                key = next((key for key in named if key in row.overrides), named[0])
                if key in row.overrides:
                    self.blame(row.line, key, *split_error(error, key))
                else:
                    self.blame(None, f"--set {key}", *split_error(error, key))
                del values[key]
        for key, problem_of in WEIGHTS.items():
            problem = problem_of(getattr(recipe.evaluate, key))
            if problem and key not in row.overrides:
                self.blame(None, f"--set {key}", *problem)
        return recipe


def _not_covered(prompt: str, covered: float) -> str:
    words = ", ".join(repr(word) for word in dict.fromkeys(unknown_words(prompt)))
    if covered == 0:
        return (
            f"the prior {DEFAULT_PRIOR!r} has no such object ({', '.join(NOUNS)}); "
            "expect nonsense, or use another prior"
        )
    return f"the prior {DEFAULT_PRIOR!r} does not know {words}; it will leave that out"
