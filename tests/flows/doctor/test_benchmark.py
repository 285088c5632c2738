"""`sjc doctor --benchmark`: every line, on the CPU and tiny, as on a machine without a GPU."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.doctor import benchmark
from sjc_engine.acceptance.checks import Bench
from sjc_engine.rendering import fused

CODE = "import sys; sys.argv = ['sjc', 'doctor', '--benchmark', '--device', 'cpu', *{!r}]\n"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    code = CODE.format(arguments) + "from flows.commands.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_every_line_on_a_cpu(tmp_path: Path) -> None:
    with start(tmp_path, "--json") as process:
        out, table = process.communicate(timeout=600)
    assert process.returncode == 0, out + table
    found = json.loads(out)
    assert found["passed"]
    assert found["device"] == "cpu"
    assert "tiny" in found["size"]
    lines = {line["name"]: line for line in found["lines"]}
    for way in ("", ", fast launch"):
        for count in (1, 2, 4, 8):
            line = lines[f"K = {count}{way}: a scene's step"]
            assert line["value"] > 0
            assert line["more"].keys() == {"assets an hour", "GB"}
        assert "not checked" in lines[f"host waits in a step{way}"]["note"]
    bounded = {name for name, line in lines.items() if line["most"] is not None}
    assert {
        "kernels, rgb: gradients, off by",
        "kernels, latent, fast launch: pictures, off by",
    } <= bounded
    assert all(name in table for name in lines), "people see what the JSON has"
    assert table.rstrip().endswith("PASS")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_kernel_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fused, "DENSITY_SHIFT", -1.001)
    monkeypatch.setattr(Bench, "checks", lambda bench: {"RGB": lambda: bench.kernels("rgb", "")})
    assert not benchmark.measure("cpu", as_json=False)
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("FAIL: kernels, rgb: pictures, off by")


@pytest.mark.slow
def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stderr
        process.stderr.readline()  # a check has begun
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "interrupted" in said
