"""From a manifest to the assets it asks for: its rows under a command line and the priors' presets.

`read_entries` is the whole way, for `sjc check`, a dry run and a run. Every problem is reported at
once, and no prompt is ever changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sjc_engine.errors import SettingError
from sjc_engine.priors.conditioning import group_of, mismatches, no_silhouette
from sjc_engine.priors.image_pose import pose_guess
from sjc_engine.priors.loading.lora import NONE, pin
from sjc_engine.priors.sources import assumption, loras_error, split_revision, takes_image
from sjc_engine.priors.tokens import text_limit
from sjc_engine.recipe_presets import Value
from sjc_engine.recipes import PARTS, RECIPE_KEYS, Recipe
from sjc_engine.spec import AssetSpec
from sjc_engine.toybox.captions import NOUNS, coverage, unknown_words
from tasks.manifest.entries import Memo, Row, key_errors, preset_error
from tasks.manifest.formats import ManifestError, Problem
from tasks.manifest.reading import Manifest, line_in, read_manifest, read_rows
from tasks.manifest.remarks import DUPLICATES, IMAGES, STRANGE, UNKNOWN, Reading, Remarks

__all__ = [
    "Entry", "Manifest", "ManifestError", "Problem", "Resolved", "Row", "read_entries",
    "read_manifest", "recipe_diff", "resolve",
]  # fmt: skip

DEFAULT_PRIOR = "toybox"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Entry:
    """One manifest row and the asset that it points at.

    manifest, manifest_sha256: the row's own file; `line` is the line in it.
    duplicate_of: the index of the first entry with the same asset, on later ones.
    prior_coverage: in [0, 1], for the embedded prior alone; words that it does not read are not
    covered.
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


# What an entry takes from its row as it is.
FROM_ROW = ("manifest", "manifest_sha256", "line", "row_id", "tags", "meta")


@dataclass(frozen=True)
class Resolved:
    """What rows ask for. entries: in their order, meaningless if there are problems."""

    entries: list[Entry]
    problems: list[Problem]
    warnings: list[str]
    guesses: list[str]  # of the warnings, those of what is taken for granted of priors

    @property
    def assets(self) -> int:
        """How many different assets the entries ask for."""
        return sum(entry.duplicate_of is None for entry in self.entries)


def read_entries(
    manifest: str | Path,
    *,
    prior_revision: Callable[[str], str | None],
    prior: str | None = None,
    recipe: str | None = None,
    overrides: Mapping[str, Value] | None = None,
    allow_pickle: bool = False,
) -> tuple[Manifest, Resolved]:
    """The manifest and what its rows ask for, as `resolve` finds out.

    Raises `ManifestError` with every problem of the rows and of the options.
    """
    found = read_rows(manifest, allow_pickle=allow_pickle)
    resolved = resolve(
        found.rows,
        prior_revision=prior_revision,
        prior=prior,
        recipe=recipe,
        overrides=overrides,
        allow_pickle=allow_pickle,
    )
    if problems := found.problems + resolved.problems:
        order = {file: place for place, file in enumerate(dict.fromkeys(p.file for p in problems))}
        raise ManifestError(sorted(problems, key=lambda p: (order[p.file], p.line or 0)))
    return found, resolved


def resolve(
    rows: Sequence[Row],
    *,
    prior_revision: Callable[[str], str | None],
    prior: str | None = None,
    recipe: str | None = None,
    overrides: Mapping[str, Value] | None = None,
    allow_pickle: bool = False,
) -> Resolved:
    """The assets that rows ask for. A row's value wins, then the command line's, then the preset's.

    `prior`, `recipe`, `overrides` and `allow_pickle` are the command line's. `prior_revision`
    returns a prior's revision, or raises SettingError.
    """
    memo = Memo(allow_pickle=allow_pickle)
    resolver = _Resolver(prior_revision, prior, recipe, overrides or {}, memo)
    entries: list[Entry] = []
    first: dict[str, int] = {}
    remarks = Remarks()
    for row in rows:
        spec = resolver.spec(row)
        reading = resolver.reading(spec)
        remarks.add_entry(row.manifest, row.line, row.row_id, spec, reading)
        recentered = spec.recipe.optimize.image_recenter
        seen = row.image.remarks(recentered) if row.image else ()
        for text in seen:
            remarks.add(row.manifest, row.line, "image", IMAGES, text, about=text)
        index = first.setdefault(spec.asset_id, len(entries))
        covered = None
        if spec.prior == DEFAULT_PRIOR:
            covered = coverage(spec.prompt, reading.prompt_end)
        entries.append(
            Entry(
                **{key: getattr(row, key) for key in FROM_ROW},
                spec=spec,
                duplicate_of=None if index == len(entries) else index,
                prior_coverage=covered,
                image_path=row.image_path,
            )
        )
    resolver.check_unused()
    for entry in entries:
        _add_remarks(remarks, entry, entries)
    warnings = remarks.texts() + (resolver.unused_options(rows) if rows else [])
    priors = dict.fromkeys((entry.spec.prior, entry.spec.prior_revision) for entry in entries)
    guesses = [warning for prior in priors if (warning := assumption(*prior))] + resolver.guesses
    warnings = list(dict.fromkeys([*warnings, *guesses]))
    return Resolved(entries, list(dict.fromkeys(resolver.problems)), warnings, guesses)


def _add_remarks(remarks: Remarks, entry: Entry, entries: list[Entry]) -> None:
    """What to know of an entry before it runs. Seeds of one row have the same prompt."""
    place = entry.manifest, entry.line
    if entry.duplicate_of is not None:
        first = entries[entry.duplicate_of]
        other = line_in(first.manifest, first.line, entry.manifest)
        text = f"{entry.row_id} is the same asset as {first.row_id} ({other}); it is made once"
        remarks.add(*place, "id", DUPLICATES, text, row_id=entry.row_id)
    prompt, covered = entry.spec.prompt, entry.prior_coverage
    if covered == 0 and not coverage(prompt):  # else what it knows is cut, which is said elsewhere
        text = (
            f"the prior {DEFAULT_PRIOR!r} has no such object ({', '.join(NOUNS)}); expect nonsense,"
            " or use another prior"
        )
        remarks.add(*place, "prompt", STRANGE, text)
    elif covered is not None and covered < 1 and (unknown := unknown_words(prompt)):
        words = ", ".join(map(repr, dict.fromkeys(unknown)))
        text = f"the prior {DEFAULT_PRIOR!r} does not know {words}; it will leave that out"
        remarks.add(*place, "prompt", UNKNOWN, text)


class _Resolver:
    """Rows to specs under one command line; collects what is wrong."""

    def __init__(
        self,
        prior_revision: Callable[[str], str | None],
        prior: str | None,
        recipe: str | None,
        overrides: Mapping[str, Value],
        memo: Memo,
    ) -> None:
        self.prior_revision = prior_revision
        self.prior, self.recipe = prior, recipe
        self.overrides = {k: v for k, v in overrides.items() if k in RECIPE_KEYS}
        self.problems: list[Problem] = []
        self.guesses: list[str] = []
        self.memo = memo
        unknown = {k: v for k, v in overrides.items() if k not in RECIPE_KEYS}
        for error in Recipe().problems(unknown):
            self._add_problem(None, f"--set {error.key}", error)

    def spec(self, row: Row) -> AssetSpec:
        """What the row asks for, meaningless if there are problems."""
        prior = row.prior or (DEFAULT_PRIOR if self.prior is None else self.prior)
        # repr: True, 1 and 1.0 are equal, and are not the same in a recipe.
        question = (
            row.prior, row.recipe, repr(row.overrides), row.image is None, not row.negative_prompt
        )  # fmt: skip
        revision, wrong = self.memo.get(("revision", prior), self._revision, prior)
        recipe, found = self.memo.get(question, self._settle, row, prior)
        errors = [*wrong, *found]
        if row.image and not row.image.silhouette and takes_image(prior):
            errors += no_silhouette(recipe.optimize)
        for error in errors:
            self._add_problem(*self._origin(row, error), error)
        return AssetSpec(
            prompt=row.prompt,
            negative_prompt=row.negative_prompt,
            image=row.image.sha256 if row.image else None,
            seed=row.seed,
            prior=split_revision(prior)[0],
            prior_revision=revision,
            recipe=recipe,
        )

    def reading(self, spec: AssetSpec) -> Reading:
        """How far the prior reads the spec's prompts."""
        prior, revision = spec.prior, spec.prior_revision
        limit = self.memo.get(("limit", prior, revision), text_limit, prior, revision)
        if limit is None:
            return Reading(None)
        return Reading(
            limit.tokens,
            limit.prompt_end(spec.prompt, spec.recipe.optimize.view_style),
            limit.read_end(spec.negative_prompt),
        )

    def unused_options(self, rows: Sequence[Row]) -> list[str]:
        """Warnings of options without effect, since every row has its own value."""
        unused = ["--prior"] if self.prior and all(row.prior for row in rows) else []
        unused += ["--recipe"] if self.recipe and all(row.recipe for row in rows) else []
        unused += [
            f"--set {key}"
            for key in sorted(self.overrides)
            if all(key in row.overrides for row in rows)
        ]
        return [
            f"{COMMAND_LINE}: {option}: changes nothing, every row says its own"
            for option in unused
        ]

    def check_unused(self) -> None:
        """Adds the problems of options that no row needed."""
        reported = {problem.column for problem in self.problems if problem.file == COMMAND_LINE}
        found = {
            f"--set {key}": key_errors(key, value, self.memo)
            for key, value in self.overrides.items()
        }
        if self.prior and (error := self.memo.prior_error(self.prior)):
            found["--prior"] = [error]
        if self.recipe and (error := preset_error(None, self.recipe)):
            found["--recipe"] = [error]
        for option in (option for option in found if option not in reported):
            for error in found[option]:
                self._add_problem(None, option, error)

    def _add_problem(self, row: Row | None, column: str, error: SettingError) -> None:
        """A problem of a row or, without one, of the command line."""
        file, line = (COMMAND_LINE, None) if row is None else (row.manifest, row.line or None)
        self.problems.append(Problem(file, line, column, error.problem, error.fix))

    def _origin(self, row: Row, error: SettingError) -> tuple[Row | None, str]:
        """Where a value comes from: a column of the row, or an option of the command line."""
        key = error.key
        if key == "prior" and not row.prior:
            return None, "--prior"
        if key == "recipe" and not row.recipe:
            return (row, "prior") if row.prior else (None, "--recipe")
        # Of values that conflict, one that the user wrote, and the row's before the command line's.
        keys = (key, *error.conflicts)
        if own := [key for key in keys if key in row.overrides]:
            return row, own[0]
        if given := [key for key in keys if key in self.overrides]:
            return None, f"--set {given[0]}"
        return row, key

    def _revision(self, prior: str) -> tuple[str, list[SettingError]]:
        """The prior's revision, "" with what is wrong; it may read all weights, or ask the hub."""
        if error := self.memo.prior_error(prior):
            return "", [error]
        try:
            return self.prior_revision(prior) or "", []
        except SettingError as error:
            return "", [error]

    def _settle(self, row: Row, prior: str) -> tuple[Recipe, list[SettingError]]:
        """A row's recipe, and what does not go together: prior, image, settings for images."""
        name = row.recipe or self.recipe
        if self.memo.prior_error(prior):  # which presets fit it is unknown
            wrong = preset_error(None, name) if name and not row.recipe else None
            return Recipe(), [wrong] if wrong else []
        try:
            recipe, errors = self._override(Recipe.for_prior(prior, name), row)
        except SettingError as unfit:
            recipe, errors = Recipe(), [unfit]
        if recipe.optimize.loras != NONE:
            recipe, unfit_loras = self._with_loras(recipe, prior)
            errors += unfit_loras
        starts_from_image = takes_image(prior)
        says_pose = "image_pose" in self.overrides.keys() | row.overrides.keys()
        if starts_from_image and name in (None, "draft") and not says_pose:
            self.guesses += pose_guess(prior)
        found = mismatches(
            prior,
            starts_from_image,
            group_of(prior),
            row.image is not None,
            row.negative_prompt,
            recipe.optimize,
        )
        return recipe, [*errors, *found]

    def _with_loras(self, recipe: Recipe, prior: str) -> tuple[Recipe, list[SettingError]]:
        """The recipe with the digests of its LoRA, or what keeps them from this prior."""
        loras = recipe.optimize.loras
        question = ("loras", prior, loras)
        wrong = self.memo.get(question, loras_error, loras, prior, self.memo.allow_pickle)
        if wrong:
            return recipe, [wrong]
        return recipe.override({"loras": pin(loras)}), []

    def _override(self, recipe: Recipe, row: Row) -> tuple[Recipe, list[SettingError]]:
        """The preset with those values of the command line and the row that are right."""
        values = {**self.overrides, **row.overrides}
        errors = wrong = recipe.problems(values)
        while wrong:
            keys = {key for error in wrong for key in (error.key, *error.conflicts)}
            values = {key: value for key, value in values.items() if key not in keys}
            wrong = recipe.problems(values)
        return recipe.override(values), errors


def recipe_diff(prior: str, recipe: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The inverse of `resolve`: a preset's name, and the keys of a recipe that differ from it.

    The preset is today's; one that an older version had is replaced by the prior's default. A
    grid_size comes with its ray_step, which would follow it otherwise.
    """
    name, values = _preset(prior, recipe["name"])
    changes = {
        key: value
        for part in PARTS
        for key, value in recipe[part].items()
        if key not in values[part] or value != values[part][key]
    }
    if "grid_size" in changes:
        changes["ray_step"] = recipe["optimize"]["ray_step"]
    return name, changes


@lru_cache
def _preset(prior: str, name: str) -> tuple[str, dict[str, Any]]:
    try:
        preset = Recipe.for_prior(prior, name)
    except ValueError:
        preset = Recipe.for_prior(prior)
    return preset.name, preset.to_json()
