"""Models that are not what was asked for: found before torch is imported, and never loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import get_session
from safetensors.torch import load_file, save_file
from tiny_clip import save_tiny_clip
from tiny_priors import (
    build_ddpm_prior,
    build_deepfloyd_prior,
    build_latent_prior,
    build_zero123_prior,
)
from transformers import CLIPTokenizer

from sjc_engine.errors import PriorError
from sjc_engine.evaluation.clip import load_judge
from sjc_engine.priors import sources
from sjc_engine.priors.denoiser import load_prior
from sjc_engine.priors.loading import model_files
from sjc_engine.priors.sources import family_of, find_prior, licence_of, prior_error
from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec

UNET = "unet/diffusion_pytorch_model.safetensors"
CAMERA = "clip_camera_projection/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    builders: dict[str, Callable[[Path], Any]] = {
        "sd": build_latent_prior,
        "if": build_deepfloyd_prior,
        "ddpm": build_ddpm_prior,
        "zero123": build_zero123_prior,
        "unified": partial(build_zero123_prior, pipeline="Zero123Pipeline"),
    }
    made = {name: tmp_path_factory.mktemp(name) for name in builders}
    for name, build in builders.items():
        build(made[name])
    return made


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def of(name: str) -> Path:
        return Path(shutil.copytree(whole[name], tmp_path / name))

    return of


def rename_weights(path: Path, change: Callable[[str], str | None]) -> None:
    tensors = load_file(path)
    save_file({new: value for key, value in tensors.items() if (new := change(key))}, path)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def wrapped(folder: Path) -> None:
    rename_weights(folder / TEXT, lambda key: f"module.{key}")


def half(folder: Path) -> None:
    rename_weights(folder / UNET, lambda key: None if key.startswith("up_blocks") else key)


def one_gone(folder: Path) -> None:
    rename_weights(folder / UNET, lambda key: None if key.endswith("attn2.to_k.weight") else key)


def one_block_gone(folder: Path) -> None:
    rename_weights(folder / UNET, lambda key: None if "mid_block.resnets.1.norm2" in key else key)


def no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


def another_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = dict(list(tokenizer["model"]["vocab"].items())[:40])
    path.write_text(json.dumps(tokenizer))


def another_width(folder: Path) -> None:
    edit(folder / "text_encoder" / "config.json", hidden_size=32)


def pointer(folder: Path) -> None:
    (folder / TEXT).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def truncated(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-1000])


def empty(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{}")


def pickled(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def no_scheduler(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").unlink()


def flow_matching(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text('{"shift": 3.0}')


def missing_setting(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    values = json.loads(path.read_text())
    del values["attention_head_dim"]
    path.write_text(json.dumps(values))


def another_layer(folder: Path) -> None:
    rename_weights(folder / CAMERA, lambda key: key.replace("proj", "projection"))


def another_pose(folder: Path) -> None:
    edit(folder / "clip_camera_projection" / "config.json", additional_embeddings=5)


@pytest.mark.parametrize(
    ("family", "harm", "component", "file", "reason"),
    [
        ("sd", wrapped, "text_encoder", "model.safetensors", "has 'module.' before each name"),
        ("if", wrapped, "text_encoder", "model.safetensors", "has 'module.' before each name"),
        ("sd", half, "unet", UNET[5:], "lacks"),
        ("ddpm", half, "unet", UNET[5:], "lacks"),
        ("zero123", half, "unet", UNET[5:], "lacks"),
        ("unified", another_layer, CAMERA[:22], CAMERA[23:], "lacks 2 weights of a CLIPCamera"),
        ("unified", another_pose, CAMERA[:22], CAMERA[23:], "has proj.weight of shape (768, 772)"),
        ("sd", one_block_gone, "unet", UNET[5:], "lacks 2 weights"),
        ("sd", no_vocabulary, "tokenizer", "", "has no vocabulary"),
        ("if", no_vocabulary, "tokenizer", "", "has no vocabulary"),
        ("sd", another_vocabulary, "text_encoder", "", "words, and its text encoder 442"),
        ("sd", another_width, "text_encoder", "model.safetensors", "of shape"),
        ("sd", pointer, "text_encoder", "model.safetensors", "is a git-lfs pointer"),
        ("if", pointer, "text_encoder", "model.safetensors", "is a git-lfs pointer"),
        ("sd", truncated, "unet", UNET[5:], "is damaged"),
        ("ddpm", truncated, "unet", UNET[5:], "is damaged"),
        ("sd", empty, "vae", "config.json", "has no settings"),
        ("zero123", empty, "vae", "config.json", "has no settings"),
        ("sd", pickled, "unet", "diffusion_pytorch_model.bin", "is pickled"),
        ("sd", no_scheduler, "scheduler", "scheduler_config.json", "is missing"),
        ("sd", flow_matching, "scheduler", "scheduler_config.json", "has neither betas"),
        ("sd", missing_setting, "unet", "config.json", "does not say attention_head_dim"),
    ],
)
def test_what_is_broken_is_named_without_loading_anything(
    copy: Callable[[str], Path],
    family: str,
    harm: Callable[[Path], None],
    component: str,
    file: str,
    reason: str,
) -> None:
    folder = copy(family)
    harm(folder)
    error = prior_error(str(folder))
    assert error is not None
    assert (error.component, error.file) == (component, file)
    assert reason in error.reason
    assert reason in error.problem
    assert error.fix
    with pytest.raises(PriorError, match=component):
        load_prior(str(folder))


def test_a_weight_that_no_header_check_misses_is_missed_by_loading(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("sd")
    one_gone(folder)
    assert prior_error(str(folder)) is None, "the same is gone in every block"
    with pytest.raises(PriorError, match=r"its unet: .* does not fill \d+ weights .*to_k"):
        load_prior(str(folder))


def test_checking_imports_neither_torch_nor_a_library_of_models(whole: dict[str, Path]) -> None:
    folders = [str(folder) for folder in whole.values()]
    code = (
        "import sys; from sjc_engine.priors.sources import find_prior, prior_error;"
        f"print([prior_error(folder) or find_prior(folder) for folder in {folders}]);"
        "assert not {'torch', 'transformers', 'diffusers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- identity


def revision(folder: Path) -> str:
    return find_prior(str(folder)).revision


def test_a_revision_is_of_what_is_read_and_of_nothing_else(copy: Callable[[str], Path]) -> None:
    folder = copy("sd")
    before = revision(folder)
    (folder / "README.md").write_text("# words")
    (folder / "safety_checker").mkdir()
    shutil.copy(folder / TEXT, folder / "safety_checker" / "model.safetensors")
    shutil.copy(folder / UNET, folder / "v1-5-pruned.safetensors")
    shutil.copy(folder / UNET, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert revision(folder) == before, "an fp16 copy is not read where there is full precision"
    (folder / UNET).unlink()
    only_half = revision(folder)
    assert only_half != before
    assert load_prior(str(folder)).revision == only_half


def test_a_tokenizers_text_files_are_part_of_it(copy: Callable[[str], Path]) -> None:
    """Of a slow tokenizer: a changed merges.txt gives words other ids."""
    folder = copy("sd")
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    merges = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer" / "tokenizer.json").unlink()
    before = revision(folder)
    assert load_prior(str(folder)).revision == before
    merges_file = folder / "tokenizer" / "merges.txt"
    merges_file.write_text("\n".join(["#version: 0.2", *reversed(merges), ""]))
    assert revision(folder) != before
    merges_file.unlink()
    with pytest.raises(PriorError, match="its tokenizer has no vocabulary"):
        load_prior(str(folder))


def test_linked_folders_are_followed(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("sd")
    before = revision(folder)
    (folder / "unet").rename(tmp_path / "unet-a")
    (folder / "unet").symlink_to(tmp_path / "unet-a")
    assert revision(folder) == before
    shutil.copytree(tmp_path / "unet-a", tmp_path / "unet-b")
    weights = load_file(tmp_path / "unet-b" / UNET[5:])
    save_file({k: v + 1 for k, v in weights.items()}, tmp_path / "unet-b" / UNET[5:])
    (folder / "unet").unlink()
    (folder / "unet").symlink_to(tmp_path / "unet-b")
    assert revision(folder) != before


def test_six_spellings_of_a_folder_are_one_asset(
    copy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy("sd")
    shutil.copytree(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    spellings = ["sd", "sd/", "./sd", "elsewhere/../sd", str(folder), "elsewhere"]
    specs = [AssetSpec("a duck", "", None, 0, s, revision(Path(s)), Recipe()) for s in spellings]
    assert len({spec.asset_id for spec in specs}) == len({spec.field_id for spec in specs}) == 1
    toybox = AssetSpec("a duck", "", None, 0, "toybox", revision(folder), Recipe())
    assert toybox.asset_id != specs[0].asset_id


def test_a_large_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_files, "_SETTLED", -1.0)
    path = tmp_path / "large"
    path.write_bytes(b"x" * model_files.CACHED_FROM)
    [first] = model_files.file_digests([path])
    read: list[Any] = []
    right = model_files.hashlib.file_digest
    monkeypatch.setattr(
        model_files.hashlib, "file_digest", lambda *args: read.append(args) or right(*args)
    )
    assert model_files.file_digests([path]) == [first]
    assert not read
    path.write_bytes(b"y" * model_files.CACHED_FROM)  # of the same size
    [second] = model_files.file_digests([path])
    assert second != first
    assert len(read) == 1
    (tmp_path / "cache" / "sjc" / "digests.json").write_text("[")
    assert model_files.file_digests([path]) == [second]


def test_a_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "large"
    path.write_bytes(b"x" * model_files.CACHED_FROM)
    model_files.file_digests([path])
    assert not (tmp_path / "cache").exists()


# --- families, sizes, licences


def test_a_hub_id_is_of_the_family_that_its_cached_index_says(
    copy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    butterflies, zero123 = "anton-l/ddpm-butterflies-128", "kxic/stable-zero123"
    for id, family in ((butterflies, "ddpm"), (zero123, "zero123")):
        repository = tmp_path / "hub" / f"models--{id.replace('/', '--')}"
        commit = "0123456789abcdef0123456789abcdef01234567"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        shutil.move(copy(family), repository / "snapshots" / commit)
        (repository / "snapshots" / commit / "README.md").write_text(
            "---\ntags:\n  - x\nlicense: 'cc-by-4.0' # a comment\n---\n"
        )
        assert licence_of(id) == "cc-by-4.0"
        assert sources.assumption(id) is None
    assert family_of(butterflies)[0] == "unconditional"
    assert family_of(zero123)[0] == "zero123"
    assert Recipe.for_prior(butterflies).name == "annealed"
    assert "taken for a StableDiffusionPipeline" in str(sources.assumption("some/thing"))


@pytest.mark.parametrize(
    ("version", "size", "expected"),
    [("0.6.0", 32, 64), ("0.9.0", 32, 32), ("0.30.0", 32, 32), ("0.30.0", [8, 8], 8)],
)
def test_sizes_of_old_conversions_are_corrected_as_diffusers_does(
    copy: Callable[[str], Path], version: str, size: Any, expected: int
) -> None:
    folder = copy("sd")
    edit(folder / "unet" / "config.json", sample_size=size, _diffusers_version=version)
    assert load_prior(str(folder)).resolution == expected


def test_a_size_that_is_not_square_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("sd")
    edit(folder / "unet" / "config.json", sample_size=[8, 16])
    with pytest.raises(PriorError, match="8 x 16, which is not square"):
        load_prior(str(folder))


# --- judges


def test_a_judge_as_transformers_5_saves_it(tmp_path: Path) -> None:
    """Its settings of pictures are in processor_config.json, and only weights named fp16 there."""
    save_tiny_clip(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    settings = tmp_path / "new" / "preprocessor_config.json"
    inside = {
        "image_processor": json.loads(settings.read_text()),
        "processor_class": "CLIPProcessor",
    }
    (tmp_path / "new" / "processor_config.json").write_text(json.dumps(inside))
    settings.unlink()
    weights = tmp_path / "new" / "model.safetensors"
    weights.rename(tmp_path / "new" / "model.fp16.safetensors")
    old, new = (load_judge(str(tmp_path / name)) for name in ("old", "new"))
    picture = torch.linspace(-1, 1, 3 * 40 * 40).reshape(1, 3, 40, 40)
    torch.testing.assert_close(new.image_features(picture), old.image_features(picture))


def test_a_judge_whose_weights_are_wrapped_is_refused(tmp_path: Path) -> None:
    save_tiny_clip(tmp_path)
    rename_weights(tmp_path / "model.safetensors", lambda key: f"_orig_mod.{key}")
    with pytest.raises(
        PriorError, match=r"judge: .*its model: model.safetensors has '_orig_mod\.'"
    ):
        load_judge(str(tmp_path))


def test_words_without_ids_of_their_own_are_noticed(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever made them so: the last look is at what the tokenizer answers."""
    folder = copy("sd")
    monkeypatch.setattr(CLIPTokenizer, "__call__", lambda *_, **__: {"input_ids": [0, 1]})
    with pytest.raises(PriorError, match="gives no ids of their own to words"):
        load_prior(str(folder))


def test_unreadable_files_are_a_matter_of_permission(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, right = copy("sd"), Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == folder / TEXT:
            raise PermissionError(13, "Permission denied", str(path))
        return right(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    error = prior_error(str(folder))
    assert error is not None
    assert (error.component, error.file) == ("text_encoder", "model.safetensors")
    assert "cannot be read (Permission denied)" in error.problem


def text(place: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / place).write_text(content)

    return write


def malformed_vocabulary(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer.json", added_tokens=[5])


@pytest.mark.parametrize(
    "harm",
    [
        text("tokenizer/added_tokens.json", '{"a": 1'),
        text("model_index.json", '{"_class_name": ["my_pipeline", "X"]}'),
        text("model_index.json", '{"_class_name": "StableDiffusionPipeline", "vae": {"a": 1}}'),
        text("model_index.json", "[]"),
        text("text_encoder/config.json", '{"architectures": 5}'),
        text("vae/config.json", '{"block_out_channels": 5}'),
        malformed_vocabulary,
    ],
)
def test_settings_of_any_form_are_the_models_own_error(
    copy: Callable[[str], Path], harm: Callable[[Path], None]
) -> None:
    folder = copy("sd")
    harm(folder)
    family_of(str(folder))
    with pytest.raises(PriorError):
        load_prior(str(folder))
    if "vae" not in (folder / "model_index.json").read_text():
        assert prior_error(str(folder)) is not None


def test_blank_lists_of_special_tokens_are_fine(copy: Callable[[str], Path]) -> None:
    folder = copy("sd")
    (folder / "tokenizer" / "special_tokens_map.json").write_text("{}")
    (folder / "tokenizer" / "added_tokens.json").write_text("{}")
    assert load_prior(str(folder)).resolution == 8


def in_cache(folder: Path, cache: Path, id: str, *left_out: str) -> Path:
    """A hub's snapshot of the folder, of which some files have not been downloaded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    for name in left_out:
        (snapshot / name).unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def test_a_download_that_was_interrupted_is_continued(
    whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not in the cache yet is no fault of the model; the rest is looked at."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    names = ["tokenizer/tokenizer.json", UNET]
    snapshot = in_cache(whole["sd"], tmp_path, "owner/name", *names)
    fetched: list[str] = []

    def download(id: str, name: str, **_: Any) -> str:
        if not (snapshot / name).exists():
            fetched.append(name)
            shutil.copy(whole["sd"] / name, snapshot / name)
        return str(snapshot / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    there = model_files.list_names(whole["sd"])
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: sorted(there))
    assert load_prior("owner/name").resolution == 8
    assert sorted(fetched) == sorted(names)
    (snapshot / TEXT).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(PriorError, match="is a git-lfs pointer"):
        find_prior("owner/name")


def test_a_cached_model_loads_out_of_the_hubs_reach(
    whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever HTTP client huggingface_hub uses, and fails with."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    closed = lambda *_, **__: get_session().get("http://127.0.0.1:9")  # noqa: E731
    monkeypatch.setattr("huggingface_hub.list_repo_files", closed)
    in_cache(whole["sd"], tmp_path, "owner/name")
    assert load_prior("owner/name").resolution == 8


def test_a_repository_of_pickled_weights_is_told_before_the_download(
    whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = in_cache(whole["ddpm"], tmp_path, "owner/name", UNET)
    names = [*model_files.list_names(snapshot), "unet/diffusion_pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda id, name, **_: str(snapshot / name)
    )
    with pytest.raises(PriorError, match=r"its unet: diffusion_pytorch_model\.bin is pickled"):
        load_prior("owner/name")


def test_a_revision_stands_behind_an_at(
    whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull request that adds safetensors, while the main branch has a model of another family."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    in_cache(whole["ddpm"], tmp_path, "owner/name")
    repository, commit = tmp_path / "models--owner--name", "c" * 40
    shutil.copytree(whole["zero123"], repository / "snapshots" / commit)
    (repository / "refs" / "refs" / "pr").mkdir(parents=True)
    (repository / "refs" / "refs" / "pr" / "1").write_text(commit)
    for named in (f"owner/name@{commit}", "owner/name@refs/pr/1"):
        assert sources.takes_image(named)
        assert sources.assumption(named) is None
        assert prior_error(named) is None
    assert not sources.takes_image("owner/name")
    assert sources.assumption("owner/name@v2") is not None
    for wrong in ("owner/name@", "owner/name@a b", "owner/name@/x", "toybox@1", "@1"):
        assert "is unknown" in str(prior_error(wrong))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole["sd"], tmp_path / "models" / "mine@1")
    assert find_prior("models/mine@1").family == "stable_diffusion"
    assert sources.split_revision("models/mine@1") == ("models/mine@1", None)


def test_a_single_file_is_no_hub_id(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a relative path of one folder looks like one."""
    monkeypatch.chdir(copy("sd"))
    for load in (find_prior, load_prior):
        with pytest.raises(PriorError, match=r"'unet/diff.*safetensors' is a component of a"):
            load(UNET)


def test_no_memory_is_no_fault_of_the_files(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(CLIPTokenizer, "from_pretrained", full)
    with pytest.raises(OSError, match="Cannot allocate memory") as caught:
        load_prior(str(copy("sd")))
    assert not isinstance(caught.value, PriorError)


def test_t5_is_read_from_its_sentencepiece_model_alone(
    copy: Callable[[str], Path], tmp_path: Path
) -> None:
    """As DeepFloyd IF has it."""
    import sentencepiece

    folder = copy("if")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"a yellow duck and a red chair {n}" for n in range(100)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(folder / "tokenizer" / "spiece"), vocab_size=50,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    prior = load_prior(str(folder))
    one, other = prior.condition(["a duck"]), prior.condition(["a chair"])
    assert not torch.equal(one.hidden, other.hidden)
