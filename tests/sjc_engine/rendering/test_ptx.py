"""The CUDA kernels and their launches without a GPU: compiled for real, launched on no driver.

In an environment of its own (scripts/install-cuda-compiler, `make ptx`).
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv" / "ptx" / "bin" / "python"
# Registers that a thread may have with full occupancy of half the warps: 65,536 for 1,024 threads
REGISTERS = 64
ATOMICS = {"_colors": 1, "_color_adjoint": 8}  # for each channel
DENSITY_ATOMICS = {"_density_scatter": 8}

pytestmark = [pytest.mark.slow, pytest.mark.system]


def report(folder, *arguments):
    assert PYTHON.exists(), "run `make ptx`, which installs the compiler"
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "support" / "compiled_kernels.py", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("numba")


@pytest.fixture(scope="module")
def found(cache):
    return report(cache)


def test_kernels_compile_for_every_gpu(found):
    names = {kernel["kernel"] for kernel in found["kernels"]}
    assert len(names) == 7
    for gpu in ("sm_80", "sm_90", "sm_120"):
        mine = [kernel for kernel in found["kernels"] if kernel["gpu"] == gpu]
        assert {kernel["kernel"] for kernel in mine} == names
        # Those that know colours are compiled for three channels and for four
        assert len(mine) == 11


@pytest.mark.parametrize(
    "count", ["stack", "spilled", "local", "calls", "float64", "other atomics"]
)
def test_kernels_live_in_registers_and_compute_in_float32(found, count):
    assert [kernel for kernel in found["kernels"] if kernel[count]] == []


def test_kernels_leave_registers_for_other_threads(found):
    assert max(kernel["registers"] for kernel in found["kernels"]) <= REGISTERS


def test_sums_are_atomic_where_threads_meet_and_nowhere_else(found):
    for kernel in found["kernels"]:
        name, atomics = kernel["kernel"], kernel["atomics"]
        wanted = {DENSITY_ATOMICS.get(name, 0)}
        if name in ATOMICS:
            wanted = {3 * ATOMICS[name], 4 * ATOMICS[name]}
        assert atomics in wanted, kernel


@pytest.mark.parametrize("channels", ["3", "4"])
def test_flat_launches_hand_over_what_numba_hands_over(found, channels):
    launches = found["launches"][channels]
    assert launches["kernels"] == 7
    assert launches["parameters"] > 800
    assert launches["same"]


@pytest.mark.parametrize("channels", ["3", "4"])
def test_launches_are_in_order_of_torchs_stream_and_leave_nothing_behind(found, channels):
    launches = found["launches"][channels]
    assert launches["stream"]
    assert launches["streams made"] <= 1
    assert launches["contexts pushed"] == 0


def test_flat_launches_take_the_cpu_less_than_half_a_millisecond(found):
    """On a quiet machine 0.2 ms; Numba's take 3 ms."""
    for spent in found["milliseconds"].values():
        assert spent["flat"] <= 0.4
        assert spent["flat"] < spent["numba"] / 4


def test_another_start_compiles_nothing(found, cache):
    assert found["compilations"] == 11
    assert report(cache, "--launches")["compilations"] == 0
