"""Stable Diffusion 1.5 at real size, from a manifest to a textured GLB, by `sjc run` on a CPU.

    python benchmarks/stable_diffusion.py [--folder DIR] [--set key=value ...] [--json FILE]

The model is a folder of SD 1.5's layout and shapes, fp16 safetensors, with random weights and a
vocabulary of its own: nothing is downloaded. `--folder` keeps it, and takes it from there the next
time. Everything has its real size; only the steps and the decoded views are few.

Figures:

silence   longest time without a line of progress, from the command's start to its end; and the
          most CPU seconds of the run and its engine meanwhile, which other work does not change
engine    the engine process's peak of resident memory, as the kernel counts it
stages    seconds, and resident memory at most of the engine and of `sjc run` itself, sampled
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from report import Report

SET = {"steps": "4", "distill_views": "4", "distill_steps": "40"} | {
    # Random weights show no object: one is made of what is near the middle of the four views
    "depth_weight": "1e6",
    "density_lr": "3",
}
ROWS = 49_408  # of the text encoder's embedding
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
# What a line of progress says is done: "thing: step 2/4, ...", "thing: decoding views 1/4"
STAGE = re.compile(r"thing: ([a-z ]+?)(?: \d+/\d+.*)?")
PROGRAM = "from flows.commands.main import main; main()"  # `sjc`, of this code
SECONDS = 0.2  # between two looks at processes


def build_model(folder: Path) -> None:
    """SD 1.5's files, but for the safety checker's, which nobody reads; about 2.1 GB."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from sjc_engine.acceptance.random_prior import SCHEDULE, SD15, SD15_VAE

    text = CLIPTextConfig(
        vocab_size=ROWS,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        projection_dim=768,
        bos_token_id=ROWS - 2,
        eos_token_id=ROWS - 1,
        pad_token_id=ROWS - 1,
    )
    for name, make in (
        ("unet", lambda: UNet2DConditionModel(**SD15)),
        ("vae", lambda: AutoencoderKL(**SD15_VAE)),
        ("text_encoder", lambda: CLIPTextModel(text)),
    ):
        torch.manual_seed(0)
        model: Any = make()
        model.half().save_pretrained(folder / name, variant="fp16")
        print(f"{name}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million", flush=True)
        del model
    options = {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
    scheduler: Any = PNDMScheduler(**SCHEDULE, **options)
    scheduler.save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(INDEX))  # written last: it is whole


def write_tokenizer(folder: Path) -> None:
    """CLIP's byte-level BPE with as many words as the real one: pairs of bytes, pairs of pairs."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    ends = [letter + "</w>" for letter in letters]
    count = ROWS - len(letters) - len(ends) - 2
    pairs = [(a, b) for a in letters for b in ends + letters][:count]
    words = [*letters, *ends, *(a + b for a, b in pairs), "<|startoftext|>", "<|endoftext|>"]
    assert len(set(words)) == ROWS
    folder.mkdir(parents=True, exist_ok=True)
    merges = ["#version: 0.2", *(f"{a} {b}" for a, b in pairs), ""]
    (folder / "merges.txt").write_text("\n".join(merges), "utf-8")
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    special = {"bos_token": "<|startoftext|>"}
    special |= dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special))


@dataclass
class Watched:
    """What was seen of a run: its lines, and the memory of its processes."""

    silence: float = 0.0  # seconds, the longest
    after: str = ""  # the line before it
    silence_cpu: float = 0.0  # CPU seconds, the most between two lines
    after_cpu: str = ""
    engines: set[int] = field(default_factory=set)  # process ids
    cpu: dict[int, float] = field(default_factory=dict)  # seconds, by process id
    engine_peak: int = 0  # bytes, of the kernel's own count
    stages: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, stage: str) -> None:
        self.stages.append({"stage": stage, "seconds": 0.0, "engine MB": 0.0, "run MB": 0.0})

    def look(self, pid: int) -> None:
        """The memory of a run and of its engine right now."""
        found = self.stages[-1]
        found["run MB"] = max(found["run MB"], status(pid, "VmRSS") / 1e6)
        self.cpu[pid] = max(self.cpu.get(pid, 0.0), cpu_seconds(pid))
        for child in children(pid):
            try:
                is_engine = b"sjc_engine.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if is_engine:
                self.engines.add(child)
                self.cpu[child] = max(self.cpu.get(child, 0.0), cpu_seconds(child))
                self.engine_peak = max(self.engine_peak, status(child, "VmHWM"))
                found["engine MB"] = max(found["engine MB"], status(child, "VmRSS") / 1e6)


def watch(command: list[str]) -> Watched:
    """Runs a command that ends well; its lines are printed with their seconds."""
    watched, lines = Watched(), queue.Queue[str | None]()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    threading.Thread(target=read, args=(process.stdout, lines), daemon=True).start()
    began = last = time.monotonic()
    line: str | None = "the start"
    cpu = 0.0
    watched.enter("start")
    while line is not None:
        watched.look(process.pid)
        with contextlib.suppress(queue.Empty):
            before, line, now = line, lines.get(timeout=SECONDS), time.monotonic()
            used, cpu = sum(watched.cpu.values()) - cpu, sum(watched.cpu.values())
            if used > watched.silence_cpu:
                watched.silence_cpu, watched.after_cpu = used, before
            watched.stages[-1]["seconds"] += now - last
            if now - last > watched.silence:
                watched.silence, watched.after = now - last, before
            last = now
            if line is not None:
                print(f"{now - began:7.1f} s  {line}", flush=True)
                stage = STAGE.fullmatch(line)
                if stage and stage[1] != watched.stages[-1]["stage"]:
                    watched.enter(stage[1])
    if process.wait():
        raise SystemExit(f"exit code {process.returncode}")
    return watched


def read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip())
    lines.put(None)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    try:
        return [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:
        return []


def status(pid: int, name: str) -> int:
    """Bytes, by a name of /proc/PID/status; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def cpu_seconds(pid: int) -> float:
    """Of a process's threads so far; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="of the model; made if it is not there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    changes = SET | dict(pair.split("=", 1) for pair in arguments.set)
    report = Report("stable_diffusion", changes, ("torch", "diffusers", "transformers"))
    with tempfile.TemporaryDirectory(prefix="sd15-") as place:
        measure(report, Path(place), arguments.folder or Path(place, "sd15"), changes)
    report.write_json(arguments.json)


def measure(report: Report, place: Path, model: Path, changes: dict[str, str]) -> None:
    if not (model / "model_index.json").exists():
        # In a process that ends, and its memory with it
        builder = multiprocessing.get_context("spawn").Process(target=build_model, args=(model,))
        builder.start()
        builder.join()
        if builder.exitcode:
            raise SystemExit(f"the model could not be built: exit code {builder.exitcode}")
    (place / "list.csv").write_text("id,prompt\nthing,a DSLR photo of a wooden chair\n")
    store = str(place / "store")
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-c", PROGRAM, "run", str(place / "list.csv")]
    command += ["--prior", str(model), "--devices", "cpu", "--store", store]
    watched = watch([*command, "--scratch", str(place / "scratch"), *sets])
    report.table("stages", watched.stages)
    row, textures, faces = asset(store)
    report.table("as the table `assets` has it", [row])
    from tasks.devices.pool import DevicePool

    print(f"the longest silence came after: {watched.after}; by CPU seconds: {watched.after_cpu}")
    report.figure("longest silence", watched.silence, "s", "<= 30")
    report.figure("most CPU seconds between two lines", watched.silence_cpu, "s", "<= 30")
    report.figure("watchdog, as users have it: silence allowed", DevicePool.silence, "s")
    report.figure("engine processes", len(watched.engines), "", "<= 1")
    report.figure("engine, peak", watched.engine_peak / 2**30, "GiB", "<= 8")
    report.figure("faces of the mesh", faces, "", ">= 1")
    report.figure("texels of its texture", textures, "", ">= 1")


def asset(store: str) -> tuple[dict[str, Any], int, int]:
    """The one row, the texels of its GLB's texture, and the GLB's faces."""
    import trimesh

    from tasks.store import open_store
    from tasks.tables.read import query

    seconds = [f"seconds_{name}" for name in ("optimize", "extract", "evaluate", "publish")]
    columns = ["status", *seconds, "peak_memory_bytes", "bytes_total"]
    rows = query(open_store(store, writable=False), f"SELECT {', '.join(columns)} FROM assets")
    (path,) = Path(store).glob("assets/*/*/mesh.glb")
    mesh: Any = trimesh.load(path, force="mesh")
    width, height = mesh.visual.material.baseColorTexture.size
    return rows.to_pylist()[0], width * height, len(mesh.faces)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
