"""Which words of a prompt are cut: in the engine, and in the plan, which has no torch."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_priors import SMALL, build_deepfloyd_prior, build_pixel_prior
from transformers import CLIPTokenizer, T5Tokenizer

from sjc_engine import Recipe, load_prior
from sjc_engine.guidance.view_prompts import view_prompts
from sjc_engine.optimization.scene import Scene
from sjc_engine.priors.denoiser import tokens_end
from sjc_engine.priors.sources import BUILTINS
from sjc_engine.priors.tokens import DEEPFLOYD_TOKENS, prompt_end, text_limit, words_from

ROOT = Path(__file__).parents[3]
LONG = "a yellow duck on a quiet pond with many lilies, reeds and an old wooden mill"
# What texts are put together from: words, signs, digits, spaces, other scripts, tokens themselves
PIECES = (
    "a", "duck", "DSLR", "don't", "we'll", "it's", "\u00dcber", "na\u00efve", "e\u0301te\u0301",
    "12345", "3.14", "\u4e00\u53ea\u9ec4\u8272\u7684\u9e2d\u5b50", "\u0633\u0644\u0627\u0645",
    "\U0001f986\U0001f986", "\u0130stanbul", "\u03a3\u03a3", "\ufb01n", "<|endoftext|>", "</s>",
    "<|startoftext|>", "<unk>", "supercalifragilisticexpialidocious", "!!!", "...", "(red:1.4)",
    "#1", "left-handed", "@@", "!",
)  # fmt: skip
GAPS = (" ", " ", " ", "  ", "\n", ", ", "", "\u00a0", "\u2003")


def texts(count: int = 400) -> list[str]:
    rng = random.Random(7)
    made = []
    for _ in range(count):
        words = rng.choices(PIECES, k=rng.randint(1, 40))
        made.append("".join(word + rng.choice(GAPS) for word in words).strip())
    return made


@pytest.fixture(scope="module")
def pixel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pixel_prior(tmp_path_factory.mktemp("pixel"))


@pytest.fixture(scope="module")
def deepfloyd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_deepfloyd_prior(tmp_path_factory.mktemp("if"))


@pytest.fixture(scope="module")
def early(pixel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as early repositories have it: two files of text, Stable Diffusion 2's padding."""
    folder = tmp_path_factory.mktemp("early") / "prior"
    shutil.copytree(pixel, folder)
    tokenizer = folder / "tokenizer"
    model = json.loads((tokenizer / "tokenizer.json").read_text("utf-8"))["model"]
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (tokenizer / "merges.txt").write_text(f"#version: 0.2\n{merges}", "utf-8")
    token = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False,
             "single_word": False}  # fmt: skip
    (tokenizer / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "!", "unk_token": token, "eos_token": token})
    )
    config = {"model_max_length": 77, "pad_token": "<|endoftext|>"}
    config["unk_token"] = {"__type": "AddedToken", **token}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["toybox", "pixel", "early"])
def test_the_light_count_is_clips(name: str, request: pytest.FixtureRequest) -> None:
    prior = name if name == "toybox" else str(request.getfixturevalue(name))
    folder = BUILTINS.get(prior, Path(prior))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    limit = text_limit(prior)
    assert limit is not None
    assert limit.tokens == tokenizer.model_max_length == (77 if name == "early" else 24)
    cut = 0
    for text in texts():
        end = limit.read_end(text)
        assert limit.count(text) == len(tokenizer(text, add_special_tokens=False).input_ids)
        assert end == tokens_end(tokenizer, text, limit.tokens), text
        cut += end < len(text)
    assert 100 < cut < 400


def test_the_light_count_is_t5s(deepfloyd: Path) -> None:
    tokenizer = T5Tokenizer.from_pretrained(deepfloyd / "tokenizer")
    limit = text_limit(str(deepfloyd))
    assert limit is not None
    assert limit.tokens == DEEPFLOYD_TOKENS == 77
    for text in texts():
        lower = text.lower()
        assert limit.count(lower) == len(tokenizer(lower, add_special_tokens=False).input_ids)
        end = tokens_end(tokenizer, lower, 77)
        assert limit.read_end(text) == max(0, end - len(lower) + len(text)), text


@pytest.mark.parametrize("style", ["none", "paper", "sided", "detailed"])
@pytest.mark.parametrize("family", ["pixel", "deepfloyd"])
def test_the_plan_finds_what_the_engine_cuts(
    family: str, style: str, request: pytest.FixtureRequest
) -> None:
    name = str(request.getfixturevalue(family))
    prior, limit = load_prior(name), text_limit(name)
    assert limit is not None
    recipe = Recipe.for_prior(name).override({**SMALL, "view_style": style})
    style = recipe.optimize.view_style
    rng = random.Random(3)
    for prompt in [LONG, "a duck", *rng.sample(texts(), 6)]:
        scene = Scene(prompt, LONG, 0, recipe, prior)
        planned = words_from(prompt, limit.prompt_end(prompt, style))
        assert scene.words_cut == planned + words_from(LONG, limit.read_end(LONG))


def test_the_words_that_are_cut_change_nothing(pixel: Path) -> None:
    """The oracle: other words in their place give the same embedding, others do not."""
    prior = load_prior(str(pixel))
    recipe = Recipe.for_prior(str(pixel)).override({**SMALL, "view_style": "detailed"})
    scene = Scene(LONG, "", 0, recipe, prior)
    words = LONG.split()
    kept, cut = words[: -len(scene.words_cut)], words[-len(scene.words_cut) :]
    assert [word.strip(",") for word in cut] == scene.words_cut

    longest = max(view_prompts("detailed"), key=len)

    def same(other: str) -> bool:
        one, two = (
            scene.conds[longest].hidden
            for scene in (Scene(LONG, "", 0, recipe, prior), Scene(other, "", 0, recipe, prior))
        )
        return bool((one == two).all())

    # The first word that is cut may be begun, and so stays.
    assert same(" ".join([*kept, cut[0], "castle"]))
    assert not same(" ".join([*kept[:-1], "castle", *cut]))


def test_a_view_costs_words(pixel: Path) -> None:
    limit = text_limit(str(pixel))
    assert limit is not None
    ducks = " ".join(["duck"] * 30)  # 24 tokens but for two ends, and 0, 3 or 6 for the view
    read = [len(ducks[: limit.prompt_end(ducks, style)].split())
            for style in ("none", "paper", "detailed")]  # fmt: skip
    assert read == [22, 19, 16]


def test_a_word_that_is_not_read_whole_is_cut() -> None:
    def two_letters(text: str) -> int:
        return min(len(text), 2)

    assert prompt_end(two_letters, "abc def") == 2  # of a function that does not look at words
    limit = text_limit("toybox")
    assert limit is not None
    long = "supercalifragilisticexpialidocious" * 3
    assert words_from(f"a duck {long} x", limit.read_end(f"a duck {long} x")) == [long, "x"]
    # Without spaces between words, what is read is read.
    chinese = "a duck " + "\u9e2d" * 30
    end = limit.read_end(chinese)
    assert 7 < end < len(chinese)
    assert words_from("a duck, (on) ... a pond.", 6) == ["on", "a", "pond"]
    assert words_from("a duck", 6) == []


def test_priors_without_words_have_no_limit(tmp_path: Path) -> None:
    assert text_limit("toybox-duck") is None
    assert text_limit("google/ddpm-bedroom-256") is None
    assert text_limit("owner/not-cached") is None
    assert text_limit(str(tmp_path)) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"model": {"vocab": {"a": 0}}}',
        b'{"model": {"vocab": {"a": 0}, "merges": ["b c"]}}',
        b'{"model_max_length": "77"}',
        b"version https://git-lfs",
    ],
)
def test_damaged_files_say_nothing(pixel: Path, tmp_path: Path, name: str, content: bytes) -> None:
    shutil.copytree(pixel, tmp_path / "prior")
    (tmp_path / "prior" / "tokenizer" / name).write_bytes(content)
    assert text_limit(str(tmp_path / "prior")) is None
    (tmp_path / "prior" / "model_index.json").write_bytes(content)
    assert text_limit(str(tmp_path / "prior")) is None


def test_a_hub_id_is_read_from_the_local_cache(
    pixel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--acme--toys"
    shutil.copytree(pixel, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision in (None, "", "0" * 40):
        limit = text_limit("acme/toys", revision)
        assert limit is not None
        assert limit.count("a duck") == 2
    assert text_limit("acme/toys", "1" * 40) is None


def test_the_plan_needs_neither_torch_nor_transformers(pixel: Path) -> None:
    code = (
        "import sys; from sjc_engine.priors.tokens import text_limit;"
        f"assert text_limit({str(pixel)!r}).prompt_end({LONG!r}, 'detailed') < {len(LONG)};"
        "print([name for name in ('torch', 'transformers', 'diffusers') if name in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert said.stdout.strip() == "[]"
