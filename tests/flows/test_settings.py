"""The options of a run are one list: names, types and defaults wherever they appear."""

import inspect
import shlex
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

import pytest

from flows.commands import deploy, options, run, serve
from flows.commands.options import parse_overrides, run_settings
from flows.dispatch import dispatch
from flows.generate import generate
from flows.settings import SHARD_OPTIONS, Settings, default, recorded_command
from flows.shard import generate_shard
from sjc_engine.errors import SettingError
from sjc_engine.recipes import OptimizeRecipe

OPTIONS = {option.name: default(option) for option in fields(Settings)}
TYPES = get_type_hints(Settings)
EVERYTHING = Settings(
    "my list.csv", "s3://b/p", "toybox", "draft", {"steps": "5"}, 3, "seed < 2",
    ["cpu", "cuda:0"], 4, "fast", False, 9.5, 2.5, "wall", True, True, True, True,
)  # fmt: skip
EVERY_WORD = [
    "sjc", "run", "my list.csv", "--store", "s3://b/p", "--prior", "toybox", "--recipe",
    "draft", "--set", "steps=5", "--limit", "3", "--where", "seed < 2", "--devices",
    "cpu,cuda:0", "--scenes-per-device", "4", "--scratch", "fast", "--retry-failed",
    "--timeout", "9.5", "--price-per-hour", "2.5", "--gallery", "wall",
    "--checkpoint-to-store", "--compiled", "--allow-pickle", "--fast-launch",
]  # fmt: skip


def signature(function: Any) -> dict[str, tuple[Any, Any]]:
    """Type and default of each parameter, typer's annotations taken off."""
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: (hints[parameter.name], parameter.default) for parameter in parameters}


def of_settings(*names: str) -> dict[str, tuple[Any, Any]]:
    return {name: (TYPES[name], OPTIONS[name]) for name in names}


def test_the_flow_has_the_settings_as_they_are() -> None:
    found = signature(generate.fn)
    assert found.pop("manifest") == (str, inspect.Parameter.empty)
    kind, value = found.pop("overrides")  # no mutable default in a signature
    assert (kind, value) == (TYPES["overrides"] | None, None)
    assert found == of_settings(*(OPTIONS.keys() - {"manifest", "overrides", "plan", "shard"}))


@pytest.mark.parametrize("command", [run.run, serve.serve, deploy.deploy])
def test_a_command_has_them_but_for_how_text_is_read(command: Any) -> None:
    found = signature(command)
    assert found.pop("set_") == (list[str] | None, None)  # overrides, as KEY=VALUE
    assert found.pop("devices") == (str | None, None)  # with commas between
    kind, _ = found.pop("manifest")  # `deploy` has prefect.yaml without one
    assert kind in (str, str | None)
    names = OPTIONS.keys() - {"manifest", "overrides", "devices", "plan", "shard"}
    assert {name: found[name] for name in names} == of_settings(*names)


def test_a_shard_and_its_dispatch_have_those_that_a_plan_leaves_open() -> None:
    shard, dispatched = signature(generate_shard.fn), signature(dispatch.fn)
    shared = of_settings(*SHARD_OPTIONS)
    assert {name: dispatched[name] for name in SHARD_OPTIONS} == shared
    assert {name: shard[name] for name in SHARD_OPTIONS} == shared
    assert {name: shard[name] for name in ("devices", "scenes_per_device")} == of_settings(
        "devices", "scenes_per_device"
    )
    assert shard["scratch"] == (str | None, None)  # a folder of the machine, not of the run
    own = {"plan", "shard", "store", "scratch", "devices", "scenes_per_device", *SHARD_OPTIONS}
    assert shard.keys() == own
    assert dispatched.keys() == {"plan", "store", "deployment", "workers", *SHARD_OPTIONS}


def test_the_command_line_gives_the_same_settings() -> None:
    assert Settings("m.csv").command_line() == "sjc run m.csv"
    words = shlex.split(EVERYTHING.command_line(retry=True))
    assert words == EVERY_WORD
    assert EVERYTHING.scenes_per_device != OPTIONS["scenes_per_device"]
    assert all(getattr(EVERYTHING, name) != value for name, value in OPTIONS.items()
               if name not in ("retry_failed", "plan", "shard"))  # fmt: skip
    assert parse_overrides([words[words.index("--set") + 1]]) == EVERYTHING.overrides


def test_a_shard_s_command_runs_its_plan_and_no_manifest() -> None:
    shard = Settings("p1", "s3://b/p", timeout=9.5, compiled=True, plan="p1", shard=3)
    assert shard.command_line(retry=True) == (
        "sjc dispatch p1.parquet --store s3://b/p --retry-failed --timeout 9.5 --compiled"
    )


def test_a_recorded_run_has_the_command_of_its_settings() -> None:
    """What the report shows: of a shard too, and of runs of earlier versions."""
    shard = Settings("p1", "s3://b/p", scratch="x/p1-00003", timeout=9.5, plan="p1", shard=3)
    run = {"manifest": "manifests/paper24.csv", "settings": shard.to_json()}
    assert recorded_command("s3://b/moved", run) == (
        "sjc dispatch p1.parquet --store s3://b/moved --timeout 9.5"
    )
    run = {"manifest": "my list.csv", "settings": EVERYTHING.to_json() | {"gone": 1}}
    assert recorded_command("s3://b/p", run, retry=True) == shlex.join(EVERY_WORD)
    assert recorded_command("x", {"manifest": "m.csv", "settings": {}}) == "sjc run m.csv --store x"


def test_options_become_settings() -> None:
    given = {name: getattr(EVERYTHING, name) for name in OPTIONS.keys() - {"overrides"}}
    given |= {"devices": "cpu,cuda:0", "set_": ["steps=5"], "dtype": None}
    assert run_settings(given) == EVERYTHING
    overrides = {"steps": "5", "dtype": "bfloat16"}
    assert run_settings(given | {"dtype": "bfloat16"}) == replace(EVERYTHING, overrides=overrides)
    [choices, _] = get_args(get_args(options.Dtype)[0])
    assert choices == get_type_hints(OptimizeRecipe)["dtype"]


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"limit": 0}, "limit"),
        ({"scenes_per_device": 0}, "scenes_per_device"),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"price_per_hour": -1.0}, "price_per_hour"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingError, match=f"^{key}: .* is out of range; use a "):
        Settings("m.csv", **wrong).check()
