"""Memory: how many scenes fit, and what happens when they do not."""

import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scarce_engine
import torch
from engine_process import Engine, in_process, spec

from sjc_engine import load_prior, memory
from sjc_engine.memory import MOST_SCENES, Capacity, MemoryProbe, out_of_memory
from sjc_engine.optimization.scene import Diverged, Scene
from sjc_engine.priors.denoiser import Prior
from sjc_engine.worker import __main__ as worker

GB = 10**9


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def one(kind: str, limit: int) -> Engine:
        command = [sys.executable, scarce_engine.__file__, kind, str(limit)]
        engines.append(Engine(tmp_path, command))
        return engines[-1]

    yield one
    for engine in engines:
        engine.close()


def test_what_allocators_raise_is_known() -> None:
    """The CPU's own words, from a real failure; Python's; CUDA's class; and no other error."""
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(1 << 50, dtype=torch.uint8)
    with pytest.raises(MemoryError) as pythons:
        bytearray(1 << 50)
    assert out_of_memory(torchs.value)
    assert out_of_memory(pythons.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2) @ torch.zeros(3)
    assert not out_of_memory(other.value)
    assert not out_of_memory(OSError(12, "Cannot allocate memory: out of memory"))


def test_an_allocation_that_really_fails_under_a_limit_is_known() -> None:
    code = """
        import resource, torch
        from sjc_engine.memory import out_of_memory
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        kept = []  # nothing is written to it: pages that nobody touches cost no time
        try:
            while len(kept) < 1000:
                kept.append(torch.empty(64 << 20, dtype=torch.uint8))
        except Exception as error:
            print(type(error).__name__, out_of_memory(error), 0 < len(kept) < 64)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "RuntimeError True True\n"


def test_the_room_is_what_is_free_by_what_a_scene_takes() -> None:
    assert Capacity(each=2 * GB, free=9 * GB).scenes == 4  # a tenth is left alone
    assert Capacity(each=2 * GB, free=1 * GB).scenes == 1  # it has to be tried
    assert Capacity(each=1, free=80 * GB).scenes == MOST_SCENES
    assert str(Capacity(2 * GB, 9 * GB)) == "4 (a scene takes 2.00 GB of 9.0 GB free)"
    assert str(Capacity(GB, 70 * GB)).endswith("70.0 GB free, 8 at most)")


def test_a_device_is_gauged_once_for_a_prior_by_the_peak_of_its_first_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch.cuda's numbers are made up: 3 GB allocated before, 5 at most, 8 kept, 10 free."""
    peaks = []
    numbers = {"memory_allocated": 3 * GB, "max_memory_allocated": 5 * GB}
    for name, value in (numbers | {"memory_reserved": 8 * GB}).items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", peaks.append)
    assert MemoryProbe(torch.device("cuda:1")).capacity(1) == Capacity(2 * GB, 15 * GB)
    assert MemoryProbe(torch.device("cuda:1")).capacity(2) == Capacity(1 * GB, 15 * GB)
    assert peaks == [torch.device("cuda:1")] * 2

    def on_cpu(id: str, revision: str, *_: Any, **__: Any) -> Prior:
        return load_prior(id, revision)

    monkeypatch.setattr(worker, "load_prior", on_cpu)
    told = drive(worker.Worker("cuda:1", Replies()), tmp_path, steps=4)
    rooms = [message for message in told if message["type"] == "room"]
    assert [room["scenes"] for room in rooms] == [8]
    assert "a scene takes 1.00 GB of 15.0 GB" in rooms[0]["why"]
    before = told[: told.index(rooms[0])]
    assert not [m for m in before if m["type"] == "done"]


def test_a_scene_that_leaves_goes_on_from_its_last_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Memory runs out once, in the fourth step of two scenes."""
    calls: list[int] = []
    step = worker.try_step

    def scarce(scenes: list[Scene], *more: Any) -> Any:
        calls.append(len(scenes))
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(scenes, *more)

    monkeypatch.setattr(worker, "try_step", scarce)
    told = drive(worker.Worker("cpu", Replies()), tmp_path, steps=8)
    [left] = [message for message in told if message["type"] == "returned"]
    assert (left["scene"], left["step"], left["scenes"]) == ("b", 3, 1)
    assert calls[:5] == [2, 2, 2, 2, 1]
    done = {m["scene"]: m for m in told if m["type"] == "done"}
    assert (done["a"]["first_step"], done["b"]["first_step"]) == (0, 3)
    for name in "ab":
        expected = in_process(spec(name, steps=8), tmp_path / "expected.safetensors")
        assert (tmp_path / name).read_bytes() == expected


def test_news_of_a_divergence_between_steps_ends_that_scene_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU what the last step measured is read when somebody asks whether it was the last."""
    done = Scene.done.fget
    assert done is not None

    def asked(scene: Scene) -> bool:
        if (scene.prompt, scene.step) == ("a", 4):
            raise Diverged([scene])
        return done(scene)

    monkeypatch.setattr(Scene, "done", property(asked))
    told = drive(worker.Worker("cpu", Replies()), tmp_path, steps=4)
    ended = {m["scene"]: m for m in told if m["type"] in ("done", "failed")}
    assert (ended["a"]["type"], ended["a"]["error_type"]) == ("failed", "Diverged")
    assert ended["b"]["type"] == "done"


class Replies(io.StringIO):
    """What an engine in this process says; `heard` hears each message as it comes."""

    heard: Callable[[dict[str, Any]], None]

    def write(self, line: str) -> int:
        self.heard(json.loads(line))
        return super().write(line)


def drive(engine: worker.Worker, folder: Path, steps: int) -> list[dict[str, Any]]:
    """Runs scenes a and b to their end, and adds one that is returned when the other has ended."""
    told: list[dict[str, Any]] = []
    ended: set[str] = set()
    away: list[str] = []

    def add(name: str) -> None:
        paths = {"field": str(folder / name), "checkpoint": str(folder / f"{name}.checkpoint")}
        scene = spec(name, steps=steps)
        engine.commands.put({"type": "add", "scene": name, "spec": scene, **paths})

    def heard(message: dict[str, Any]) -> None:
        told.append(message)
        if message["type"] == "returned":
            away.append(message["scene"])
        elif message["type"] in ("done", "failed"):
            ended.add(message["scene"])
            if away:
                add(away.pop())
            elif len(ended) == 2:
                engine.commands.put(None)

    assert isinstance(engine.replies, Replies)
    engine.replies.heard = heard
    add("a")
    add("b")
    engine.run()
    return told


def test_free_memory_is_that_of_this_machine() -> None:
    free = memory.free_memory()
    assert free is None or 0 < free < 1 << 50


@pytest.mark.slow
def test_a_network_that_is_out_of_memory_halves_the_scenes(
    start: Callable[..., Engine], tmp_path: Path
) -> None:
    """Four scenes, room for two: two leave, come back, and nobody's result knows of it."""
    names = ["a", "b", "c", "d"]
    engine = start("batch", 4)  # a scene asks twice
    for name in names:
        engine.add(name, spec(f"thing {name}"))
    away = [engine.until(lambda m: m["type"] == "returned") for _ in range(2)]
    assert [m["scene"] for m in away] == ["d", "c"]
    assert {m["scenes"] for m in away} == {2}
    assert "CUDA out of memory: 8 pictures" in away[0]["error"]
    ended = engine.ended("a", "b")
    for name in ("c", "d"):
        engine.add(name, spec(f"thing {name}"))
    ended |= engine.ended("c", "d")
    assert [ended[name]["type"] for name in names] == ["done"] * 4
    engine.add("e", spec("thing e", views_per_step=4))
    alone = engine.ended("e")["e"]
    assert (alone["type"], alone["error_type"]) == ("failed", "OutOfMemory")
    assert "no memory for this scene alone on cpu: CUDA out of memory: 8 pictures" in alone["error"]
    engine.add("f", spec("thing f"))  # the process is none the worse
    assert engine.ended("f")["f"]["type"] == "done"
    expected = in_process(spec("thing f"), tmp_path / "expected.safetensors")
    assert engine.field("f").read_bytes() == expected


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is Linux's")
def test_real_allocations_that_fail_halve_the_scenes_and_change_nothing(
    start: Callable[..., Engine], tmp_path: Path
) -> None:
    """Two scenes are under way when two more want memory that there is not."""
    large = {"grid_start": 0, "grid_size": 96, "render_size": 32, "ray_step": 0.1, "steps": 6}
    engine = start("bytes", 260 << 20)
    names = ["a", "b", "c", "d"]
    for name in names[:2]:
        engine.add(name, spec(f"thing {name}", **large))
    engine.until(lambda m: m["scene"] == "b" and m["step"] > 0)
    ended: dict[str, Any] = {}
    left: list[str] = []
    for name in names[2:]:
        engine.add(name, spec(f"thing {name}", **large))
    returned: list[str] = []
    while len(ended) < len(names):
        message = engine.until(lambda m: m["type"] != "progress")
        assert message["type"] in ("returned", "done"), message
        if message["type"] == "returned":
            returned.append(message["scene"])
            continue
        ended[message["scene"]] = message
        if returned and len(ended) + len(returned) == len(
            names
        ):  # whoever left comes back to an empty engine
            again = returned.pop()
            engine.add(again, spec(f"thing {again}", **large))
            left.append(again)
    assert left
    assert "allocate" in (tmp_path / "log").read_text()
    for name in names:
        expected = in_process(spec(f"thing {name}", **large), tmp_path / "expected.safetensors")
        assert engine.field(name).read_bytes() == expected
