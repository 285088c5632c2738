import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import GatedRepoError
from tiny_priors import build_latent_prior, build_pixel_prior
from transformers import CLIPTextModel, CLIPTokenizer

from sjc_engine.errors import SettingError
from sjc_engine.priors.denoiser import Cond, load_prior
from sjc_engine.priors.sources import find_prior


def images(prior, count, seed=0):
    shape = (count, prior.channels, prior.resolution, prior.resolution)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pixel_folder(tmp_path_factory):
    return build_pixel_prior(tmp_path_factory.mktemp("pixel"))


@pytest.fixture(scope="module")
def latent_folder(tmp_path_factory):
    return build_latent_prior(tmp_path_factory.mktemp("latent"))


def test_layouts_are_read_from_the_configs(pixel_folder, latent_folder):
    pixel, latent = load_prior(str(pixel_folder)), load_prior(str(latent_folder))
    assert (pixel.channels, pixel.resolution, pixel.unshuffle, pixel.latent) == (3, 8, 2, False)
    assert (latent.channels, latent.resolution, latent.unshuffle, latent.latent) == (4, 8, 1, True)


def test_a_pixel_model_with_labels_is_told_how_often_its_image_was_halved(tmp_path):
    prior = load_prior(str(build_pixel_prior(tmp_path, labels=2)))
    assert (prior.resolution, prior.sizes) == (16, [16, 8])
    network = UNet2DConditionModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
    cond, sigma = prior.condition(["a duck"]), torch.tensor([2.0])
    for side, label in ((16, 0), (8, 1)):
        x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))
        scaled = torch.nn.functional.pixel_unshuffle(x / 5**0.5, 2)
        with torch.no_grad():
            noise = network(
                scaled,
                prior.timestep(sigma).float(),
                cond.hidden,
                class_labels=torch.tensor([label]),
            ).sample
        expected = x - 2 * torch.nn.functional.pixel_shuffle(noise, 2)
        torch.testing.assert_close(prior.denoise(x, sigma, cond), expected)


def test_builtin_is_the_shipped_folder():
    prior = load_prior("toybox")
    assert (prior.id, prior.channels, prior.resolution) == ("toybox", 3, 64)
    assert prior.revision == find_prior("toybox").revision
    assert len(prior.sigmas) == 1000
    # research on Stable Diffusion's schedule: 0.098 and 12.23 at the paper's outermost ticks
    assert prior.sigmas[10].item() == pytest.approx(0.098, abs=1e-3)
    assert prior.sigmas[969].item() == pytest.approx(12.23, abs=1e-2)


def test_text_changes_the_answer_and_is_embedded_like_the_pipelines(latent_folder):
    prior = load_prior(str(latent_folder))
    tokenizer = CLIPTokenizer.from_pretrained(latent_folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(latent_folder / "text_encoder")
    tokens = tokenizer("a toy tank", padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(tokens.input_ids)[0]
    cond = prior.condition(["a toy tank", ""])
    torch.testing.assert_close(cond.hidden[:1], expected)
    z, sigma = images(prior, 1), torch.tensor([1.0])
    answers = [prior.denoise(z, sigma, cond[[k]]) for k in (0, 1)]
    assert not torch.equal(*answers)


def test_conditions_are_indexed_and_joined():
    cond = Cond(torch.arange(6.0).view(3, 1, 2))
    joined = Cond.cat([cond[[2]], cond[0:2], cond[[0, 0]]])
    assert joined.hidden[:, 0, 0].tolist() == [4.0, 0.0, 2.0, 0.0, 0.0]
    assert len(joined) == 5


def test_latents_are_decoded_through_the_vae(latent_folder):
    prior = load_prior(str(latent_folder))
    vae = AutoencoderKL.from_pretrained(latent_folder / "vae", low_cpu_mem_usage=False)
    z = images(prior, 2) * 0.1
    with torch.no_grad():
        expected = vae.decode(z / 0.18215).sample.clamp(-1, 1)
    decoded = prior.decode(z)
    assert decoded.shape == (2, 3, 16, 16)
    torch.testing.assert_close(decoded, expected)


def test_pixels_are_only_clipped(pixel_folder):
    prior = load_prior(str(pixel_folder))
    assert prior.decode(torch.tensor([[-3.0, 0.5, 2.0]])).tolist() == [[-1.0, 0.5, 1.0]]


def test_revision_is_the_digest_of_weights_and_settings(pixel_folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(pixel_folder, copy)
    digest = find_prior(str(pixel_folder)).revision
    assert find_prior(str(copy)).revision == digest
    assert load_prior(str(copy), revision=digest).revision == digest
    (copy / "README.md").write_text("words change nothing")
    assert find_prior(str(copy)).revision == digest
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert find_prior(str(copy)).revision != digest
    with pytest.raises(ValueError, match="not the wanted"):
        load_prior(str(copy), revision=digest)


def test_pickled_weights_are_not_read(pixel_folder, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(pixel_folder, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(
        ValueError, match=r"its unet: \S*\.bin is pickled, and there are no safetensors"
    ):
        load_prior(str(folder))


@pytest.mark.parametrize(
    "name", ["sd15", "a b", "./missing", "/no/such/folder", "a/b/c", "", "../x", "a/b.ckpt"]
)
def test_names_that_are_no_prior_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is unknown|no model_index"):
        load_prior(name)


def test_a_hub_id_that_is_not_there_says_so():
    with pytest.raises(ValueError, match="neither an existing folder nor available from the hub"):
        load_prior("nobody/nothing", local_files_only=True)


def test_a_hub_id_is_loaded_from_the_cache_at_its_commit(pixel_folder, tmp_path, monkeypatch):
    """The hub's cache layout, filled by hand: no network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    shutil.copytree(pixel_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = find_prior("owner/name", local_files_only=True)
    assert (source.id, source.revision) == ("owner/name", commit)
    assert source.index["vae"] == [None, None]


def test_an_id_whose_weights_have_moved_says_where_to():
    with pytest.raises(ValueError, match="are now at stable-diffusion-v1-5/stable-diffusion-v1-5"):
        load_prior("runwayml/stable-diffusion-v1-5", local_files_only=True)


def test_a_gated_model_says_how_to_get_at_it(monkeypatch):
    def refuse(*args, **options):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ValueError, match=r"accept its licence.*huggingface\.co/owner/name.*login"):
        load_prior("owner/name")


def test_local_files_only_asks_nobody(monkeypatch):
    asked = []

    def refuse(id, name, *, revision, local_files_only):
        asked.append((id, revision, local_files_only))
        raise OSError("not in the cache")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ValueError, match="not in the cache"):
        load_prior("owner/name", revision="abc", local_files_only=True)
    assert asked == [("owner/name", "abc", True)]


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        load_prior(str(tmp_path))


def test_unknown_prediction_type_is_named(tmp_path):
    folder = build_pixel_prior(tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "wishes"}))
    with pytest.raises(ValueError, match=r"'wishes'.*epsilon, v_prediction, sample"):
        load_prior(str(folder))


def test_channels_that_do_not_fit_are_refused(tmp_path):
    folder = build_latent_prior(tmp_path)
    index = json.loads((folder / "model_index.json").read_text()) | {"vae": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="4 channels does not fit 3-channel"):
        load_prior(str(folder))


def test_a_text_prior_takes_no_images(pixel_folder):
    prior = load_prior(str(pixel_folder))
    with pytest.raises(ValueError, match="text only"):
        prior.condition(["a duck"], images=[torch.zeros(3, 8, 8)])


def test_batches_of_unequal_parts_are_refused(pixel_folder):
    prior = load_prior(str(pixel_folder))
    with pytest.raises(ValueError, match="2 images, 1 sigmas, 1 conditions"):
        prior.denoise(images(prior, 2), torch.ones(1), prior.condition(["a duck"]))


def test_a_name_that_the_hub_refuses_names_the_prior():
    with pytest.raises(SettingError, match=r"^prior: 'a/b--c' is neither an existing folder nor"):
        load_prior("a/b--c")
