import dataclasses
import json
import pickle
import re

import pytest
from tiny_priors import build_latent_prior, build_pixel_prior

from sjc_engine.errors import SettingError
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.recipe_presets import PAPER_EXCEPTIONS, PRESETS, presets_of
from sjc_engine.recipes import (
    PARTS,
    RECIPE_KEYS,
    OptimizeRecipe,
    Recipe,
)

HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_paper_is_what_the_published_commands_say():
    r = Recipe.for_prior(HUB).optimize
    commands = {
        "lr": 0.05,
        "steps": 10_000,
        "guidance_scale": 100.0,
        "emptiness_weight": 10_000.0,
        "emptiness_step": 0.5,
        "emptiness_multiplier": 20.0,
        "emptiness_scale": 10.0,
        "depth_weight": 0.0,
        "depth_loss": "official",
        "overhead_prompt": "official",
        "view_style": "paper",
        "fov_min": 40.0,
        "fov_max": 70.0,
        "radius_spread": 0.0,
        "optimizer": "adamax",
        "noise_samples": 1,
        "sigma_schedule": "random",
        "tick_end": 0,
        "ray_jitter": False,
        "color_init": 1.0,
        "grid_start": 0,
        "plateau_steps": 0,
        "binary_weight": 0.0,
        "tv_weight": 0.0,
        "distortion_weight": 0.0,
        "variance_reduction": True,
        "grid_size": 100,
        "half_length": 1.0,
        "render_size": 64,
        "ray_step": 0.01,
        "radius": 1.5,
        "background": "learned",
        "background_lr": 1e-4,
        "views_per_step": 1,
        "tick_min": 10,
        "tick_max": 969,
    }
    assert {key: getattr(r, key) for key in commands} == commands


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("burger", {}),
        ("tank", {"steps": 20_000}),
        ("ficus", {"depth_weight": 100.0}),
        ("icecream", {"depth_weight": 10.0}),
        ("duck", {"depth_weight": 10.0}),
        ("giraffe", {"depth_weight": 50.0}),
        ("chair", {"steps": 50_000, "lr": 0.01, "emptiness_weight": 7000.0}),
        ("zebra", {"lr": 0.02, "emptiness_weight": 3e4, "variance_reduction": False}),
        ("rocket", {"steps": 30_000, "variance_reduction": False}),
    ],
)
def test_paper_prompts_have_their_exceptions(name, changes):
    recipe = Recipe.for_prior(HUB, f"paper-{name}")
    assert recipe.name == f"paper-{name}"
    published = {"overhead_prompt": "official", "depth_loss": "official"}
    assert recipe.optimize == dataclasses.replace(OptimizeRecipe(), **published, **changes)


@pytest.mark.parametrize("name", ["fast", "draft", "sds"])
def test_other_presets_fix_the_faults_of_the_published_code(name):
    r = Recipe.for_prior(HUB, name).optimize
    assert (r.overhead_prompt, r.depth_loss) == ("elevation", "fixed")
    assert Recipe().name == "defaults"  # which `paper` is not


def test_there_is_a_preset_for_each_published_prompt():
    assert len(PAPER_EXCEPTIONS) == 24
    without = {k for k, v in PAPER_EXCEPTIONS.items() if v.get("variance_reduction") is False}
    assert without == {"obama", "school-bus", "rocket", "zebra", "printer", "zelda"}


@pytest.mark.parametrize("prior", ["toybox", HUB])
def test_every_preset_is_valid_and_draft_is_everywhere(prior):
    names = list(presets_of(prior))
    assert "draft" in names
    assert Recipe.for_prior(prior) == Recipe.for_prior(prior, names[0])
    for name in names:
        assert Recipe.for_prior(prior, name).name == name
    assert Recipe.for_prior(prior, "draft").optimize.steps < Recipe.for_prior(prior).optimize.steps


def test_folders_get_the_presets_of_their_layout(tmp_path):
    pixel = str(build_pixel_prior(tmp_path / "pixel"))
    latent = str(build_latent_prior(tmp_path / "latent"))
    assert presets_of(pixel) == presets_of("toybox")
    assert presets_of(latent) == presets_of(HUB)
    assert Recipe.for_prior(load_prior(pixel)).name == "toybox"
    assert Recipe.for_prior(load_prior(latent)).name == "paper"


def test_a_preset_that_does_not_fit_names_those_that_do():
    with pytest.raises(
        ValueError, match=r"does not fit 'toybox'; use one of toybox, fast, draft, sds$"
    ):
        Recipe.for_prior("toybox", "paper-burger")
    with pytest.raises(ValueError, match=r"^recipe: 'drat' is unknown; did you mean 'draft'\?$"):
        Recipe.for_prior("toybox", "drat")


def test_override_changes_a_copy():
    base = Recipe.for_prior("toybox")
    changed = base.override({"steps": 7, "max_faces": 99, "judge": "owner/name"})
    assert (changed.optimize.steps, changed.mesh.max_faces) == (7, 99)
    assert changed.evaluate.judge == "owner/name"
    assert changed.name == base.name
    assert base == Recipe.for_prior("toybox")
    assert base.override({}) == base


def test_ray_step_follows_grid_size_unless_it_is_set():
    """So that a voxel keeps its number of samples: two along an edge, as published."""
    paper = Recipe.for_prior(HUB)
    fine = paper.override({"grid_size": "128"})
    assert fine.optimize.ray_step == pytest.approx(2 / 128 / 2)
    assert fine.override({"ray_step": 0.01}).optimize.ray_step == 0.01
    both = {"grid_size": 128, "ray_step": 0.01}
    assert paper.override(both) == paper.override(dict(reversed(both.items())))
    assert paper.override(both).optimize.ray_step == 0.01
    assert paper.override({"grid_size": 100}) == paper
    assert Recipe.from_json(fine.to_json()) == fine


def test_a_size_that_is_not_above_the_start_holds_from_the_start():
    """So that `--set grid_size=32` means just that with a preset that grows its grid."""
    toybox = Recipe.for_prior("toybox")
    assert (toybox.optimize.grid_start, toybox.optimize.render_start) == (48, 32)
    for size, start in ((32, 0), (48, 0), (49, 48)):
        assert toybox.override({"grid_size": size}).optimize.grid_start == start
    for size, start in ((16, 0), (32, 0), (33, 32)):
        assert toybox.override({"render_size": size}).optimize.render_start == start
    assert toybox.override({"grid_size": 32, "grid_start": 16}).optimize.grid_start == 16
    assert not toybox.problems({"grid_size": 32, "render_size": "16", "field": "mlp"})
    [error] = toybox.problems({"grid_size": 32, "grid_start": 33})
    assert (error.key, error.fix) == ("grid_start", "use 0, or 4 to grid_size = 32")


def test_a_field_without_a_grid_has_none_that_grows():
    toybox = Recipe.for_prior("toybox")
    assert toybox.override({"field": "mlp"}).optimize.grid_start == 0
    with pytest.raises(SettingError, match="has no grid"):
        toybox.override({"field": "mlp", "grid_start": 16})


@pytest.mark.parametrize("family", PRESETS)
def test_every_preset_sets_a_ray_step_that_any_grid_size_can_scale(family):
    for changes in PRESETS[family].values():
        assert ("grid_size" in changes) == ("ray_step" in changes)
        for size in (4, 512):
            Recipe().override(changes).override({"grid_size": size})


def test_text_is_read_as_the_keys_type():
    texts = {"steps": "800", "lr": " 1e-2 ", "variance_reduction": "False", "background": "white"}
    typed = {"steps": 800.0, "lr": 0.01, "variance_reduction": False, "background": "white"}
    assert Recipe().override(texts) == Recipe().override(typed)
    assert isinstance(Recipe().override(typed).optimize.steps, int)
    assert isinstance(Recipe().override({"lr": 1}).optimize.lr, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"guidence_scale": 1},
            "guidence_scale: is not a recipe key; did you mean 'guidance_scale'?",
        ),
        ({"xyzzy": 1}, "xyzzy: is not a recipe key; see docs/manifests.md for the keys"),
        ({"steps": 0}, "steps: 0 is out of range; use 1 to 1,000,000"),
        ({"steps": 2.5}, "steps: 2.5 is wrong; write a whole number"),
        ({"steps": "many"}, "steps: 'many' is wrong; write a whole number"),
        ({"steps": "inf"}, "write a whole number"),
        ({"steps": True}, "steps: True is wrong; write a whole number"),
        ({"steps": [1]}, "write a whole number"),
        ({"lr": "nan"}, "lr: nan is out of range"),
        ({"lr": float("inf")}, "lr: inf is out of range"),
        ({"variance_reduction": "maybe"}, "write true or false"),
        ({"variance_reduction": 1}, "write true or false"),
        ({"background": "red"}, "background: 'red' is unknown; use one of learned, random, white"),
        ({"background": 3}, "background: 3 is wrong; write text"),
        ({"tick_min": 500, "tick_max": 400}, "tick_min: 500 exceeds tick_max = 400; swap them"),
        ({"tick_min": 500, "tick_end": 400}, "tick_min: 500 exceeds tick_end = 400"),
        ({"fov_min": 60, "fov_max": 50}, "fov_min: 60"),
        ({"grid_start": 200}, "grid_start: 200 is out of range; use 0, or 4 to"),
        ({"render_start": 65}, "render_start: 65 is out of range; use 0, or 8 to render_size = 64"),
    ],
)
def test_bad_values_are_explained(values, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        Recipe().override(values)


def test_all_that_is_wrong_is_found_at_once():
    values = {"steps": 0, "stepz": 1, "lr": "fast", "fov_min": 70, "fov_max": 60, "max_faces": 9}
    errors = Recipe().problems(values)
    assert [(e.key, e.conflicts) for e in errors] == [
        ("stepz", ()), ("lr", ()), ("steps", ()), ("fov_min", ("fov_max",))
    ]  # fmt: skip
    assert errors[3].problem == "70.0 exceeds fov_max = 60.0"
    assert str(pickle.loads(pickle.dumps(errors[0]))) == str(errors[0])
    # What is out of range is not held against its neighbours too.
    assert [e.key for e in Recipe().problems({"fov_min": "180"})] == ["fov_min"]
    assert Recipe().problems({"steps": "7", "tick_end": 0}) == []


def test_keys_are_flat_and_typed():
    assert len(RECIPE_KEYS) == sum(len(dataclasses.fields(part)) for part in PARTS.values())
    assert set(RECIPE_KEYS.values()) == {int, float, bool, str}
    assert RECIPE_KEYS["steps"] is int
    assert RECIPE_KEYS["guidance_scale"] is float
    assert RECIPE_KEYS["variance_reduction"] is bool
    assert RECIPE_KEYS["view_style"] is str


def test_json_goes_there_and_back():
    recipe = Recipe.for_prior("toybox", "draft").override({"lr": 0.1 + 0.2})
    text = json.dumps(recipe.to_json())
    assert Recipe.from_json(json.loads(text)) == recipe
    missing = json.loads(text)
    del missing["optimize"]["lr"]
    with pytest.raises(ValueError, match=r"another version \(keys: lr\)"):
        Recipe.from_json(missing)


def test_how_latents_are_distilled_is_another_recipe_only_where_it_is_chosen():
    recipe = Recipe.for_prior("toybox", "draft")
    assert not {"distill_views", "distill_steps"} & recipe.to_json()["optimize"].keys()
    chosen = recipe.override({"distill_views": "16", "distill_steps": 100})
    assert Recipe.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    assert chosen.hash != recipe.hash == recipe.override({"distill_views": 64}).hash


def test_a_precision_that_is_asked_for_is_another_recipe_and_none_is_what_was_before():
    recipe = Recipe.for_prior("toybox", "draft")
    assert "dtype" not in recipe.to_json()["optimize"]
    assert Recipe.from_json(recipe.to_json()) == recipe
    half = recipe.override({"dtype": "bfloat16"})
    assert Recipe.from_json(json.loads(json.dumps(half.to_json()))) == half
    assert '"dtype":"bfloat16"' in half.canonical_optimize
    assert half.hash != recipe.hash
    with pytest.raises(SettingError, match=r"dtype: 'half' is unknown; use one of auto, float16"):
        recipe.override({"dtype": "half"})
