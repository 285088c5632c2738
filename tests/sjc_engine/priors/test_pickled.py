"""Weights that torch.save wrote: read when it is allowed, and never run."""

import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_clip import save_tiny_clip
from tiny_priors import build_latent_prior

from sjc_engine.errors import PriorError
from sjc_engine.evaluation.clip import load_judge
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.priors.loading.model_check import check_named
from sjc_engine.priors.loading.model_files import Part, parts_of
from sjc_engine.priors.sources import find_prior, prior_error

UNET = "unet/diffusion_pytorch_model"
TEXT = "text_encoder/pytorch_model"


class Trap:
    """A pickle of it makes a folder wherever it is read by an unrestricted unpickler."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickle_weights(folder, **options):
    """Puts `.bin` files, as torch.save writes them, in the place of all safetensors."""
    for path in sorted(folder.rglob("*.safetensors")):
        stem = path.stem if path.stem.startswith("diffusion") else f"pytorch_{path.stem}"
        torch.save(load_file(path), path.with_name(f"{stem}.bin"), **options)
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    build_latent_prior(folder / "safe")
    pickle_weights(shutil.copytree(folder / "safe", folder / "pickled"))
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made / "pickled", tmp_path / "copy")


def answer(prior):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = prior.condition(["a duck"])
    return prior.denoise(x, torch.ones(1), cond), prior.decode(x)


def test_they_are_read_when_it_is_allowed(made):
    pickled = load_prior(str(made / "pickled"), allow_pickle=True)
    safe = load_prior(str(made / "safe"), allow_pickle=True)
    for found, wanted in zip(answer(pickled), answer(safe), strict=True):
        torch.testing.assert_close(found, wanted)
    # Of safetensors the permission changes nothing, and what is read is in the revision.
    assert safe.revision == find_prior(str(made / "safe")).revision != pickled.revision


def test_else_the_error_says_what_there_is_and_what_to_do(made):
    error = prior_error(str(made / "pickled"))
    assert (error.component, error.file) == ("unet", "diffusion_pytorch_model.bin")
    assert "is pickled, and there are no safetensors beside it" in error.problem
    for way in ("--allow-pickle", "owner/name@", "convert it"):
        assert way in error.fix
    with pytest.raises(PriorError, match="is pickled"):
        load_prior(str(made / "pickled"))


def test_weights_are_part_of_the_revision(copy):
    before = find_prior(str(copy), allow_pickle=True).revision
    weights = torch.load(copy / f"{UNET}.bin", weights_only=True)
    weights["conv_in.bias"] += 1
    torch.save(weights, copy / f"{UNET}.bin")
    assert find_prior(str(copy), allow_pickle=True).revision != before


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("file", [UNET, TEXT])  # diffusers' loader, and transformers'
def test_what_they_would_run_does_not_run(copy, tmp_path, file, zipped):
    path, mark = copy / f"{file}.bin", tmp_path / "it-ran"
    weights = torch.load(path, weights_only=True)
    first = next(iter(weights))
    weights[first] = Trap(mark)
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PriorError, match="does not load") as caught:
        load_prior(str(copy), allow_pickle=True)
    assert caught.value.component == file.partition("/")[0]
    assert not mark.exists()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists()  # it would have run


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (b"PK\x03\x04 and no end", "is damaged"),
        (b"<html>", "is damaged"),
    ],
)
def test_what_a_broken_download_leaves_is_found_without_loading(copy, broken, reason):
    (copy / f"{TEXT}.bin").write_bytes(broken)
    error = prior_error(str(copy), allow_pickle=True)
    assert (error.component, error.file) == ("text_encoder", "pytorch_model.bin")
    assert error.reason.startswith(reason)


def test_the_format_of_before_2020_is_read(made, tmp_path):
    folder = shutil.copytree(made / "safe", tmp_path / "old")
    pickle_weights(folder, _use_new_zipfile_serialization=False)
    old = load_prior(str(folder), allow_pickle=True)
    torch.testing.assert_close(answer(old)[0], answer(load_prior(str(made / "safe")))[0])


def test_a_missing_weight_is_found_while_loading(copy):
    weights = torch.load(copy / f"{UNET}.bin", weights_only=True)
    del weights["conv_in.bias"]
    torch.save(weights, copy / f"{UNET}.bin")
    with pytest.raises(PriorError, match=r"does not fill 1 weights .*conv_in\.bias"):
        load_prior(str(copy), allow_pickle=True)


def test_a_judge_s_too(tmp_path):
    save_tiny_clip(tmp_path)
    wanted = load_judge(str(tmp_path)).text_features(["a duck"])
    pickle_weights(tmp_path)
    with pytest.raises(PriorError, match=r"pytorch_model\.bin"):
        load_judge(str(tmp_path))
    judge = load_judge(str(tmp_path), allow_pickle=True)
    torch.testing.assert_close(judge.text_features(["a duck"]), wanted)  # memory is aligned anew


def test_safetensors_come_first_and_pickles_may_be_in_parts():
    names = {f"unet/diffusion_pytorch_model.{kind}" for kind in ("bin", "fp16.safetensors")}
    part = Part("unet", "network", pickled=True)
    assert part.weights(names) == ("fp16", ["unet/diffusion_pytorch_model.fp16.safetensors"])
    parts = {
        "pytorch_model.bin.index.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    }
    model = Part("model", "encoder", pickled=True)
    assert model.weights(parts) == (
        None, ["pytorch_model.bin.index.json", *sorted(parts)[:2]],
    )  # fmt: skip
    assert Part("model", "encoder").weights(parts) == (None, [])


def test_of_the_hub_s_the_names_are_enough():
    """As google/ddpm-bedroom-256 has them: all in its root."""
    names = {"model_index.json", "config.json", "scheduler_config.json", f"{UNET[5:]}.bin"}
    parts = parts_of("unconditional", {})
    with pytest.raises(PriorError) as caught:
        check_named("google/ddpm-bedroom-256", parts, names)
    assert "(diffusion_pytorch_model.bin)" in caught.value.problem
    assert "--allow-pickle" in caught.value.fix
    check_named("google/ddpm-bedroom-256", parts_of("unconditional", {}, allow_pickle=True), names)
