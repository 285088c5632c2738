"""The manifest of a soak test: small assets, and always some more than the runners have made."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

# Opaque in its middle after 32 steps (of 576 seeds one is not after 24), and a small mesh: an asset
# of about two seconds of one core.
SMALL: dict[str, Any] = {
    "recipe": "draft", "steps": 32, "lr": 0.3, "grid_size": 16, "ray_step": 0.08,
    "emptiness_weight": 0, "depth_weight": 30, "mesh_resolution": 32, "max_faces": 2000,
    "texture_size": 128, "evaluation_size": 32, "turntable_frames": 4, "turntable_size": 32,
}  # fmt: skip
LONG = {"steps": 300}  # so long that it has checkpoints
EVERY_LONG = 8  # rows
EDITED = 10_000  # seeds from here on are of rows that were edited
PROMPTS = ("a yellow duck", "a red chair", "a green mug", "a blue car", "a toy tank", "a house")


class Manifest:
    """A CSV that grows by `ahead` rows whenever the runners have made most of it."""

    def __init__(self, path: Path, ahead: int) -> None:
        self.path, self.ahead = path, ahead
        self.ids: list[str] = []
        self._seeds: dict[str, int] = {}  # of rows that were edited
        self._reversed = False

    def grow(self, finished: int) -> None:
        """Adds rows unless there is enough to do; a reader sees the old file or the new one."""
        if len(self.ids) - finished > self.ahead / 2:
            return
        self.ids += [f"s{n:04d}" for n in range(len(self.ids), len(self.ids) + self.ahead)]
        self._write()

    def edit(self, chance: random.Random) -> None:
        """The rows in the opposite order, and one of them asks for another asset."""
        name = chance.choice(self.ids)
        self._seeds[name] = EDITED + len(self._seeds)
        self._reversed = not self._reversed
        self._write()

    def _write(self) -> None:
        rows = [self._row(number, name) for number, name in enumerate(self.ids)]
        rows = rows[::-1] if self._reversed else rows
        temporary = self.path.with_suffix(".new")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)

    def _row(self, number: int, name: str) -> dict[str, Any]:
        seed = self._seeds.get(name, number)
        row = {"id": name, "prompt": PROMPTS[number % len(PROMPTS)], **SMALL, "seed": seed}
        return row | (LONG if number % EVERY_LONG == EVERY_LONG - 1 else {})
