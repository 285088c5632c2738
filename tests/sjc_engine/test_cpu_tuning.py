"""What is asked of the C library and the processor."""

import os
import platform
import resource
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from sjc_engine import Recipe, load_prior, optimize
from sjc_engine.rendering.fused import _pool


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """What a step of 100^3 voxels wants, again and again: it costs page faults once."""
    code = """
        import resource, sys, torch
        from sjc_engine.cpu_tuning import keep_freed_memory
        def step():
            held = [torch.zeros(megabytes << 20, dtype=torch.uint8) for megabytes in (16, 20, 16)]
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10): step()
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        keep_freed_memory()
        faults()  # until the heap is large enough
        print(faults())
    """
    counts = []
    for given in ({}, {"MALLOC_MMAP_THRESHOLD_": "131072"}):  # kept, and as the user says: not
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **given},
        )
        counts.append(int(ran.stdout))
    pages = 10 * (52 << 20) // resource.getpagesize()
    assert counts[0] < pages / 20
    assert counts[1] > pages / 20


def vanishes() -> bool:
    """Whether a subnormal number is zero for this thread."""
    return float(torch.tensor(1e-39) * torch.tensor(0.5)) == 0


def test_a_thread_that_steps_scenes_and_those_that_render_for_it_have_no_subnormals() -> None:
    prior = load_prior("toybox")
    recipe = Recipe.for_prior(prior, "draft").override({"steps": 1, "grid_size": 8})
    found = []

    def run() -> None:
        optimize(["a yellow duck"], prior, recipe)
        found.append(vanishes())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [True]
    assert _pool(1).submit(vanishes).result()
