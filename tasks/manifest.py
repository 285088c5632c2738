"""Manifests: the rows of their files, and the plan of assets that follows from them.

`read_manifest` checks what the rows say by themselves; `resolve` adds the command line and the
priors' presets. `check_manifest` does both and keeps nothing. All report everything that is wrong
at once, and none changes a prompt.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sjc_engine.input_image import NO_SILHOUETTE, mismatches, read_image
from sjc_engine.presets import Value
from sjc_engine.recipes import RECIPE_KEYS, Recipe
from sjc_engine.sources import takes_image
from sjc_engine.spec import AssetSpec
from sjc_engine.toybox.captions import NOUNS, coverage, unknown_words
from tasks.manifest_files import ManifestError, Problem
from tasks.manifest_reading import MOST_PROBLEMS, Manifest, Reading, line_in, read_manifest
from tasks.manifest_rows import (
    WEIGHTS,
    Known,
    Row,
    blamed_keys,
    key_problems,
    prior_problem,
    recipe_problem,
    split_error,
)

__all__ = [
    "Entry", "Manifest", "ManifestError", "Plan", "Problem", "Row", "check_manifest",
    "read_manifest", "resolve",
]  # fmt: skip

DEFAULT_PRIOR = "toybox"
COMMAND_LINE = "command line"
MOST_WARNINGS = 10_000  # that a check tells: nobody reads more


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


@dataclass(frozen=True)
class Checked:
    """What a manifest without mistakes asks for. unsaid: how many more warnings there are."""

    entries: int
    assets: int
    warnings: list[str]
    unsaid: int


def check_manifest(
    manifest: str | Path,
    *,
    prior_revision: Callable[[str], str | None],
    prior: str | None = None,
    recipe: str | None = None,
    overrides: Mapping[str, Value] | None = None,
) -> Checked:
    """The same checks as those of `read_manifest` and `resolve`, without keeping the rows."""
    reading = Reading(manifest)
    resolver = _Resolver(prior_revision, prior, recipe, overrides or {})
    entries, unsaid = 0, 0
    warnings: list[str] = []
    for row in reading:
        entries += 1
        for warning in resolver.entry(row)[1]:
            if len(warnings) < MOST_WARNINGS:
                warnings.append(warning)
            else:
                unsaid += 1
        if len(resolver.problems) > MOST_PROBLEMS:
            break
    if problems := reading.problems + resolver.finish():
        order = {file: place for place, file in enumerate(dict.fromkeys(p.file for p in problems))}
        raise ManifestError(sorted(problems, key=lambda p: (order[p.file], p.line or 0)))
    warnings += resolver.unused()
    return Checked(entries, resolver.assets, list(dict.fromkeys(warnings)), unsaid)


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
    entries: list[Entry] = []
    warnings: list[str] = []
    for row in manifest.rows[:limit]:
        entry, told = resolver.entry(row)
        entries.append(entry)
        warnings += told
    if problems := resolver.finish():
        raise ManifestError(problems)
    return Plan(entries, list(dict.fromkeys(warnings + resolver.unused())))


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
        self.known = Known()
        self._used: set[str] = set()  # options that decide something
        # Entries so far: who asks for what. An asset's id is a number of 64 bits.
        self._first: dict[int, int] = {}  # asset -> index of its first entry
        self._ids: list[str] = []
        self._files: list[str] = []
        self._lines = array("Q")
        for key in overrides.keys() - self.overrides.keys():
            try:
                Recipe().override({key: overrides[key]})
            except ValueError as error:
                self.blame(None, f"--set {key}", *split_error(error))

    def blame(self, row: Row | None, column: str, problem: str, fix: str) -> None:
        """A problem of a row or, without one, of the command line."""
        file, line = (COMMAND_LINE, None) if row is None else (row.file, row.line)
        self.problems.append(Problem(file, line, column, problem, fix))

    @property
    def assets(self) -> int:
        """How many different assets the entries so far ask for."""
        return len(self._first)

    def finish(self) -> list[Problem]:
        """Every problem, when all rows are through."""
        self._blame_unused()
        return list(dict.fromkeys(self.problems))

    def unused(self) -> list[str]:
        """Warnings of options that change nothing, for every row has a word of its own."""
        given = {f"--set {key}" for key in self.overrides}
        given |= {o for o, value in (("--prior", self.prior), ("--recipe", self.recipe)) if value}
        return [
            f"{COMMAND_LINE}: {option}: changes nothing, every row says its own"
            for option in sorted(given - self._used)
            if self._ids
        ]

    def _blame_unused(self) -> None:
        """What the command line says wrongly although every row has a word of its own."""
        blamed = {problem.column for problem in self.problems if problem.file == COMMAND_LINE}
        unused = {f"--set {key}": key_problems(key, value) for key, value in self.overrides.items()}
        if self.prior and (wrong := self._prior_problem(self.prior)):
            unused["--prior"] = [wrong]
        if self.recipe and (wrong := recipe_problem(None, self.recipe)):
            unused["--recipe"] = [wrong]
        for option in (o for o in unused if o not in blamed):
            for problem, fix in unused[option]:
                self.blame(None, option, problem, fix)

    def entry(self, row: Row) -> tuple[Entry, list[str]]:
        """The row's entry, and what to know of it; worth nothing if there are problems."""
        spec = self.spec(row)
        index = len(self._ids)
        first = self._first.setdefault(int(spec.asset_id, 16), index)
        self._ids.append(row.row_id)
        self._files.append(row.file)
        self._lines.append(row.line)
        place = f"{row.file}:{row.line}"
        warnings = []
        if first != index:
            other = line_in(self._files[first], self._lines[first], row.file)
            warnings.append(
                f"{place}: id: {row.row_id} is the same asset as {self._ids[first]} ({other}); "
                "it is made once"
            )
        covered = coverage(row.prompt) if spec.prior == DEFAULT_PRIOR else None
        if covered is not None and covered < 1:
            warnings.append(f"{place}: prompt: {_not_covered(row.prompt, covered)}")
        entry = Entry(
            manifest=row.file,
            manifest_sha256=row.file_sha256,
            line=row.line,
            row_id=row.row_id,
            spec=spec,
            tags=row.tags,
            meta=row.meta,
            duplicate_of=None if first == index else first,
            prior_coverage=covered,
            image_path=row.image_path,
        )
        return entry, warnings

    def spec(self, row: Row) -> AssetSpec:
        """What the row asks for; worth nothing if there are problems."""
        prior = row.prior or (DEFAULT_PRIOR if self.prior is None else self.prior)
        revision = self._revision(row, prior)
        # repr: True, 1 and 1.0 are equal, and are not the same in a recipe.
        asked = row.prior, row.recipe, repr(row.overrides)
        question = *asked, row.image is None, not row.negative_prompt
        before = len(self.problems)
        recipe, wrong = self.known.ask(question, self._settle, row, prior)
        if len(self.problems) > before:
            self.known.forget(question)  # each row has to be blamed
        self._blame_misfits(row, wrong, recipe)
        return AssetSpec(
            prompt=row.prompt,
            negative_prompt=row.negative_prompt,
            image=row.image,
            seed=row.seed,
            prior=prior,
            prior_revision=revision,
            recipe=recipe,
        )

    def _settle(self, row: Row, prior: str) -> tuple[Recipe, list[tuple[str, str]]]:
        """A row's recipe, and what does not go together: prior, picture, settings for pictures."""
        self._used |= {f"--set {key}" for key in self.overrides.keys() - row.overrides.keys()}
        self._used |= {
            o for o, own in (("--prior", row.prior), ("--recipe", row.recipe)) if not own
        }
        recipe, has_image = self._recipe(row, prior), row.image is not None
        if self._prior_problem(prior):
            return recipe, []
        words = row.negative_prompt
        return recipe, mismatches(prior, takes_image(prior), has_image, words, recipe.optimize)

    def _blame_misfits(self, row: Row, wrong: list[tuple[str, str]], recipe: Recipe) -> None:
        path = row.image_path if recipe.optimize.silhouette_weight and not wrong else None
        if path and read_image(path).opacity is None:
            wrong = [("silhouette_weight", NO_SILHOUETTE)]
        for setting, problem in wrong:
            if setting in self.overrides and setting not in row.overrides:
                self.blame(None, f"--set {setting}", *split_error(ValueError(problem)))
            else:
                self.blame(row, setting, *split_error(ValueError(problem)))

    def _prior_problem(self, prior: str) -> tuple[str, str] | None:
        problem: tuple[str, str] | None = self.known.ask(prior, prior_problem, prior)
        return problem

    def _revision(self, row: Row, prior: str) -> str:
        blamed, column = (row, "prior") if row.prior else (None, "--prior")
        if not row.prior and (problem := self._prior_problem(prior)):
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
        if not row.prior and self._prior_problem(prior):  # nobody can tell which presets fit it
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
