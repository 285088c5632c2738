"""The engine process as its parent sees it: a real process, real scenes, real signals."""

import importlib
import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from engine_process import Engine, in_process, spec
from PIL import Image, ImageDraw
from single_files import write_small_lora
from tiny_priors import SMALL, build_latent_prior, build_zero123_prior

from sjc_engine import Recipe, load_prior, optimize, read_image
from sjc_engine.priors.loading.lora import pin
from sjc_engine.priors.sources import BUILTINS, find_prior
from sjc_engine.spec import AssetSpec
from sjc_engine.worker import __main__ as worker

PARTS = ("unet", "text_encoder", "vae")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    engines: list[Engine] = []

    def one() -> Engine:
        engines.append(Engine(tmp_path))
        return engines[-1]

    yield one
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A process for all tests that end none: each takes ten seconds of a core to start."""
    engine = Engine(tmp_path_factory.mktemp("engine"))
    yield engine
    engine.close()


@pytest.fixture
def engine(running: Engine, tmp_path: Path) -> Engine:
    """A process that may have had scenes of other tests, with the files of this one."""
    running.folder = tmp_path
    return running


def test_a_scene_becomes_the_field_that_the_library_makes(engine: Engine, tmp_path: Path) -> None:
    engine.add("duck", spec("a yellow duck"))
    first = engine.until(lambda m: m["type"] == "progress")
    assert (first["scene"], first["first_step"], first["step"], first["steps"]) == ("duck", 0, 0, 8)
    done = engine.ended("duck")["duck"]
    assert (done["type"], done["step"], done["steps"], done["first_step"]) == ("done", 8, 8, 0)
    assert done["loss_min"] <= min(done["loss_first"], done["loss_last"])
    assert 0 < done["seconds"] < 60
    assert 50e6 < done["peak_memory_bytes"] < 4e9
    assert done["words_cut"] == []
    assert done["dtype"] == "float32"
    assert done["field"] == str(engine.field("duck"))
    expected = in_process(spec("a yellow duck"), tmp_path / "expected.safetensors")
    assert engine.field("duck").read_bytes() == expected


def test_a_scene_gets_the_lora_that_its_spec_asks_for(engine: Engine, tmp_path: Path) -> None:
    path = write_small_lora(tmp_path / "x.safetensors", BUILTINS["toybox"])
    for name, loras in {"plain": "none", "styled": pin(path), "again": "none"}.items():
        engine.add(name, spec("a duck", steps=3, loras=loras))
    assert {done["type"] for done in engine.ended("plain", "styled", "again").values()} == {"done"}
    plain, styled, again = (engine.field(n).read_bytes() for n in ("plain", "styled", "again"))
    assert plain == again != styled


def test_a_scene_gets_the_precision_that_its_spec_asks_for(engine: Engine) -> None:
    """One of another precision waits, and the prior is loaded again in it."""
    wanted = {"long": "auto", "half": "bfloat16", "full": "float32"}
    for name, dtype in wanted.items():
        engine.add(name, spec("a duck", steps=3, dtype=dtype))
    ended = engine.ended(*wanted)
    assert {name: done["dtype"] for name, done in ended.items()} == {
        "long": "float32", "half": "bfloat16", "full": "float32",
    }  # fmt: skip
    long, half, full = (engine.field(name).read_bytes() for name in wanted)
    assert long == full != half


def test_a_scene_starts_from_the_picture_that_its_spec_means(
    engine: Engine, tmp_path: Path
) -> None:
    folder, picture = build_zero123_prior(tmp_path / "prior"), tmp_path / "ball.png"
    ImageDraw.Draw(image := Image.new("RGB", (20, 20), "white")).ellipse((5, 5, 15, 15), "red")
    image.save(picture)
    prior = load_prior(str(folder))
    small = {"steps": 3, "grid_size": 8, "render_size": 8, "ray_step": 0.2}
    recipe, known = Recipe.for_prior(prior).override(small), read_image(picture)
    names = prior.id, prior.revision
    asset = AssetSpec("a ball", "", known.sha256, 1, *names, recipe).to_json()
    engine.add("ball", asset, image=str(picture))
    engine.add("none", asset, image=None)
    ended = engine.ended("ball", "none")
    assert ended["ball"]["type"] == "done", ended["ball"]
    [field] = optimize(["a ball"], prior, recipe, seeds=[1], images=[known])
    field.save(tmp_path / "expected.safetensors")
    assert engine.field("ball").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    assert (ended["none"]["type"], ended["none"]["error_type"]) == ("failed", "ImageError")
    image.rotate(90, fillcolor="gold").resize((30, 30)).save(picture)
    engine.add("other", asset, image=str(picture))
    assert "ball.png has changed since" in engine.ended("other")["other"]["error"]


def test_work_that_is_no_step_is_reported(engine: Engine, tmp_path: Path) -> None:
    """Or a process that loads, or decodes, would look like one that hangs."""
    source = find_prior(str(build_latent_prior(tmp_path / "prior")))
    small = {**SMALL, "steps": 2, "distill_views": 3, "distill_steps": 2}
    recipe = Recipe.for_prior(source.id, "paper").override(small)
    asset = AssetSpec("a duck", "", None, 0, source.id, source.revision, recipe)
    engine.work.clear()
    engine.add("duck", asset.to_json())
    assert engine.ended("duck")["duck"]["type"] == "done"
    heard = [(m["scene"], m["what"], m["done"], m["total"]) for m in engine.work]
    assert [line for line in heard if "block" not in line[1]] == [
        *((None, f"loading {part}", k, 3) for k, part in enumerate(PARTS, 1)),
        *(("duck", "decoding views", k, 3) for k in range(4)),
        *(("duck", "fitting colours", k, 2) for k in range(2)),
    ]


@pytest.mark.parametrize("at", ["load_prior", "try_step"])
def test_an_error_of_the_device_ends_the_process_and_no_scene(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch raises it on a GPU whose memory is damaged, at any call."""
    error = RuntimeError("CUDA error: uncorrectable ECC error encountered\nSearch for ...")

    def broken(*_: object, **__: object) -> list[Exception]:
        if at == "load_prior":
            raise error
        return [error]

    monkeypatch.setattr(worker, at, broken)
    replies = io.StringIO()
    process = worker.Worker("cpu", replies)
    paths = {"field": str(tmp_path / "field"), "checkpoint": str(tmp_path / "checkpoint")}
    process.commands.put({"type": "add", "scene": "duck", "spec": spec("a duck"), **paths})
    with pytest.raises(SystemExit) as ended:
        process.run()
    assert str(ended.value) == "RuntimeError: CUDA error: uncorrectable ECC error encountered"
    assert '"failed"' not in replies.getvalue()


def test_scenes_join_and_leave_without_touching_each_other(engine: Engine, tmp_path: Path) -> None:
    """A long scene with neighbours that join, are dropped, fail and end is the scene alone."""
    engine.add("long", spec("a red car", steps=60))
    engine.until(lambda m: m["scene"] == "long" and m["step"] > 0)
    engine.add("short", spec("a yellow duck", steps=5))
    engine.add("dropped", spec("a green cactus", steps=10**6))
    engine.add("bad", spec("a cactus") | {"prior_revision": "0" * 64})
    engine.add("worse", spec("a cactus") | {"recipe": {}})
    engine.add("wild", spec("a blue chair", guidance_scale=1000, lr=10, emptiness_weight=1e9))
    engine.until(lambda m: m["scene"] == "dropped")
    engine.send(type="drop", scene="dropped")
    ended = engine.ended("long", "short", "worse", "wild")
    assert {k: m["type"] for k, m in ended.items() if k in ("long", "short", "worse")} == {
        "long": "done",
        "short": "done",
        "worse": "failed",
    }
    assert ended["worse"]["error_type"]
    bad = engine.ended("bad")["bad"]  # another revision waits for the running scenes
    assert bad["error_type"] == "PriorError"
    assert "revision" in bad["error"]
    expected = in_process(spec("a red car", steps=60), tmp_path / "expected.safetensors")
    assert engine.field("long").read_bytes() == expected
    assert engine.process.poll() is None


def test_a_diverging_scene_fails_alone(engine: Engine, tmp_path: Path) -> None:
    """A checkpoint whose density overflows in the next step, beside a healthy scene."""
    from sjc_engine.optimization.scene import Scene

    prior = load_prior("toybox")
    asset = AssetSpec.from_json(spec("a red car", steps=40))
    scene = Scene(asset.prompt, "", 0, asset.recipe, prior)
    with torch.no_grad():
        scene.field.d_scale.fill_(200.0)  # its exponential is infinite
    scene.save(engine.checkpoint("bad"))
    engine.checkpoint("bad").with_name("bad.checkpoint.json").write_text("{}")
    engine.add("good", spec("a yellow duck", steps=40))
    engine.add("bad", asset.to_json())
    ended = engine.ended("good", "bad")
    assert (ended["bad"]["type"], ended["bad"]["error_type"]) == ("failed", "Diverged")
    assert "red car" in ended["bad"]["error"]
    assert ended["bad"]["history"] == {}
    assert ended["good"]["step"] == 40
    assert ended["good"]["history"]["steps"] == list(range(1, 41))


def test_a_roll_back_is_told_even_after_a_resume(engine: Engine) -> None:
    from sjc_engine.optimization.loop import step_scenes
    from sjc_engine.optimization.scene import Scene

    prior, asset = load_prior("toybox"), AssetSpec.from_json(spec("a red car", steps=4))
    scene = Scene(asset.prompt, "", 0, asset.recipe, prior)
    step_scenes([scene], prior)
    with torch.no_grad():
        scene.field.d_scale.fill_(float("nan"))
    step_scenes([scene], prior)
    scene.save(engine.checkpoint("back"))
    engine.checkpoint("back").with_name("back.checkpoint.json").write_text("{}")
    engine.add("back", asset.to_json())
    engine.add("good", spec("a yellow duck", steps=4))
    ended = engine.ended("back", "good")
    assert {name: done["rolled_back"] for name, done in ended.items()} == {
        "back": True,
        "good": False,
    }


@pytest.mark.slow
def test_the_next_process_goes_on_where_one_was_ended_or_killed(
    start: Callable[[], Engine], tmp_path: Path
) -> None:
    """Told to end it saves; killed it leaves word of the steps that are done again."""
    engine = start()
    engine.add("duck", spec("a yellow duck", steps=30))
    engine.until(lambda m: m["step"] > 0)
    engine.process.send_signal(signal.SIGINT)  # a terminal's Ctrl-C: the parent decides
    time.sleep(0.2)  # long enough for a wrong reaction
    engine.process.send_signal(signal.SIGTERM)
    assert engine.process.wait(timeout=20) == 0
    assert not engine.field("duck").exists()

    second = start()
    second.add("duck", spec("a yellow duck", steps=30))
    done = second.ended("duck")["duck"]
    assert 0 < done["first_step"] < 30
    assert done["step"] == 30
    assert done["history"]["steps"] == list(range(1, 31))
    expected = in_process(spec("a yellow duck", steps=30), tmp_path / "expected.safetensors")
    assert second.field("duck").read_bytes() == expected
    second.add("car", spec("a red car", steps=10**6))
    told = second.until(lambda m: m["step"] > 3)
    step_file = second.checkpoint("car").with_name("car.checkpoint.step")
    while not (step_file.exists() and second.checkpoint("car").exists()):
        time.sleep(0.05)
    second.process.kill()
    second.process.wait()
    word = int(step_file.read_text())
    assert word >= told["step"]

    third = start()
    third.add("car", spec("a red car", steps=10**6))
    first = third.until(lambda m: True)["first_step"]
    again = max(0, word - first)  # the checkpoint may be younger than the word
    assert f"car resumes from step {first}, {again} steps again" in third.log_text()
    third.add("pig", spec("a pig", steps=10**6))
    third.until(lambda m: m["scene"] == "pig" and m["step"] > 0)
    assert third.process.stdin is not None
    third.process.stdin.close()
    assert third.process.wait(timeout=20) == 0
    assert third.checkpoint("pig").exists()


def test_a_torn_checkpoint_is_not_used(engine: Engine) -> None:
    before = len(engine.log_text())
    engine.checkpoint("duck").write_bytes(b"not a checkpoint")
    engine.add("duck", spec("a yellow duck"))
    done = engine.ended("duck")["duck"]
    assert (done["type"], done["first_step"]) == ("done", 0)
    assert "starts again" in engine.log_text()[before:]


def test_a_process_without_its_parent_ends_at_once() -> None:
    """Before it imports torch, which takes seconds."""
    code = "import runpy, sys; sys.modules['torch'] = None;"
    code += "runpy.run_module('sjc_engine.worker', run_name='__main__')"
    worker = [sys.executable, "-c", code, "--parent", "1"]
    assert subprocess.run(worker, stdin=subprocess.DEVNULL, check=False).returncode == 3


def test_an_optional_package_is_absent_only_within_and_only_if_it_is_not_there_yet() -> None:
    sys.modules.pop("colorsys", None)
    with worker.absent("colorsys"):
        assert find_spec("colorsys") is None
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
    assert importlib.import_module("colorsys") is sys.modules["colorsys"]
    with worker.absent("colorsys"):
        assert find_spec("colorsys")
