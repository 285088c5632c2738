import dataclasses
import hashlib
import json
import subprocess
import sys

import pytest

from sjc_engine.priors.sources import licence_of
from sjc_engine.recipes import RECIPE_VERSION, Recipe
from sjc_engine.spec import AssetSpec, canonical_json

SPEC = AssetSpec("a duck", "blurry", None, 3, "toybox", "abc", Recipe.for_prior("toybox"))


def test_asset_id_is_the_hash_of_the_canonical_json():
    data = SPEC.to_json()
    del data["recipe"]["name"]
    data["recipe_version"] = RECIPE_VERSION
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert SPEC.asset_id == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_ids_are_the_same_in_another_process():
    code = (
        "from sjc_engine.spec import AssetSpec; from sjc_engine.recipes import Recipe;"
        "s = AssetSpec('a duck', 'blurry', None, 3, 'toybox', 'abc', Recipe.for_prior('toybox'));"
        "print(s.asset_id, s.field_id)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [SPEC.asset_id, SPEC.field_id]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a tank"},
        {"negative_prompt": ""},
        {"image": "00"},
        {"seed": 4},
        {"prior": "owner/name"},
        {"prior_revision": "abd"},
        {"recipe": SPEC.recipe.override({"steps": 801})},
        {"recipe": SPEC.recipe.override({"dtype": "float32"})},
    ],
)
def test_whatever_the_field_depends_on_changes_both_ids(change):
    other = dataclasses.replace(SPEC, **change)
    assert other.asset_id != SPEC.asset_id
    assert other.field_id != SPEC.field_id


@pytest.mark.parametrize("change", [{"max_faces": 5}, {"judge": "owner/clip"}])
def test_mesh_and_judge_settings_reuse_the_field(change):
    other = dataclasses.replace(SPEC, recipe=SPEC.recipe.override(change))
    assert other.asset_id != SPEC.asset_id
    assert other.field_id == SPEC.field_id


def test_the_recipes_name_is_not_part_of_the_asset():
    twins = [Recipe.for_prior("owner/name", name) for name in ("paper", "paper-burger")]
    ids = {dataclasses.replace(SPEC, recipe=recipe).asset_id for recipe in twins}
    assert len(ids) == 1


def test_json_goes_there_and_back():
    assert AssetSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


def test_canonical_json_does_not_depend_on_order_and_refuses_nan():
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"ü","b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_specs_and_recipes_do_without_torch():
    """So that checking a manifest starts at once."""
    code = (
        "import sys, sjc_engine; sjc_engine.Recipe.for_prior('toybox'); sjc_engine.AssetSpec;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_names_its_asset_its_prior_and_the_licence_of_its_weights(tmp_path):
    spec = dataclasses.replace(SPEC, prior="stable-diffusion-v1-5/stable-diffusion-v1-5")
    extras = spec.extras()
    assert (extras["asset_id"], extras["prompt"]) == (spec.asset_id, spec.prompt)
    assert extras["licence"].endswith("creativeml-openrail-m")
    assert licence_of("toybox") == "apache-2.0"
    assert licence_of("kxic/zero123-xl") == "mit"
    assert licence_of("somebody/something") == "unknown"
    card = tmp_path / "README.md"
    card.write_text("---\ntags: [x]\nlicense: cc-by-4.0\n---\n# A model\n")
    assert licence_of(str(tmp_path)) == "cc-by-4.0"
    card.write_text("# A model without a header\nlicense: no\n")
    assert licence_of(str(tmp_path)) == "unknown"
