"""The engine process, as its parent speaks with it, and the library that it has to equal."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sjc_engine import Recipe, load_prior, optimize
from sjc_engine.priors.sources import find_prior
from sjc_engine.spec import AssetSpec

WORKER = (sys.executable, "-m", "sjc_engine.worker")
TINY = {"grid_size": 12, "ray_step": 0.1, "views_per_step": 1}


def spec(prompt: str, steps: int = 8, seed: int = 0, **overrides: Any) -> dict[str, Any]:
    recipe = Recipe.for_prior("toybox").override({**TINY, "steps": steps, **overrides})
    revision = find_prior("toybox").revision
    return AssetSpec(prompt, "", None, seed, "toybox", revision, recipe).to_json()


class Engine:
    """A worker process; messages come back through a queue. folder: for the scenes' files."""

    def __init__(self, folder: Path, command: Sequence[str] = WORKER) -> None:
        self.folder = folder
        self.log = (folder / "log").open("a")
        self.process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.work: list[dict[str, Any]] = []  # what it said of work that is no step
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            (self.work.append if message["type"] == "working" else self.messages.put)(message)
        self.messages.put(None)

    def send(self, **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def add(self, name: str, spec: dict[str, Any], **more: Any) -> None:
        paths = {"field": str(self.field(name)), "checkpoint": str(self.checkpoint(name))}
        self.send(type="add", scene=name, spec=spec, **paths, **more)

    def field(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def checkpoint(self, name: str) -> Path:
        return self.folder / f"{name}.checkpoint"

    def log_text(self) -> str:
        return Path(self.log.name).read_text()

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first message that `wanted` accepts; what comes before it is dropped."""
        while True:
            message = self.messages.get(timeout=60)
            if message is None:
                self.messages.put(None)  # for `close`
                raise AssertionError(self.log_text())
            if wanted(message):
                return message

    def ended(self, *names: str) -> dict[str, dict[str, Any]]:
        """The `done` or `failed` message of every named scene."""
        result: dict[str, dict[str, Any]] = {}
        while set(result) < set(names):
            message = self.until(lambda m: m["type"] != "progress")
            result[message["scene"]] = message
        return result

    def close(self) -> int:
        self.process.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        code = self.process.wait()
        while self.messages.get() is not None:
            pass
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()
        return code


def in_process(spec_json: dict[str, Any], path: Path) -> bytes:
    """The bytes of the same scene's field from the engine as a library: the oracle."""
    asset = AssetSpec.from_json(spec_json)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        prior = load_prior("toybox")
        (field,) = optimize([asset.prompt], prior, asset.recipe, seeds=[asset.seed])
    finally:
        torch.set_num_threads(threads)
    field.save(path)
    return path.read_bytes()
