"""Manifests: the rows of their files, and the plan of assets that follows from them.

`read_manifest` checks what the rows say by themselves; `resolve` adds the command line and the
priors' presets. Both report everything that is wrong at once, and neither changes a prompt.
"""

from __future__ import annotations

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
from tasks.manifest_files import ManifestError, Problem
from tasks.manifest_rows import (
    WEIGHTS,
    Row,
    RowReader,
    blamed_keys,
    prior_problem,
    recipe_problem,
    split_error,
)
from tasks.manifest_sources import digest, read_sources

__all__ = [
    "Entry", "Manifest", "ManifestError", "Plan", "Problem", "Row", "read_manifest", "resolve",
]  # fmt: skip

DEFAULT_PRIOR = "toybox"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Manifest:
    """A manifest without mistakes of its own.

    name: as the user named it: a file, or a folder of files, here or on S3. sha256: that of the
    file, or of the list of its files'.
    """

    name: str
    sha256: str
    rows: list[Row]


@dataclass(frozen=True)
class Entry:
    """One manifest row and the asset that it points at.

    manifest, manifest_sha256: the row's own file; `line` is the line in it.
    duplicate_of: the index in the plan of the first entry with the same asset, on later ones.
    prior_coverage: in [0, 1], for the embedded prior alone.
    """

    manifest: str
    manifest_sha256: str
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


def read_manifest(manifest: str | Path) -> Manifest:
    """The rows of a manifest; raises `ManifestError` with every problem.

    manifest: a CSV, JSONL or Parquet file, a folder of them, s3://bucket/key or s3://bucket/prefix.
    """
    name = manifest.as_posix() if isinstance(manifest, Path) else manifest
    sources = read_sources(name)
    readers = [
        RowReader(record, source.records, source.folder, source.sha256)
        for source in sources
        for record in source.records.rows
    ]
    rows: list[Row] = []
    first: dict[str, Row] = {}
    for reader, row_id in zip(readers, _row_ids(readers), strict=True):
        for row in reader.rows(row_id):
            if row.row_id in first:  # a seed range may give a row the id of another
                _blame_twin(reader, row.row_id, first[row.row_id].file, first[row.row_id].line)
            first[row.row_id] = row
            rows.append(row)
    problems = [
        problem
        for source in sources
        for problem in sorted(source.records.problems, key=lambda problem: problem.line or 0)
    ]
    if problems:
        raise ManifestError(problems)
    return Manifest(name, digest(sources), rows)


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
    resolver = _Resolver(prior_revision, prior, recipe, overrides or {})
    if limit is not None and limit < 1:
        resolver.blame(None, "--limit", f"{limit} leaves nothing", "use 1 or more")
    specs = [(row, resolver.spec(row)) for row in manifest.rows[:limit]]
    if resolver.problems:
        raise ManifestError(list(dict.fromkeys(resolver.problems)))
    entries: list[Entry] = []
    first: dict[str, int] = {}  # asset_id -> index of its first entry
    warnings: list[str] = []
    for row, spec in specs:
        place = f"{row.file}:{row.line}"
        position = first.setdefault(spec.asset_id, len(entries))
        duplicate_of = None if position == len(entries) else position
        if duplicate_of is not None:
            other = entries[duplicate_of]
            warnings.append(
                f"{place}: id: {row.row_id} is the same asset as {other.row_id} "
                f"({_line(other.manifest, other.line, row.file)}); it is made once"
            )
        covered = coverage(row.prompt) if spec.prior == DEFAULT_PRIOR else None
        if covered is not None and covered < 1:
            warnings.append(f"{place}: prompt: {_not_covered(row.prompt, covered)}")
        entries.append(
            Entry(
                manifest=row.file,
                manifest_sha256=row.file_sha256,
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
    holders: dict[str, RowReader] = {}
    ids = []
    for reader in readers:
        row_id = reader.row_id()
        if row_id in holders:
            _blame_twin(reader, row_id, holders[row_id].records.file, holders[row_id].line)
        elif row_id:
            holders[row_id] = reader
        ids.append(row_id)
    uses: Counter[str] = Counter()
    for position, reader in enumerate(readers):
        if not ids[position]:
            slug = row_id = reader.slug()
            while row_id in holders:
                uses[slug] += 1
                row_id = f"{slug}-{uses[slug] + 1}"
            holders[row_id] = reader
            ids[position] = row_id
    return ids


def _blame_twin(reader: RowReader, row_id: str, file: str, line: int) -> None:
    place = _line(file, line, reader.records.file)
    reader.blame("id", f"{row_id!r} is the id of {place} too", "make it unique")


def _line(file: str, line: int, here: str) -> str:
    """A line of a manifest, said in a message about `here`."""
    return f"line {line}" if file == here else f"{file}:{line}"


class _Resolver:
    """Rows to specs under one command line; collects what is wrong."""

    def __init__(
        self,
        prior_revision: Callable[[str], str | None],
        prior: str | None,
        recipe: str | None,
        overrides: Mapping[str, Value],
    ) -> None:
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

    def blame(self, row: Row | None, column: str, problem: str, fix: str) -> None:
        """A problem of a row or, without one, of the command line."""
        file, line = (COMMAND_LINE, None) if row is None else (row.file, row.line)
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
                self.blame(row, setting, *split_error(ValueError(problem)))

    def _revision(self, row: Row, prior: str) -> str:
        blamed, column = (row, "prior") if row.prior else (None, "--prior")
        if not row.prior and (problem := prior_problem(prior)):
            self.blame(blamed, column, *problem)
            return ""
        if prior not in self.revisions:  # finding it may read all weights, or ask the hub
            try:
                self.revisions[prior] = self.prior_revision(prior) or ""
            except ValueError as error:
                self.revisions[prior] = error
        found = self.revisions[prior]
        if isinstance(found, ValueError):
            self.blame(blamed, column, *split_error(found))
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
                self.blame(row, column, *split_error(error))
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
                    self.blame(row, key, *split_error(error, key))
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
