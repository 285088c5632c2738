"""An engine process without an engine, for the device pool's tests.

Each scene says in its prompt how it behaves ("diverge", "hang", "garbage", "die", "die at 4",
"endless", "decode", "no field"), counts its steps in its checkpoint and is done after six. Every
message is also written to the file STUB_JOURNAL. STUB_ROOM: the scenes that it says it has memory
for. STUB_FITS: the scenes from which on it runs out of memory and returns the younger half.
STUB_BROKEN: the devices on which every process ends with its first scene.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from sjc_engine.spec import prior_key
from sjc_engine.worker.parent_death import die_with_parent

STEPS = 6
STEP_SECONDS = 0.02
Message = dict[str, Any]


class StubEngine:
    """Steps all of its scenes in turn, as its commands and their prompts say."""

    def __init__(self, journal: TextIO) -> None:
        self.journal = journal
        self.commands: queue.Queue[Message | None] = queue.Queue()  # None: the end
        self.scenes: dict[str, Message] = {}
        self.measured = False

    def read(self) -> None:
        for line in sys.stdin:
            self.commands.put(json.loads(line))
        self.commands.put(None)

    def note(self, message: Message) -> None:
        self.journal.write(json.dumps(message) + "\n")

    def send(self, kind: str, scene: str, **fields: Any) -> None:
        message = {"type": kind, "scene": scene, **fields}
        self.note(message | {"pid": os.getpid()})
        print(json.dumps(message), flush=True)

    def run(self) -> None:
        while self.take_commands():
            self.shed()
            for key, scene in list(self.scenes.items()):
                self.step(key, scene)
            time.sleep(STEP_SECONDS)

    def take_commands(self) -> bool:
        """Waits for a command if there is no scene; whether to go on."""
        while not self.scenes or self.commands.qsize():
            command = self.commands.get()
            if command is None:
                return False
            if command["type"] == "load":
                self.note(command | {"scene": None})
            elif command["type"] == "drop":
                self.scenes.pop(command["scene"], None)
            else:
                self.add(command)
        return True

    def add(self, command: Message) -> None:
        priors = {prior_key(scene["spec"]) for scene in [command, *self.scenes.values()]}
        assert len(priors) == 1, "one prior, in one precision, at a time"
        path = Path(command["checkpoint"])
        step = int(path.read_text()) if path.exists() else 0
        if not self.measured and "STUB_ROOM" in os.environ:
            self.measured = True
            room = {"type": "room", "scenes": int(os.environ["STUB_ROOM"]), "why": "so"}
            print(json.dumps(room), flush=True)
        self.scenes[command["scene"]] = command | {"step": step, "first": step}
        added = {"type": "add", "scene": command["scene"], "step": step, "pid": os.getpid()}
        device = sys.argv[sys.argv.index("--device") + 1]
        self.note(added | {"image": command["image"], "device": device})
        if device in os.environ.get("STUB_BROKEN", "").split(","):
            raise SystemExit("CUDA error: uncorrectable ECC error encountered")

    def shed(self) -> None:
        """Out of memory: the younger half goes back to the pool."""
        if len(self.scenes) <= int(os.environ.get("STUB_FITS", "100")):
            return
        left = len(self.scenes) // 2
        for key in list(self.scenes)[left:][::-1]:
            scene = self.scenes.pop(key)
            place = {"step": scene["step"], "first_step": scene["first"]}
            self.send("returned", key, scenes=left, error="full", **place)

    def step(self, key: str, scene: Message) -> None:
        prompt = scene["spec"]["prompt"]
        if prompt == "hang":
            time.sleep(600)
        if prompt == "garbage":
            print("not json", flush=True)
        if prompt == "decode" and scene["step"] == 0:
            for done in range(5):
                self.send("working", key, what="decoding views", done=done, total=5)
                time.sleep(0.5)
        if prompt == "no field":
            place = {"step": scene["step"], "first_step": scene["first"]}
            self.send("failed", key, error_type="ValueError", error="no field", **place)
            del self.scenes[key]
            return
        scene["step"] += 1
        Path(scene["checkpoint"]).write_text(str(scene["step"]))
        place = {"step": scene["step"], "first_step": scene["first"]}
        if prompt in ("die", f"die at {scene['step']}"):
            os.kill(os.getpid(), signal.SIGKILL)
        resident = len(self.scenes)
        if prompt == "diverge" and scene["step"] == 3:
            history = {"steps": [1, 2]}
            self.send("failed", key, error_type="Diverged", error="NaN", history=history, **place)
            del self.scenes[key]
        elif scene["step"] == STEPS and prompt != "endless":
            Path(scene["field"]).write_text(prompt)
            self.send("done", key, resident=resident, **place)
            del self.scenes[key]
        else:
            self.send("progress", key, loss=1.0, resident=resident, **place)


def main() -> None:
    if "--parent" in sys.argv:
        die_with_parent(int(sys.argv[sys.argv.index("--parent") + 1]))
    with Path(os.environ["STUB_JOURNAL"]).open("a", buffering=1) as journal:
        engine = StubEngine(journal)
        signal.signal(signal.SIGTERM, lambda *_: engine.commands.put(None))
        threading.Thread(target=engine.read, daemon=True).start()
        engine.run()
        engine.note({"type": "stopped"})


if __name__ == "__main__":
    main()
