"""The plan of a manifest, its precedence and warnings, and the manifests that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from task_samples import Write, plan, problems
from tiny_priors import build_pixel_prior

from sjc_engine.errors import SettingError
from sjc_engine.priors.sources import JUDGES
from sjc_engine.recipe_presets import PAPER_EXCEPTIONS
from sjc_engine.recipes import Recipe
from sjc_engine.toybox.captions import NOUNS
from tasks.manifest.resolve import (
    ManifestError,
    read_entries,
    read_manifest,
    recipe_diff,
    resolve,
)

MANIFESTS = Path(__file__).parents[3] / "manifests"


def test_a_row_goes_before_the_command_line_and_that_before_the_preset(write: Write) -> None:
    path = write("prompt,steps,recipe,prior\na,5,,\nb,,draft,\nc,,,owner/name\n")
    entries = plan(
        path, recipe=None, overrides={"steps": "7", "guidance_scale": 3.0}
    ).entries  # fmt: skip
    recipes = [entry.spec.recipe for entry in entries]
    assert [r.optimize.steps for r in recipes] == [5, 7, 7]
    assert [r.optimize.guidance_scale for r in recipes] == [3.0, 3.0, 3.0]
    assert [r.name for r in recipes] == ["toybox", "draft", "paper"]
    assert [r.optimize.grid_size for r in recipes] == [
        Recipe.for_prior(prior, name).optimize.grid_size
        for prior, name in [("toybox", "toybox"), ("toybox", "draft"), ("owner/name", "paper")]
    ]
    other = plan(path, prior="other/prior", recipe="draft").entries
    assert [entry.spec.prior for entry in other] == ["other/prior", "other/prior", "owner/name"]
    assert {entry.spec.recipe.name for entry in other} == {"draft"}


def test_ray_step_follows_grid_size_unless_row_or_command_line_set_it(write: Write) -> None:
    path = write("prompt,grid_size,ray_step\na,128,\nb,128,0.03\nc,,0.03\nd,,\n")

    def steps(overrides: dict[str, Any]) -> list[float]:
        entries = plan(path, overrides=overrides).entries
        return [entry.spec.recipe.optimize.ray_step for entry in entries]

    preset = Recipe.for_prior("toybox").optimize.ray_step
    assert steps({}) == [preset / 2, 0.03, 0.03, preset]
    assert steps({"ray_step": 0.02}) == [0.02, 0.03, 0.03, 0.02]
    assert steps({"grid_size": 32}) == [preset / 2, 0.03, 0.03, preset * 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"grid_size": 96},
        {"grid_size": 96, "ray_step": 2.1 / 96},  # the preset's, as version 0.1 had it
        {"steps": 7, "ray_step": 0.03},
        {},
    ],
)
def test_the_difference_to_a_preset_makes_the_same_recipe(changes: dict[str, Any]) -> None:
    recipe = Recipe.for_prior("toybox").override(changes)
    name, found = recipe_diff("toybox", recipe.to_json())
    assert Recipe.for_prior("toybox", name).override(found) == recipe


def test_the_command_line_is_checked_too(write: Write) -> None:
    path = write("prompt\na\nb\n")
    assert problems(path, recipe="paper") == [
        "command line: --recipe: 'paper' is for stable_diffusion priors and does not fit 'toybox';"
        " use one of toybox, fast, draft, sds"
    ]
    assert problems(path, prior="nonsense")[0].startswith(
        "command line: --prior: 'nonsense' is unknown; use toybox"
    )
    found = problems(path, overrides={"stepz": "5", "steps": "many", "lr": -1.0})
    assert [text.split(": ")[:2] for text in found] == [
        ["command line", "--set stepz"], ["command line", "--set steps"],
        ["command line", "--set lr"],
    ]  # fmt: skip
    assert "did you mean 'steps'" in found[0]


def test_the_command_line_is_checked_where_no_row_needs_it(write: Write) -> None:
    path = write("prompt,prior,recipe,steps\na,toybox,draft,5\n")
    asked = {"prior": "owner/name", "recipe": "paper", "overrides": {"steps": "7"}}
    assert plan(path, **asked).entries[0].spec.recipe.optimize.steps == 5
    found = problems(path, prior="nonsense", recipe="drft", overrides={"steps": "many"})
    assert [text.split(": ")[:2] for text in found] == [
        ["command line", "--set steps"], ["command line", "--prior"], ["command line", "--recipe"],
    ]  # fmt: skip
    assert "did you mean 'draft'" in found[2]


def test_what_the_command_line_says_in_vain_is_a_warning(write: Write) -> None:
    path = write("prompt,prior,recipe,steps\na,toybox,draft,5\nb,toybox,draft,\n")
    asked: dict[str, Any] = {
        "prior": "owner/name", "recipe": "fast", "overrides": {"steps": 7, "lr": 0.1}
    }  # fmt: skip
    said = [text for text in plan(path, **asked).warnings if text.startswith("command line")]
    assert said == [
        "command line: --prior: changes nothing, every row says its own",
        "command line: --recipe: changes nothing, every row says its own",
    ]
    path = write("prompt,prior,recipe\na,owner/name,draft\nb,,\n")
    found = plan(path, prior="other/name", recipe="paper").warnings
    assert not [text for text in found if text.startswith("command line")], "one row needs them"
    path = write("prompt,steps,lr\na duck,5,0.1\na pig,6,0.1\n")
    assert plan(path, overrides={"steps": 7, "lr": 0.2, "tick_min": 3}).warnings == [
        "command line: --set lr: changes nothing, every row says its own",
        "command line: --set steps: changes nothing, every row says its own",
    ]


def test_a_check_tells_of_rows_and_of_what_does_not_go_together_at_once(write: Write) -> None:
    path = write("prompt,seed,tick_min,tick_max,tick_end\na,,980,,0\nb,x,,,\nc,,990,980,0\n")
    with pytest.raises(ManifestError) as caught:
        plan(path, overrides={"steps": "many"})
    places = [(p.file.rpartition("/")[2], p.line, p.column) for p in caught.value.problems]
    assert places == [
        ("m.csv", 2, "tick_min"),
        ("m.csv", 3, "seed"),
        ("m.csv", 4, "tick_min"),
        ("command line", None, "--set steps"),
    ]


def test_a_recipe_in_a_row_may_be_of_any_family(write: Write) -> None:
    path = write("prompt,recipe\na cat,annealed\nb,draft\n")
    entries = plan(path, prior="google/ddpm-cat-256").entries
    assert [entry.spec.recipe.name for entry in entries] == ["annealed", "draft"]
    [problem] = problems(path)
    assert problem.startswith(
        "m.csv:2: recipe: 'annealed' is for unconditional priors and does not fit"
    )
    [problem] = problems(path, prior="nonsense")
    assert problem.startswith("command line: --prior: 'nonsense' is unknown")
    [row, option] = (
        problems(write("prompt,recipe\na,anealed\n"), prior="nonsense"),
        problems(write("prompt\na\n"), prior="nonsense", recipe="anealed"),
    )
    assert row[0] == "m.csv:2: recipe: 'anealed' is unknown; did you mean 'annealed'?"
    assert row[1:] == problems(write("prompt\na\n"), prior="nonsense")
    assert option[1:] == ["command line: --recipe: 'anealed' is unknown; did you mean 'annealed'?"]


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ('{"_class_name":', "model_index.json is not readable; name a diffusers model folder"),
        ("[1]", "model_index.json is not readable"),
        ('{"_class_name": "FluxPipeline"}', "has a 'FluxPipeline'; use one with StableDiffusion"),
        ("{}", "has a 'None'; use one with"),
    ],
)
def test_a_folder_that_no_loader_takes(
    index: str, problem: str, write: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text(index)
    [row] = problems(write(f"prompt,prior\na,{folder}\n"))
    assert row.startswith("m.csv:2: prior: ")
    assert problem in row
    [option] = problems(write("prompt\na\n"), prior=str(folder))
    assert option.startswith("command line: --prior: ")
    assert problem in option


def test_pickled_weights_are_refused_unless_they_are_allowed(write: Write, tmp_path: Path) -> None:
    prior = build_pixel_prior(tmp_path / "prior")
    for path in sorted(prior.rglob("*.safetensors")):
        name = path.stem if path.stem.startswith("diffusion") else f"pytorch_{path.stem}"
        torch.save(load_file(path), path.with_name(f"{name}.bin"))
        path.unlink()
    row, option = write(f"prompt,prior\na duck,{prior}\n", "row.csv"), write("prompt\na duck\n")
    [of_row], [of_option] = problems(row), problems(option, prior=str(prior))
    assert of_row.startswith("row.csv:2: prior: ")
    assert of_option.startswith("command line: --prior: ")
    assert "--allow-pickle" in of_row
    assert "--allow-pickle" in of_option
    found = read_manifest(option)
    asked: dict[str, Any] = {"prior": str(prior), "prior_revision": lambda _: "r"}
    assert len(resolve(found.rows, **asked).problems) == 1
    assert resolve(found.rows, **asked, allow_pickle=True).problems == []
    assert plan(row, allow_pickle=True).entries[0].spec.prior == str(prior)


def test_a_judge_is_named_where_it_is_asked_for(write: Write, tmp_path: Path) -> None:
    whole = JUDGES["toybox"]
    path = write(f"prompt,judge\na,nosuch\nb,{whole}\nc,owner/name\nd,\ne,{tmp_path}\n")
    row, empty = problems(path)
    assert "m.csv:6: judge: " in empty
    assert "its model: config.json is missing; download it again" in empty
    assert row == (
        "m.csv:2: judge: 'nosuch' is unknown; use toybox, an existing folder, or owner/name on"
        " the hub"
    )
    path = write("prompt,judge\na,owner/name\nb,\nc,\n")
    [option] = problems(path, overrides={"judge": "nosuch"})
    assert option.startswith("command line: --set judge: 'nosuch' is unknown")


def test_ranges_between_keys_are_judged_with_the_preset(write: Write) -> None:
    path = write("prompt,tick_min,tick_max,tick_end\na,980,,0\nb,980,999,0\nc,990,980,0\n")
    assert [text.split(": ")[:2] for text in problems(path)] == [
        ["m.csv:2", "tick_min"], ["m.csv:4", "tick_min"],
    ]  # fmt: skip
    assert [text.split(": ")[:2] for text in problems(path, overrides={"tick_max": 985})] == [
        ["m.csv:4", "tick_min"]
    ]


def test_a_prior_that_cannot_be_found_is_named_where_it_is_asked_for(write: Write) -> None:
    asked: list[str] = []

    def revision(prior: str) -> str:
        asked.append(prior)
        if prior == "toybox":
            return "r"
        raise SettingError("prior", f"{prior!r} is not available from the hub", "try again")

    path = write("prompt,prior\na,\nb,owner/name\nc,owner/name\n")
    with pytest.raises(ManifestError) as caught:
        read_entries(path, prior_revision=revision)
    lines = str(caught.value).split("\n")
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{path}:3", "prior"], [f"{path}:4", "prior"],
    ]  # fmt: skip
    assert asked == ["toybox", "owner/name"], "each prior is looked up once"


def test_duplicates_are_one_asset_and_a_warning(write: Write) -> None:
    path = write("prompt,id,tags\na duck,a,x\na pig,b,\na duck,c,y\na duck,d,\n")
    found = plan(path)
    assert [entry.duplicate_of for entry in found.entries] == [None, None, 0, 0]
    assert found.entries[2].spec == found.entries[0].spec
    assert found.warnings == [
        f"{path}:4: id: c is the same asset as a (line 2); it is made once",
        f"{path}:5: id: d is the same asset as a (line 2); it is made once",
    ]


def test_prompts_outside_the_vocabulary_are_warned_of(write: Write) -> None:
    path = write(
        "prompt,seed,prior\na duck with a hat on a hat,0-1,\na zebra,,\na zebra,,owner/name\n"
    )
    found = plan(path)
    assert [entry.prior_coverage for entry in found.entries] == pytest.approx(
        [1 / 3, 1 / 3, 0.0, None]
    )
    assert len(found.warnings) == 3, "one warning for each row, one for the third's prior"
    assert "does not know 'hat'; it" in found.warnings[0]
    assert "has no such object (burger, duck" in found.warnings[1]
    assert found.warnings[2] == (
        "prior 'owner/name' is not in this machine's cache; by its name it is taken for a"
        " StableDiffusionPipeline"
    )


def test_nothing_of_an_asset_depends_on_its_neighbours(write: Write) -> None:
    alone = plan(write("prompt\na pig\n")).entries[0].spec
    others = plan(write("id,prompt,tags\nx,a duck,t\ny,a pig,u\nz,a pig,\n")).entries
    assert others[1].spec == alone
    assert others[1].spec.asset_id == alone.asset_id


# --- what is shipped ---------------------------------------------------------------------------


def test_the_papers_six() -> None:
    found = plan(MANIFESTS / "paper.csv")
    assert found.warnings == []
    assert {entry.row_id: entry.spec.prompt for entry in found.entries} == {
        "burger": "A high quality photo of a delicious burger",
        "duck": "a DSLR photo of a yellow duck",
        "ficus": "A ficus planted in a pot",
        "tank": "A product photo of a toy tank",
        "icecream": "A high quality photo of a chocolate icecream cone",
        "giraffe": "A wide angle zoomed out photo of a giraffe",
    }


def test_the_24_of_the_official_code_have_their_recipes() -> None:
    """The prior is the command line's: whichever folder or hub id has the weights."""
    entries = plan(
        MANIFESTS / "paper24.csv", prior="stable-diffusion-v1-5/stable-diffusion-v1-5"
    ).entries
    assert len(entries) == 24
    assert {entry.row_id for entry in entries} == set(PAPER_EXCEPTIONS)
    assert all(entry.spec.recipe.name == f"paper-{entry.row_id}" for entry in entries)


def test_the_toybox_manifest_stays_in_the_vocabulary() -> None:
    found = plan(MANIFESTS / "toybox.csv")
    assert found.warnings == []
    assert len(found.entries) >= 24
    assert {entry.meta["category"] for entry in found.entries} <= set(NOUNS)
