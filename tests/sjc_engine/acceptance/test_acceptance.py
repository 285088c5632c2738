"""An acceptance run notices what is wrong, and nothing of it stops the rest."""

import contextlib
import json
import logging
import math

import pytest
import torch

from sjc_engine.acceptance import checks
from sjc_engine.acceptance.checks import Bench
from sjc_engine.acceptance.results import Line, document, run
from sjc_engine.rendering import fused

CPU = torch.device("cpu")


def made(plan, **options):
    return list(run(plan, lambda name: None, **options))


def test_errors_and_warnings_are_failed_lines_and_stop_no_other():
    def breaks():
        yield Line("before", 1.0)
        raise ZeroDivisionError("what it says\nand more")

    def warns():
        logging.getLogger("sjc_engine.rendering").warning("slower: %s", "no kernels")
        return [Line("after", 2.0, "ms", most=3.0)]

    found = made({"first": breaks, "second": warns, "third": lambda: [Line("last", 0.0, most=0.0)]})
    assert [line.name for line in found] == ["before", "first", "after", "second: warning", "last"]
    assert [line.passed for line in found] == [True, False, True, False, True]
    assert "ZeroDivisionError: what it says" in found[1].error
    assert "\n" not in found[1].error
    assert found[3].error == "slower: no kernels"


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (1.1, False), (math.nan, False)])
def test_bounds(value, passed):
    assert Line("x", value, most=1.0).passed is passed


def test_checks_beyond_the_time_are_failed_lines():
    (line,) = made({"never": lambda: pytest.fail("it began")}, seconds=-1.0)
    assert (line.name, line.passed) == ("never", False)


def test_an_interrupt_ends_the_run():
    def stops():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made({"first": stops})


@pytest.mark.parametrize(("kind", "way"), [("rgb", ""), ("latent", checks.FAST)])
def test_kernels_that_are_wrong_fail(kind, way, monkeypatch):
    assert all(line.passed for line in Bench(CPU).kernels(kind, way))
    monkeypatch.setattr(fused, "DENSITY_SHIFT", -1.001)
    assert not any(line.passed for line in Bench(CPU).kernels(kind, way))


def test_kernels_that_answer_nan_fail(monkeypatch):
    monkeypatch.setattr(fused, "BACKGROUND_DEPTH", math.nan)
    pictures, _ = Bench(CPU).kernels("rgb", "")
    assert not pictures.passed


def test_a_missing_kernel_is_a_failed_line(monkeypatch):
    monkeypatch.setattr(checks, "render_views", lambda *a, **k: 1 / 0)
    (line,) = made({"kernels": lambda: Bench(CPU).kernels("rgb", "")})
    assert "acceptance/checks.py:" in line.error


def test_too_many_scenes_for_the_memory_are_no_failure_and_one_is(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    bench = Bench(CPU)
    monkeypatch.setattr(checks, "step_scenes", full)
    first, last = made({"1": lambda: bench.speed(1, ""), "8": lambda: bench.speed(8, "")})
    assert (first.passed, last.passed) == (False, True)
    assert last.note == "does not fit in memory"


def test_a_network_that_answers_otherwise_when_launched_fast_fails(monkeypatch):
    bench = Bench(CPU)
    network = bench.prior._network
    wrong = lambda *a: 1.1 * network(*a)  # noqa: E731
    enable = lambda: monkeypatch.setattr(bench.prior, "_network", wrong)  # noqa: E731
    monkeypatch.setattr(bench.prior, "enable_fast_launch", enable)
    (line,) = bench.fast_launch()
    assert not line.passed


def test_waits_are_forbidden_within_and_allowed_again_after(monkeypatch):
    modes = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with contextlib.suppress(ZeroDivisionError), checks._waits_forbidden():
        raise ZeroDivisionError
    assert modes == [0, "error", 0]


def test_the_document_is_json():
    found = document("tiny", CPU, [Line("x", 1.0, more={"GB": 2.0}), Line("y", error="broken")])
    read = json.loads(json.dumps(found))
    assert read["passed"] is False
    assert read["machine"]["torch"] == torch.__version__
    assert [line["passed"] for line in read["lines"]] == [True, False]
    assert read["lines"][0]["more"] == {"GB": 2.0}
