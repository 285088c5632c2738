"""LoRA: W + weight * alpha / rank * up @ down, on every kind of layer, and nowhere else."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import RANK, lora_matrices, write_lora, write_single_file
from tiny_priors import build_ddpm_prior, build_latent_prior

from sjc_engine.errors import SettingError
from sjc_engine.optimization.scene import Scene
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.priors.loading import lora
from sjc_engine.priors.sources import loras_error
from sjc_engine.recipes import OptimizeRecipe, Recipe
from sjc_engine.spec import AssetSpec, prior_key


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_latent_prior(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def matrices(base):
    return lora_matrices(base)


@pytest.fixture(scope="module")
def plain(base):
    return load_prior(str(base))


def weights_of(prior):
    parts = {"unet": prior._unet.network, "text_encoder": prior._text_encoder}
    return {
        (component, key): value
        for component, model in parts.items()
        for key, value in model.state_dict().items()
    }


def wanted(plain, matrices, factor):
    found = {key: value.clone() for key, value in weights_of(plain).items()}
    for (component, layer), (up, down) in matrices.items():
        weight = found[component, f"{layer}.weight"]
        rows = up.reshape(len(up), RANK)
        weight += factor * torch.einsum("or,r...->o...", rows, down)
    return found


def assert_weights(prior, expected):
    found = weights_of(prior)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=str(key))


@pytest.mark.parametrize("dialect", ["kohya", "peft", "old"])
def test_what_is_added_is_the_product_of_its_matrices(base, plain, matrices, tmp_path, dialect):
    alpha = 0.5 if dialect == "kohya" else None
    path = write_lora(tmp_path / "x.safetensors", matrices, dialect, alpha)
    prior = load_prior(str(base), loras=f"{path}:0.8")
    assert_weights(prior, wanted(plain, matrices, 0.8 * (alpha / RANK if alpha else 1)))
    x, sigma = torch.randn(1, 4, 8, 8), torch.ones(1)
    answers = [p.denoise(x, sigma, p.condition(["a duck"])) for p in (plain, prior)]
    assert not torch.allclose(*answers, atol=1e-3)


def test_alpha_may_be_in_the_metadata_that_diffusers_writes(base, plain, matrices, tmp_path):
    path = write_lora(tmp_path / "x.safetensors", matrices, "peft")
    settings = {"unet.lora_alpha": 6, "unet.r": RANK, "text_encoder.lora_alpha": 6}
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(settings)})
    assert_weights(load_prior(str(base), loras=path), wanted(plain, matrices, 6 / RANK))


def test_several_add_up_and_none_of_weight_0(base, plain, matrices, tmp_path):
    one = write_lora(tmp_path / "one.safetensors", matrices)
    two = write_lora(tmp_path / "two.safetensors", matrices, "peft")
    prior = load_prior(str(base), loras=f"{one}:0.5, {two}:-0.25, {one}:0")
    assert_weights(prior, wanted(plain, matrices, 0.25))
    nothing = load_prior(str(base), loras=f"{one}:0")
    assert_weights(nothing, weights_of(plain))
    assert nothing.loras == lora.NONE


def test_half_precision_is_rounded_once(base, plain, matrices, tmp_path):
    path = write_lora(tmp_path / "x.safetensors", matrices)
    prior = load_prior(str(base), dtype="bfloat16", loras=path)
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    exact = wanted(plain, matrices, 1.0)["unet", key]
    found = prior._unet.network.state_dict()[key]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-7, atol=2**-7)


def test_a_single_file_takes_them_too(base, plain, matrices, tmp_path):
    path = write_lora(tmp_path / "x.safetensors", matrices)
    single = write_single_file(base, tmp_path / "single.safetensors")
    prior = load_prior(f"{single}@{base}", loras=path)
    assert_weights(prior, wanted(plain, matrices, 1.0))


def change(path, rename, value=None):
    weights = load_file(path)
    save_file({rename(k): v if value is None else value(v) for k, v in weights.items()}, path)


@pytest.mark.parametrize(
    ("rename", "key", "problem"),
    [
        (lambda k: k.replace("mid_block", "mid_block_7"), "lora_unet_mid_block_7_", "has no place"),
        (lambda k: k.replace("lora_te_", "lora_te2_"), "lora_te2_", "has no place"),
        (lambda k: k.replace("lora_down.weight", "hada_w1_a"), "hada_w1_a", "is not of a plain"),
        (lambda k: k.replace("proj_in.lora_up", "proj_out.lora_up"), "proj", "without its other"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_first_key(
    base, matrices, tmp_path, rename, key, problem
):
    path = write_lora(tmp_path / "x.safetensors", matrices)
    change(path, rename)
    error = loras_error(path, str(base))
    assert error.key == "loras"
    assert key in error.problem
    assert problem in error.problem
    with pytest.raises(SettingError, match=problem):
        load_prior(str(base), loras=path)


def test_matrices_of_another_model_are_refused(base, matrices, tmp_path):
    path = write_lora(tmp_path / "x.safetensors", matrices)
    change(path, lambda key: key, lambda v: torch.cat([v, v], dim=1) if len(v) == RANK else v)
    error = loras_error(path, str(base))
    assert "does not fit a weight of shape" in error.problem
    text = {key: value for key, value in matrices.items() if key[0] == "text_encoder"}
    path = write_lora(tmp_path / "text.safetensors", text)
    wordless = build_ddpm_prior(tmp_path / "ddpm")
    assert "has no place in its text_encoder" in loras_error(path, str(wordless)).problem


def test_files_that_are_no_lora(base, tmp_path):
    path = tmp_path / "x.safetensors"
    assert "cannot be read" in loras_error(str(path), str(base)).problem
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "is a git-lfs pointer" in loras_error(str(path), str(base)).problem
    single = write_single_file(base, tmp_path / "single.safetensors")
    assert "is not of a plain LoRA" in loras_error(single, str(base)).problem


@pytest.mark.parametrize(
    "text", ["x.pt:0.8", "x.safetensors:much", "x.safetensors:1e9", "x.safetensors:nan", ", ,"]
)
def test_what_a_recipe_cannot_say(text):
    with pytest.raises(SettingError, match=r"loras: .* is wrong; write FILE\.safetensors:WEIGHT"):
        OptimizeRecipe(loras=text)


def spec_of(loras):
    return AssetSpec("a", "", None, 0, "toybox", "r", Recipe().override({"loras": loras}))


def test_an_asset_is_known_by_contents_and_weights(matrices, tmp_path):
    path = write_lora(tmp_path / "x.safetensors", matrices)
    copy = shutil.copy(path, tmp_path / "copy.safetensors")
    other = write_lora(tmp_path / "other.safetensors", matrices, alpha=3.0)
    texts = [path, f"{copy}:1.0", f"{path}:0.5", other, f"{path}:0", "none"]
    ids = [spec_of(lora.pin(text)).asset_id for text in texts]
    same, moved, half, another, nothing, none = ids
    assert same == moved
    assert len({same, half, another, none}) == 4
    assert nothing == none == spec_of("none").asset_id
    assert lora.pin(lora.pin(path)) == lora.pin(path)


def test_a_file_that_changed_since_is_refused(base, matrices, tmp_path):
    path = write_lora(tmp_path / "x.safetensors", matrices)
    pinned = lora.pin(path)
    write_lora(tmp_path / "x.safetensors", matrices, alpha=3.0)
    with pytest.raises(SettingError, match="is not the file that it was"):
        load_prior(str(base), loras=pinned)


def test_an_engine_loads_its_prior_again_for_others(matrices, tmp_path):
    path = write_lora(tmp_path / "x.safetensors", matrices)
    keys = {prior_key(spec_of(text).to_json()) for text in (path, f"{path}:0.5", "none")}
    assert len(keys) == 3
    assert prior_key({"prior": "p", "prior_revision": "r", "recipe": {}})[-1] == "none"


def test_a_scene_wants_the_prior_of_its_recipe(base, plain, matrices, tmp_path):
    path = write_lora(tmp_path / "x.safetensors", matrices)
    recipe = Recipe().override({"loras": path})
    with pytest.raises(SettingError, match=r"loras: .* use load_prior\(\.\.\., loras="):
        Scene("a duck", "", 0, recipe, plain)
