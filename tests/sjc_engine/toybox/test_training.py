"""Training: the tokenizer, a few real steps, resume, warm start and the shipped layout."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from sjc_engine.priors.denoiser import load_prior
from sjc_engine.priors.sources import BUILTINS as PRIORS
from sjc_engine.priors.sources import JUDGES
from sjc_engine.toybox.training import tokenizer, train_judge, train_unconditional
from sjc_engine.toybox.training.dataset import on_backgrounds, render_toys
from sjc_engine.toybox.training.tokenizer import MAX_TOKENS, build_tokenizer
from sjc_engine.toybox.training.train_prior import train
from sjc_engine.toybox.training.training_loop import TrainingOptions, cosine_rate, log_row

TINY = TrainingOptions(out=Path(), steps=6, minutes=None, batch=8, images=64, rate=1e-3)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def test_tokenizer_knows_words_and_spells_the_rest():
    tokenizer = build_tokenizer()
    known = tokenizer("overhead view of A ficus planted in a pot")["input_ids"]
    assert known[0] == tokenizer.bos_token_id
    assert known[-1] == tokenizer.eos_token_id
    assert len(known) == 2 + 9  # one token a word
    spelled = tokenizer("zebra!", add_special_tokens=False)["input_ids"]
    assert "".join(tokenizer.convert_ids_to_tokens(spelled)).replace("</w>", "") == "zebra!"
    longest = tokenizer("left side view of A wide angle zoomed out photo of a purple airplane")
    assert len(longest["input_ids"]) <= MAX_TOKENS


def test_tokenizer_is_the_same_in_every_process(monkeypatch):
    """Each rank of a training run, and each resumed run, builds its own."""
    code = (
        "from sjc_engine.toybox.training import tokenizer;"
        "tokenizer._CORPUS = 500;"
        "import json; print(json.dumps(tokenizer.build_tokenizer().get_vocab(), sort_keys=True))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    monkeypatch.setattr(tokenizer, "_CORPUS", 500)  # as good as all of them, and seconds less
    assert json.loads(other.stdout) == build_tokenizer.__wrapped__().get_vocab()


def test_training_resumes_and_writes_a_loadable_half_precision_model(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    train(0, replace(TINY, out=out, steps=3))
    halfway = weights(out)
    train(0, replace(TINY, out=out, steps=6))
    state = torch.load(out / "state" / "rank0.pt", weights_only=True)
    assert state["step"] == 6
    final = weights(out)
    assert all(tensor.dtype == torch.float16 for tensor in final.values())
    assert any((final[name] != halfway[name]).any() for name in final)
    assert (out / "model" / "model_index.json").exists()
    assert not (out / "model.partial").exists()


def test_warm_start_continues_from_the_shipped_weights(tmp_path):
    out = tmp_path / "warm"
    out.mkdir()
    train(0, replace(TINY, out=out, steps=1, rate=0.0, init_from=PRIORS["toybox"]))
    shipped = load_file(PRIORS["toybox"] / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, shipped[name])


def test_log_has_a_row_for_every_fifty_steps(tmp_path, capsys):
    log_row(tmp_path, 50, 12.0, 0.5, 99.0, 0.1)
    log_row(tmp_path, 100, 24.0, 0.4, 99.0, 0.2)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [int(row[0]) for row in rows] == [50, 100]
    assert "images/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "progress", "rate"), [(0, 0.0, 1 / 80), (500, 0.0, 1), (900, 1.0, 0.03)]
)
def test_rate_warms_up_and_decays(step, progress, rate):
    assert cosine_rate(step, progress) == pytest.approx(rate)


def test_judges_targets_count_only_what_a_caption_says():
    said = torch.tensor([[0, 0, 1], [-1, 2, -1], [-1, -1, 3]])  # category, colour, view
    seen = torch.tensor([[0, 0, 1], [1, 2, 1], [0, 3, 3]])
    expected = [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert train_judge.matches(said, seen).int().tolist() == expected


def test_contrastive_loss_is_least_where_only_right_pairs_are_similar():
    positive = torch.eye(4, dtype=torch.bool)
    right = train_judge.contrastive_loss(20 * torch.eye(4), positive)
    wrong = train_judge.contrastive_loss(20 * torch.eye(4).roll(1, 0), positive)
    assert right < 1e-6
    assert wrong > 10


def test_judge_trains_and_saves_in_clip_layout(tmp_path):
    train_judge.train(replace(TINY, out=tmp_path, steps=2))
    train_judge.train(replace(TINY, out=tmp_path, steps=3))
    state = torch.load(tmp_path / "state" / "rank0.pt", weights_only=True)
    assert state["step"] == 3
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= names


def test_a_judge_goes_on_from_the_shipped_weights(tmp_path):
    shipped = JUDGES["toybox"]
    train_judge.train(replace(TINY, out=tmp_path, steps=1, rate=0.0, init_from=shipped))
    old = load_file(shipped / "model.safetensors")
    new = load_file(tmp_path / "model" / "model.safetensors")
    for name, tensor in new.items():
        if "token_embedding" not in name:
            torch.testing.assert_close(tensor, old[name])
    duck = "duck</w>"
    rows = [
        weights["text_model.embeddings.token_embedding.weight"][tokenizer.get_vocab()[duck]]
        for weights, tokenizer in (
            (old, CLIPTokenizer.from_pretrained(shipped)),
            (new, build_tokenizer()),
        )
    ]
    torch.testing.assert_close(*rows)


def test_degraded_images_stay_in_range():
    image = train_judge.degrade(torch.rand(16, 48, 48, 4), torch.Generator().manual_seed(0))
    assert image.shape == (16, 3, 48, 48)
    assert image.abs().max() <= 1
    assert np.isfinite(image.numpy()).all()


def test_a_model_without_words_is_trained_and_loads(tmp_path):
    """Hardly trained, it is a denoiser in the layout of google/ddpm-*-256 all the same."""
    options = replace(TINY, out=tmp_path, steps=None, minutes=0.03, batch=4, images=8)
    train_unconditional.train(options, "duck")
    prior = load_prior(str(tmp_path / "model"))
    assert (prior.channels, prior.resolution, prior.guided) == (3, 32, False)
    x = torch.zeros(1, 3, 32, 32)
    d = prior.denoise(x, torch.tensor([1.0]), prior.condition([""]))
    assert torch.isfinite(d).all()


def test_the_shipped_model_without_words_draws_ducks():
    """Its denoised pictures are near the ducks that noise was added to, far from the noise."""
    prior = load_prior("toybox-duck")
    toys = render_toys(16, 32, seed=77, categories=["duck"])
    image = on_backgrounds(torch.from_numpy(toys.images).float() / 255, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    sigma = torch.full((16,), 0.5)
    noisy = image + 0.5 * torch.randn(image.shape, generator=generator)
    d = prior.denoise(noisy, sigma, prior.condition([""] * 16))
    assert (d - image).square().mean() < 0.1 * (noisy - image).square().mean()
