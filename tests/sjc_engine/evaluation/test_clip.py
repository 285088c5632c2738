from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from tiny_clip import LENGTH, MEAN, STD, save_tiny_clip
from transformers import CLIPModel, CLIPTokenizer

from sjc_engine.errors import SettingError
from sjc_engine.evaluation.clip import Judge, Preprocessing, load_judge, read_preprocessing
from sjc_engine.priors import sources

TEXTS = ["a photo of a red car", "duck", "a very long caption of a yellow rubber duck " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    save_tiny_clip(path)
    return path


@pytest.fixture(scope="module")
def judge(folder: Path) -> Judge:
    return load_judge(str(folder))


def pictures(count: int = 3, size: int = 64) -> torch.Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


def test_features_are_those_of_the_transformers_model(judge: Judge, folder: Path) -> None:
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    images = pictures(size=32)  # the model's own size: nothing to resize
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    tokens = tokenizer(
        TEXTS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        reference = model(pixel_values=((images + 1) / 2 - mean) / std, **tokens)
    assert torch.allclose(judge.image_features(images), reference.image_embeds, atol=1e-5)
    assert torch.allclose(judge.text_features(TEXTS), reference.text_embeds, atol=1e-5)


def test_what_is_behind_the_end_of_reading_changes_nothing(judge: Judge) -> None:
    ducks = " ".join(["duck"] * 30)
    end = judge.read_end(ducks)
    assert len(ducks[:end].split()) == LENGTH - 2
    same = judge.text_features([ducks, ducks[:end]])
    assert torch.equal(same[0], same[1])
    other = judge.text_features([ducks[: end - len("duck ")]])
    assert not torch.allclose(other[0], same[0])
    assert judge.read_end("a duck") == len("a duck")


def test_features_are_unit_and_do_not_depend_on_the_batch(judge: Judge) -> None:
    images = pictures(40)  # more than one call of the network
    features = judge.image_features(images)
    assert features.norm(dim=1) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(features[35:36], judge.image_features(images[35:36]), atol=1e-5)
    texts = judge.text_features(["cat", *TEXTS, "cat"])
    assert torch.equal(texts[0], texts[4])
    assert torch.allclose(texts[1:4], judge.text_features(TEXTS), atol=1e-5)


def test_the_revision_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    save_tiny_clip(tmp_path / "same", seed=0)
    save_tiny_clip(tmp_path / "other", seed=1)
    revision = load_judge(str(folder)).revision
    assert load_judge(str(tmp_path / "same")).revision == revision
    assert load_judge(str(tmp_path / "other")).revision != revision


@pytest.mark.parametrize(("mode", "filter"), [("bilinear", 2), ("bicubic", 3)])
def test_resizing_agrees_with_pil(mode: str, filter: int) -> None:
    """The published models were trained on pictures that PIL had resized."""
    image = pictures(1, 200)[0]
    levels = ((image + 1) * 127.5).round()
    reference = Image.fromarray(levels.byte().permute(1, 2, 0).numpy()).resize((32, 32), filter)
    preprocess = Preprocessing(32, 32, (0.0,) * 3, (1.0,) * 3, mode)
    ours = preprocess((levels / 127.5 - 1)[None])[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - np.asarray(reference, float)).max() < 1.1


def test_a_wide_picture_is_cut_in_the_middle() -> None:
    image = torch.zeros(1, 3, 32, 96) - 1
    image[..., 32:64] = 1
    preprocess = Preprocessing(32, 32, (0.5,) * 3, (0.5,) * 3, "bilinear")
    assert torch.equal(preprocess(image), torch.ones(1, 3, 32, 32))


def test_settings_of_old_and_new_files(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    old = {"size": 224, "crop_size": 224, "resample": 2, "image_mean": MEAN, "image_std": STD}
    path.write_text(json.dumps(old))
    assert read_preprocessing(path) == Preprocessing(224, 224, MEAN, STD, "bilinear")
    new = {**old, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    path.write_text(json.dumps(new))
    assert read_preprocessing(path) == Preprocessing(256, 224, MEAN, STD, "bilinear")
    path.write_text(json.dumps({**old, "resample": 0}))
    with pytest.raises(ValueError, match="than bilinear or bicubic"):
        read_preprocessing(path)


def test_a_judge_without_weights_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ValueError, match=r"judge: 'no such judge' is unknown; use toybox, an existing folder"
    ):
        load_judge("no such judge")
    monkeypatch.setattr(sources, "JUDGES", {"toybox": tmp_path / "nothing"})
    with pytest.raises(ValueError, match=r"judge: the weights of .*install"):
        load_judge("toybox")


def test_a_hub_id_out_of_reach_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ValueError, match=r"hf download openai/clip-vit-large-patch14"):
        load_judge("openai/clip-vit-large-patch14")


def test_a_damaged_folder_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_judge(str(tmp_path))


def test_loading_draws_no_progress_bar():
    """In a process of its own: this one has progress bars switched off for Prefect's sake."""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"}
    code = "from sjc_engine.evaluation.clip import load_judge; load_judge()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "Loading weights" not in done.stderr


def test_broken_settings_name_the_judge(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "judge")
    (tmp_path / "judge" / "preprocessor_config.json").write_text("{")
    with pytest.raises(SettingError, match=r"^judge: .* preprocessor_config\.json is not JSON"):
        load_judge(str(tmp_path / "judge"))
