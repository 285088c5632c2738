"""The device pool against a scripted engine: queueing, timeouts, deaths, endings."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stub_engine

from sjc_engine.memory import MOST_SCENES
from tasks.devices.device import MOST_DEATHS
from tasks.devices.engine import numba_cache
from tasks.devices.job import Job, SceneError
from tasks.devices.pool import ENGINE, DevicePool

STUB = (sys.executable, stub_engine.__file__)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "journal"
    path.touch()
    monkeypatch.setenv("STUB_JOURNAL", str(path))
    return path


def pool(tmp_path: Path, devices: list[str], **options: Any) -> DevicePool:
    return DevicePool(devices, tmp_path, command=STUB, **options)


def weights(prior: str, dtype: str = "auto") -> dict[str, Any]:
    """What a spec says of its prior."""
    recipe = {"optimize": {"dtype": dtype}}
    return {"prior": prior, "prior_revision": "1", "recipe": recipe}


def run(pool: DevicePool, tmp_path: Path, prompt: str, name: str = "", **options: Any) -> Any:
    """Runs one scene; an error is returned, so that threads can be compared."""
    dtype = options.pop("dtype", "auto")
    spec = {"prompt": prompt} | weights(options.pop("prior", "p"), dtype)
    name = name or prompt.replace(" ", "-")
    try:
        return pool.run(
            spec, field=tmp_path / f"{name}.field", checkpoint=tmp_path / f"{name}.ck", **options
        )
    except SceneError as error:
        return error


def events(journal: Path, kind: str = "") -> list[dict[str, Any]]:
    """What the engine processes said; "add": which scenes they took; "stopped": their ends."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    said = [line for line in lines if line["type"] not in ("add", "stopped")]
    return [line for line in lines if line["type"] == kind] if kind else said


def test_a_scene_runs_and_reports(tmp_path: Path, journal: Path) -> None:
    seen: list[int] = []
    with pool(tmp_path, ["cpu"]) as devices:
        result = run(devices, tmp_path, "duck", on_progress=lambda e: seen.append(e["step"]))
    assert result["step"] == 6
    assert result["device"] == "cpu"
    assert result["seconds_queue"] < 5
    assert seen == [1, 2, 3, 4, 5]
    assert (tmp_path / "duck.field").read_text() == "duck"
    assert [event["image"] for event in events(journal, "add")] == [None]


def test_an_engine_is_told_where_the_picture_is(tmp_path: Path, journal: Path) -> None:
    with pool(tmp_path, ["cpu"]) as devices:
        run(devices, tmp_path, "duck", image=Path("/pictures/duck.png"))
    assert [event["image"] for event in events(journal, "add")] == ["/pictures/duck.png"]


@pytest.mark.parametrize(("count", "together"), [(1, 1), (3, 3)])
def test_scenes_per_device_is_a_bound(
    tmp_path: Path, journal: Path, count: int, together: int
) -> None:
    with pool(tmp_path, ["cpu"], scenes_per_device=count) as devices, ThreadPoolExecutor(6) as many:
        results = list(many.map(lambda n: run(devices, tmp_path, "duck", f"d{n}"), range(6)))
    assert [r["step"] for r in results] == [6] * 6
    assert max(e["resident"] for e in events(journal)) == together
    assert len({e["pid"] for e in events(journal)}) == 1


def wait_for_loads(journal: Path, count: int) -> None:
    """Until so many processes have been told to load a prior."""
    deadline = time.monotonic() + 30
    while len(events(journal, "load")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_devices_share_the_queue(tmp_path: Path, journal: Path) -> None:
    with pool(tmp_path, ["cpu", "cpu"]) as devices, ThreadPoolExecutor(4) as many:
        devices.warm_up([weights("toybox")] * 2)
        wait_for_loads(journal, 2)  # a process takes longer to start than to do a scene
        list(many.map(lambda n: run(devices, tmp_path, "duck", f"d{n}"), range(4)))
    done = [e["pid"] for e in events(journal, "done")]
    assert sorted(done.count(pid) for pid in set(done)) == [2, 2]


def test_a_scene_goes_to_the_emptiest_device(tmp_path: Path, journal: Path) -> None:
    engines = pool(tmp_path, ["cuda:0", "cuda:1"], scenes_per_device=2)
    with engines as devices, ThreadPoolExecutor(2) as many:
        jobs = [many.submit(run, devices, tmp_path, "duck", f"d{n}") for n in range(2)]
        assert {job.result()["device"] for job in jobs} == {"cuda:0", "cuda:1"}


@pytest.mark.parametrize(("key", "other"), [("prior", "q"), ("dtype", "bfloat16")])
@pytest.mark.parametrize("together", [1, 2])
def test_one_prior_at_a_time_on_a_device(
    tmp_path: Path, journal: Path, together: int, key: str, other: str
) -> None:
    """The stub asserts that its scenes share a prior; work of one prior is not interleaved."""
    priors = ["p", "q", "p", "q", "p", "q"]
    options = {"p": {}, "q": {key: other}}

    def one(n: int) -> Any:
        time.sleep(0.05 * n)  # a fixed order of arrival
        return run(devices, tmp_path, "duck", f"d{n}", **options[priors[n]])

    engines = pool(tmp_path, ["cpu"], scenes_per_device=together)
    with engines as devices, ThreadPoolExecutor(6) as many:
        assert [r["step"] for r in many.map(one, range(6))] == [6] * 6
    order = [priors[int(e["scene"][1])] for e in events(journal, "done")]
    assert "".join(order) in ("pppqqq", "ppqqqp")


def test_scenes_without_memory_wait_and_fewer_run_together(
    tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Room for three: of six, three leave, and come back as the others end; it is said once."""
    monkeypatch.setenv("STUB_FITS", "3")
    with pool(tmp_path, ["cpu"], scenes_per_device=6) as devices, ThreadPoolExecutor(6) as many:
        futures = [many.submit(run, devices, tmp_path, "duck", f"d{n}") for n in range(6)]
        results = [future.result() for future in futures]
        assert devices.slots <= 3
    assert [(r["first_step"], r["step"]) for r in results] == [(0, 6)] * 6
    assert max(e["resident"] for e in events(journal) if "resident" in e) <= 3
    assert len({e["pid"] for e in events(journal)}) == 1
    returned = events(journal, "returned")
    assert returned
    told = [r.message for r in caplog.records if "out of memory" in r.message]
    assert len(told) == len({e["scenes"] for e in returned})
    assert told[0].startswith("cpu: out of memory; continuing with")


def test_time_in_the_queue_does_not_count_against_a_returned_scene(
    tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FITS", "1")
    with pool(tmp_path, ["cpu"], scenes_per_device=2) as devices, ThreadPoolExecutor(2) as many:
        long = many.submit(run, devices, tmp_path, "endless", timeout=1.5)
        while not events(journal):
            time.sleep(0.02)
        short = many.submit(run, devices, tmp_path, "duck", timeout=1.0)
        assert (long.result().status, short.result()["step"]) == ("timeout", 6)


@pytest.mark.parametrize("how", ["returned", "lost its process"])
def test_a_scene_that_begins_again_keeps_the_time_that_it_has_spent(
    tmp_path: Path, how: str
) -> None:
    with pool(tmp_path, ["cpu"]) as devices:
        [device] = devices._devices
        job = Job("k", {}, ("p",), 0.0, taken=time.monotonic() - 100, spent=20.0)
        with devices._changed:
            device.active.append(job)
            if how == "returned":
                devices._on_returned(device, job, {"scenes": device.room, "error": ""})
            else:
                devices._take_back(device, "it died")
            assert device.active == [job]
            device.active.remove(job)  # it has room, and takes it again
    assert 120 <= job.spent < 150


@pytest.mark.parametrize("how", ["returned", "lost its process"])
def test_a_scene_that_begins_again_comes_before_those_that_wait(tmp_path: Path, how: str) -> None:
    with pool(tmp_path, ["cpu"]) as devices, devices._changed:
        [device] = devices._devices
        again, *waiting = (Job(key, {}, ("p",), 0.0) for key in "abc")
        device.active, devices._waiting, device.room = [again], list(waiting), 0
        if how == "returned":
            devices._on_returned(device, again, {"scenes": 0, "error": ""})
        else:
            devices._take_back(device, "it died")
        assert devices._waiting == [again, *waiting]
        devices._waiting = []


def test_silence_is_counted_from_when_a_device_has_something_to_say(tmp_path: Path) -> None:
    with pool(tmp_path, ["cpu"], scenes_per_device=2) as devices, devices._changed:
        [device] = devices._devices
        device.heard, before = 0.0, time.monotonic()
        devices._give(device, Job("a", {}, ("p",), 0.0))
        assert device.heard >= before
        device.heard = 1.0
        devices._give(device, Job("b", {}, ("p",), 0.0))
        assert device.heard == 1.0, "a new scene is no word of the device"
        device.active = []


def test_auto_begins_with_one_scene_and_goes_on_with_what_there_is_room_for(
    tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("STUB_ROOM", "3")
    auto = pool(tmp_path, ["cuda:0"], scenes_per_device=None)
    with auto as devices, ThreadPoolExecutor(6) as many:
        assert devices.slots == MOST_SCENES
        list(many.map(lambda n: run(devices, tmp_path, "duck", f"d{n}"), range(6)))
        assert devices.slots == 3
    assert max(e["resident"] for e in events(journal)) == 3
    assert [r.message for r in caplog.records] == ["scenes per device on cuda:0: so"]


def test_auto_is_one_scene_on_a_cpu_and_says_so_once(
    tmp_path: Path, journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    auto = pool(tmp_path, ["cpu", "cpu"], scenes_per_device=None)
    with auto as devices, ThreadPoolExecutor(4) as many:
        assert devices.slots == 2
        list(many.map(lambda n: run(devices, tmp_path, "duck", f"d{n}"), range(4)))
    assert max(e["resident"] for e in events(journal)) == 1
    one = "scenes per device on cpu: 1 (side by side they take as long)"
    assert [r.message for r in caplog.records] == [one]
    caplog.clear()
    for names, said in ((["cuda:0", "cpu"], [one]), (["cuda:0"], [])):
        with pool(tmp_path, names, scenes_per_device=None):
            assert [r.message for r in caplog.records] == said
        caplog.clear()
    with pool(tmp_path, ["cpu"], scenes_per_device=2):
        assert not caplog.records


def test_processes_start_before_their_scenes_where_they_will_be_wanted(
    tmp_path: Path, journal: Path
) -> None:
    with pool(tmp_path, ["cpu", "cpu", "cpu"]) as devices:
        devices.warm_up([weights("toybox")] * 2)
        wait_for_loads(journal, 2)
        engines = list(devices._engines.values())
        first = engines[0].process
        assert [e.process is not None for e in engines] == [True, True, False]
        assert run(devices, tmp_path, "duck")["step"] == 6
        assert engines[0].process is first
    assert [e["spec"]["prior"] for e in events(journal, "load")] == ["toybox"] * 2


@pytest.mark.parametrize(
    ("early", "scene", "said"),
    [(True, False, ["load"]), (True, True, ["add"]), (False, True, ["add"]), (False, False, [])],
)
def test_a_process_that_has_a_scene_by_then_loads_its_prior_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool, scene: bool, said: list[str]
) -> None:
    sent: list[str] = []
    with pool(tmp_path, ["cpu"]) as devices, devices._changed:  # so no process starts meanwhile
        monkeypatch.setattr(devices, "_send", lambda _, message: sent.append(message["type"]))
        [device] = devices._devices
        device.early = weights("toybox") if early else None
        device.active = [Job("a scene", {"type": "add"}, ("p",), 0.0)] if scene else []
        devices._on_start(device)
        device.active = []
        assert device.early is None
    assert sent == said


def test_a_failure_leaves_its_neighbour_alone(tmp_path: Path, journal: Path) -> None:
    with pool(tmp_path, ["cpu"], scenes_per_device=2) as devices, ThreadPoolExecutor(2) as many:
        bad, good = many.map(lambda p: run(devices, tmp_path, p), ["diverge", "duck"])
    assert (bad.status, bad.error_type, bad.last_step) == ("diverged", "Diverged", 3)
    assert bad.history == {"steps": [1, 2]}
    assert (good["step"], good["first_step"]) == (6, 0)


def test_a_timeout_drops_one_scene(tmp_path: Path, journal: Path) -> None:
    with pool(tmp_path, ["cpu"], scenes_per_device=2) as devices, ThreadPoolExecutor(3) as many:
        slow = many.submit(run, devices, tmp_path, "endless", timeout=1.0)
        good = [many.submit(run, devices, tmp_path, "duck", f"d{n}") for n in range(2)]
        assert slow.result().status == "timeout"
        assert slow.result().last_step > 0
        assert [f.result()["step"] for f in good] == [6, 6]
        assert run(devices, tmp_path, "duck", "after")["step"] == 6
    assert len({e["pid"] for e in events(journal)}) == 1  # the process was not killed


def test_a_killed_process_goes_on_from_the_checkpoints(tmp_path: Path, journal: Path) -> None:
    with pool(tmp_path, ["cpu"], scenes_per_device=2) as devices, ThreadPoolExecutor(2) as many:
        results = list(many.map(lambda p: run(devices, tmp_path, p), ["die at 4", "duck"]))
    # The attempt's first step, though its last process went on from a later one.
    assert [(r["first_step"], r["step"]) for r in results] == [(0, 6), (0, 6)]
    steps = [e["step"] for e in events(journal) if e["scene"].startswith("duck")]
    assert steps == sorted(set(steps)), "a step was done twice"
    assert len({e["pid"] for e in events(journal)}) == 2


def test_a_scene_that_kills_its_process_is_found(tmp_path: Path, journal: Path) -> None:
    """A scene that lost its process runs alone, so the culprit takes nobody else along."""
    with pool(tmp_path, ["cpu"], scenes_per_device=2) as devices, ThreadPoolExecutor(3) as many:
        futures = [many.submit(run, devices, tmp_path, "die")]
        futures += [many.submit(run, devices, tmp_path, "duck", f"d{n}") for n in range(2)]
        bad, *good = [f.result() for f in futures]
    assert (bad.status, bad.error_type) == ("failed", "EngineDied")
    assert "SIGKILL" in str(bad)
    assert [g["step"] for g in good] == [6, 6]
    taken = [e["scene"].split(".")[0] for e in events(journal, "add")]
    assert taken.count("die") == 3
    assert len(taken) <= 6  # at most one neighbour lost its process once


def test_a_scene_that_lost_two_processes_on_a_device_waits_for_one_that_it_has_not_tried(
    tmp_path: Path,
) -> None:
    with pool(tmp_path, ["cuda:0", "cuda:1"]) as devices, devices._changed:
        one, two = devices._devices
        job = Job("k", {}, ("p",), 0.0)
        devices._waiting = [job]
        for lost, takers in (
            ([], [one, two]),
            ([one], [one, two]),
            ([one, one], [two]),
            ([one, one, two], [one, two]),
        ):
            job.lost_on = list(lost)
            assert [d for d in (one, two) if devices._next_for(d)] == takers
        job.lost_on, two.retired = [one, one], "it is broken"
        assert devices._next_for(one) is job
        devices._waiting = []


def test_a_device_that_fails_every_scene_is_retired_and_costs_no_try(
    tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is always the emptiest, so it would take scene after scene, and each would fail."""
    monkeypatch.setenv("STUB_BROKEN", "cuda:1")
    shown: list[str] = []
    retired = threading.Event()

    def show(text: str) -> None:
        shown.append(text)
        retired.set()

    devices = pool(tmp_path, ["cuda:0", "cuda:1"])
    devices.report_to(devices.log, show)
    with devices, ThreadPoolExecutor(5) as many:
        busy = many.submit(run, devices, tmp_path, "endless", cancelled=retired)  # on cuda:0
        while not devices._devices[0].active:
            time.sleep(0.01)
        jobs = [many.submit(run, devices, tmp_path, "duck", f"d{n}") for n in range(4)]
        assert busy.result().status == "cancelled"
        assert devices.slots == 1
        results = [job.result() for job in jobs]
    assert [(r["step"], r["device"]) for r in results] == [(6, "cuda:0")] * 4
    broken = [e["scene"] for e in events(journal, "add") if e["device"] == "cuda:1"]
    assert MOST_DEATHS <= len(broken) < 2 * MOST_DEATHS
    [text] = shown
    assert text.startswith("cuda:1 is no longer used; its scenes go to cuda:0.")
    assert "uncorrectable ECC error" in text
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == shown


@pytest.mark.parametrize("kind", ["progress", "done", "failed"])
def test_a_scene_that_has_ended_makes_room_at_once(tmp_path: Path, kind: str) -> None:
    """Before its own thread hears of it: were its process to die now, it would begin again."""
    with pool(tmp_path, ["cpu"]) as devices, devices._changed:
        [device] = devices._devices
        job, after = (Job(key, {}, ("p",), 0.0) for key in "ab")
        device.active, devices._waiting = [job], [after]
        event = {"type": kind, "scene": "a", "step": 3, "first_step": 0}
        devices._on_event(device, event | {"error_type": "ValueError", "error": "no"})
        assert device.active == ([job] if kind == "progress" else [after])
        device.active, devices._waiting = [], []


def test_only_steps_speak_for_a_device(tmp_path: Path, journal: Path) -> None:
    with pool(tmp_path, ["cuda:0"]) as devices:
        [device] = devices._devices
        device.deaths = MOST_DEATHS - 1
        assert run(devices, tmp_path, "no field").error_type == "ValueError"
        assert device.deaths == MOST_DEATHS - 1, "its own error, before a step"
        assert run(devices, tmp_path, "duck")["step"] == 6
        assert device.deaths == 0


def test_without_a_device_left_every_scene_ends_and_says_why(
    tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_BROKEN", "cuda:0,cuda:1")
    shown: list[str] = []
    devices = pool(tmp_path, ["cuda:0", "cuda:1"])
    devices.report_to(devices.log, shown.append)
    with devices, ThreadPoolExecutor(12) as many:
        results = list(many.map(lambda n: run(devices, tmp_path, "duck", f"d{n}"), range(12)))
        late = run(devices, tmp_path, "duck", "late")
    assert len(shown) == 2
    assert "no device is left, so the run ends" in shown[1]
    assert {(e.status, e.error_type) for e in results} == {
        ("failed", "EngineDied"),
        ("interrupted", "NoDevice"),
    }
    assert (late.status, late.error_type) == ("interrupted", "NoDevice")
    assert all("uncorrectable ECC error" in str(e) for e in [*results, late])


@pytest.mark.parametrize("together", [1, 4])
def test_one_scene_alone_retires_no_device(
    tmp_path: Path, journal: Path, together: int, caplog: pytest.LogCaptureFixture
) -> None:
    engines = pool(tmp_path, ["cuda:0"], scenes_per_device=together)
    with engines as devices, ThreadPoolExecutor(5) as many:
        prompts = ["die", "duck", "duck", "duck", "duck"]
        jobs = [many.submit(run, devices, tmp_path, p, f"s{n}") for n, p in enumerate(prompts)]
        bad, *good = [job.result() for job in jobs]
    assert (bad.status, bad.error_type) == ("failed", "EngineDied")
    assert [result["step"] for result in good] == [6] * 4
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "engine-0-cpu.log").write_text("of an earlier run\n" * 100)
    code = "import sys; print('why', file=sys.stderr); sys.exit('no such device')"
    with DevicePool(["cpu"], tmp_path, command=(sys.executable, "-c", code)) as devices:
        error = run(devices, tmp_path, "duck")
    lines = error.log_tail.splitlines()
    assert (len(lines), lines[-2:]) == (20, ["why", "no such device"])
    assert (error.status, error.error_type, error.device) == ("failed", "EngineDied", "cpu")
    assert "no such device" in str(error)


@pytest.mark.parametrize("asked", ["", "compiled", "allow_pickle", "fast_launch"])
def test_engines_are_started_with_the_run_s_switches(tmp_path: Path, asked: str) -> None:
    command = (sys.executable, "-c", "import sys; raise SystemExit(str(sys.argv))")
    options: dict[str, Any] = {asked: True} if asked else {}
    with DevicePool(["cpu"], tmp_path, command=command, **options) as devices:
        error = run(devices, tmp_path, "duck")
    for name in ("compiled", "allow_pickle", "fast_launch"):
        assert (f"'--{name.replace('_', '-')}'" in str(error)) == (name == asked)


@pytest.mark.parametrize(("device", "wanted"), [("cpu", "3"), ("cuda:0", "1")])
def test_threads_of_openmp_are_set_for_a_cpu(tmp_path: Path, device: str, wanted: str) -> None:
    told = "import os, sys; raise SystemExit(f\"{os.environ['OMP_NUM_THREADS']} and {sys.argv}\")"
    with DevicePool([device], tmp_path, command=(sys.executable, "-c", told), threads=3) as devices:
        error = run(devices, tmp_path, "duck")
    assert f"{wanted} and ['-c', '--threads', '3'" in str(error)  # 1 is that of all tests


@pytest.mark.parametrize("early", [False, True])
def test_a_process_that_the_system_does_not_start_is_no_wait_for_ever(
    tmp_path: Path, early: bool
) -> None:
    with DevicePool(["cpu"], tmp_path, command=[str(tmp_path / "engine")]) as devices:
        if early:
            devices.warm_up([weights("toybox")])
        error = run(devices, tmp_path, "duck")
    assert (error.status, error.error_type) == ("failed", "EngineDied")
    assert "No such file or directory" in str(error)


def test_garbage_on_the_pipe_is_not_an_engine(tmp_path: Path, journal: Path) -> None:
    with pool(tmp_path, ["cpu"]) as devices:
        assert run(devices, tmp_path, "garbage").error_type == "EngineDied"


def test_a_silent_process_is_killed(tmp_path: Path, journal: Path) -> None:
    with pool(tmp_path, ["cpu"], silence=1.0, restarts=0) as devices:
        started = time.monotonic()
        assert run(devices, tmp_path, "hang").error_type == "EngineDied"
        assert 1.0 <= time.monotonic() - started < 5.0


def test_work_that_is_no_step_is_no_silence(tmp_path: Path, journal: Path) -> None:
    seen: list[Any] = []
    with pool(tmp_path, ["cpu"], silence=1.5, restarts=0) as devices:
        started = time.monotonic()
        result = run(devices, tmp_path, "decode", on_progress=seen.append)
        assert time.monotonic() - started > 2.0
    assert result["step"] == 6
    work = [(e["what"], e["done"], e["total"]) for e in seen if e["type"] == "working"]
    assert work == [("decoding views", done, 5) for done in range(5)]
    assert seen[0]["device"] == "cpu"


def test_closing_interrupts_what_runs_and_what_waits(tmp_path: Path, journal: Path) -> None:
    with ThreadPoolExecutor(2) as many:
        devices = pool(tmp_path, ["cpu"])
        running = many.submit(run, devices, tmp_path, "endless")
        while not (tmp_path / "endless.ck").exists():
            time.sleep(0.02)
        waiting = many.submit(run, devices, tmp_path, "duck")
        time.sleep(0.1)
        devices.close()
        assert running.result().status == waiting.result().status == "interrupted"
        assert (running.result().last_step > 0, waiting.result().last_step) == (True, 0)
    assert events(journal, "stopped"), "the engine was killed although it was about to end"
    assert run(devices, tmp_path, "late").status == "interrupted"
    assert not [t for t in threading.enumerate() if t.name.startswith("engine-")]


def test_a_process_that_starts_while_its_pool_closes_is_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    with pool(tmp_path, ["cpu"]) as devices, devices._changed, monkeypatch.context() as patch:
        [device] = devices._devices
        patch.setattr(devices._engines[device], "stop", lambda: told.append(devices._closing))
        for devices._closing in (False, True):
            devices._on_start(device)
    assert told == [True]


def test_a_scene_whose_process_was_not_started_before_the_end_is_interrupted(
    tmp_path: Path,
) -> None:
    with pool(tmp_path, ["cpu"]) as devices, devices._changed:
        [device] = devices._devices
        job, devices._closing = Job("k", {}, ("p",), 0.0), True
        device.active = [job]
        assert not devices._wait_for_work(device)
        error = job.events.get_nowait()
    assert isinstance(error, SceneError)
    assert error.status == "interrupted"


def test_devices_without_work_do_not_delay_the_end(tmp_path: Path, journal: Path) -> None:
    devices = pool(tmp_path, ["cuda:0", "cuda:1"])
    with devices:
        ending = threading.Thread(target=devices.close, daemon=True)
        ending.start()
        ending.join(10)
        ended = not ending.is_alive()
        if not ended:  # or the test would not end either
            with devices._changed:
                devices._changed.notify_all()
    assert ended
    assert journal.read_text() == "", "no process was ever started"


def test_closing_kills_an_engine_that_does_not_end(
    tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.devices.pool.GRACE", 0.5)
    with ThreadPoolExecutor(2) as many:
        devices = pool(tmp_path, ["cpu"])
        running = many.submit(run, devices, tmp_path, "hang")
        while not events(journal, "add"):
            time.sleep(0.02)
        many.submit(devices.close).result(timeout=30)
        assert running.result(timeout=30).status == "interrupted"
    assert not events(journal, "stopped")


def test_a_scene_that_is_cancelled_in_the_queue_never_runs(tmp_path: Path, journal: Path) -> None:
    cancelled = threading.Event()
    with pool(tmp_path, ["cpu"], scenes_per_device=1) as devices, ThreadPoolExecutor(3) as many:
        running = many.submit(run, devices, tmp_path, "endless", timeout=4)
        while not (tmp_path / "endless.ck").exists():
            time.sleep(0.02)
        waiting = many.submit(run, devices, tmp_path, "duck", cancelled=cancelled)
        time.sleep(0.1)
        cancelled.set()
        assert waiting.result(timeout=30).status == "cancelled"
        assert running.result(timeout=30).status == "timeout"
        assert run(devices, tmp_path, "later")["step"] == 6
    assert len(events(journal, "add")) == 2, "the cancelled scene was given to an engine"


def test_an_error_in_the_watcher_frees_the_device(tmp_path: Path, journal: Path) -> None:
    def broken(event: dict[str, Any]) -> None:
        raise OSError("no server")

    with pool(tmp_path, ["cpu"]) as devices:
        with pytest.raises(OSError, match="no server"):
            run(devices, tmp_path, "endless", on_progress=broken)
        assert run(devices, tmp_path, "duck")["step"] == 6


def test_the_engine_dies_with_its_parent(tmp_path: Path, journal: Path) -> None:
    """SIGKILL on the parent: no orphan goes on."""
    parent = f"""
import sys, pathlib
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tasks.devices.pool import ENGINE, DevicePool
tmp = pathlib.Path({str(tmp_path)!r})
pool = DevicePool(["cpu"], tmp, command={STUB!r})
spec = {{"prompt": "endless", "prior": "p", "prior_revision": "1", "recipe": {{}}}}
pool.run(spec, field=tmp / "f", checkpoint=tmp / "ck")
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", parent], environment)
    while not events(journal):
        time.sleep(0.05)
    child = events(journal)[-1]["pid"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_the_engine_is_ours_whatever_the_folder_holds(tmp_path: Path) -> None:
    for name in ("sjc_engine.py", "tasks.py", "flows.py", "torch.py"):
        (tmp_path / name).write_text("raise SystemExit('somebody else')")
    said = subprocess.run([*ENGINE, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert (said.returncode, "--device" in said.stdout) == (0, True), said.stderr


def test_numba_caches_in_the_scratch_folder_where_it_has_no_other_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert numba_cache(tmp_path) == {}
    monkeypatch.setattr("os.access", lambda *_: False)
    assert numba_cache(tmp_path) == {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/elsewhere")
    assert numba_cache(tmp_path) == {}
