"""What a run downloads before its devices start, and what a person sees of it."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_priors import build_latent_prior

from flows.progress import downloads
from flows.progress.downloads import DownloadLines, NoBar, download_priors
from sjc_engine.priors.loading import model_files
from sjc_engine.priors.sources import find_prior
from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FULL = "unet/diffusion_pytorch_model.safetensors"
HALF = "unet/diffusion_pytorch_model.fp16.safetensors"
VAE = "vae/diffusion_pytorch_model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub with one model in full and half precision, of which the cache has the index."""
    model = build_latent_prior(tmp_path / "model")
    for path in list(model.rglob("*.safetensors")):
        shutil.copy(path, path.with_name(f"{path.stem}.fp16.safetensors"))
    repository = tmp_path / "cache" / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copy(model / "model_index.json", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    fetched: list[str] = []
    bars: set[Any] = set()

    def download(id: str, name: str, tqdm_class: Any = None, **_: Any) -> str:
        if not (snapshot / name).exists():
            (snapshot / name).parent.mkdir(exist_ok=True)
            shutil.copy(model / name, snapshot / name)
            fetched.append(name)
            bars.add(tqdm_class)
        return str(snapshot / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    names = sorted(model_files.list_names(model))
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: names)
    return SimpleNamespace(fetched=fetched, bars=bars, snapshot=snapshot, model=model)


def plan(devices: list[str], prior: str = "owner/name", dtype: str = "auto") -> Any:
    recipe = Recipe.for_prior(prior, "paper").override({"dtype": dtype})
    spec = AssetSpec("a duck", "", None, 0, prior, COMMIT, recipe)
    entries = {str(n): SimpleNamespace(spec=spec) for n in range(3)}
    settings = SimpleNamespace(allow_pickle=False)
    return SimpleNamespace(todo=entries, devices=devices, settings=settings)


def weights(hub: SimpleNamespace) -> set[str]:
    return {name for name in hub.fetched if name.endswith(".safetensors")}


@pytest.mark.parametrize(
    ("devices", "dtype", "unet"),
    [
        (["cuda:0", "cuda:1"], "auto", HALF),
        (["cpu"], "float16", HALF),
        (["cpu"], "auto", FULL),
        (["cuda:0"], "float32", FULL),
        (["cuda:0", "cpu"], "auto", FULL),  # one file serves both
    ],
)
def test_half_the_bytes_for_half_precision(
    hub: SimpleNamespace, devices: list[str], dtype: str, unet: str
) -> None:
    """What stays in float32 on a GPU, as the VAE does, comes in full."""
    download_priors(plan(devices, dtype=dtype))
    assert weights(hub) == {unet, f"{VAE}.safetensors", "text_encoder/model.safetensors"}
    assert len(hub.fetched) == len(set(hub.fetched)), "once for all devices"
    assert hub.bars == {DownloadLines}
    before = len(hub.fetched)
    download_priors(plan(devices, dtype=dtype), quiet=True)
    assert len(hub.fetched) == before


def test_full_weights_that_are_here_are_used(hub: SimpleNamespace) -> None:
    download_priors(plan(["cpu"]), quiet=True)
    assert hub.bars == {NoBar}
    download_priors(plan(["cuda:0"]))
    assert HALF not in hub.fetched


def test_the_revision_depends_on_no_precision(hub: SimpleNamespace) -> None:
    """That of a folder is of its full weights, also where a GPU runs it in half precision."""
    download_priors(plan(["cuda:0"]))
    assert find_prior("owner/name").revision == COMMIT
    folder = hub.model
    both = find_prior(str(folder)).revision
    (folder / HALF).write_bytes((folder / HALF).read_bytes() + b" ")
    assert find_prior(str(folder)).revision == both
    (folder / HALF).unlink()
    assert find_prior(str(folder)).revision == both


def test_what_cannot_be_had_fails_its_own_scenes_and_no_run(hub: SimpleNamespace) -> None:
    shutil.rmtree(hub.model)
    download_priors(plan(["cpu"], prior=str(hub.model)))


def test_a_large_file_has_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "LINE_SECONDS", 0.0)
    options = {"unit": "B", "unit_scale": True, "name": "huggingface_hub.http_get"}
    with DownloadLines(desc="unet.safetensors", total=2_000_000_000, **options) as bar:
        bar.update(500_000_000)
    with DownloadLines(desc="config.json", total=500, **options) as bar:
        bar.update(500)
    with NoBar(desc="unet.safetensors", total=2_000_000_000, **options) as quiet:
        quiet.update(500_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("downloading unet.safetensors: 0.00B of 2.00GB")
    assert any("500MB of 2.00GB" in line for line in lines)
    assert not any("config.json" in line for line in lines)
    assert all("unet" in line for line in lines)
