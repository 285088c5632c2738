"""The options of a run, once: what the flow, the commands and the store's run documents share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any

from sjc_engine.errors import SettingError
from tasks.store.interface import check_address

# What `sjc dispatch` passes on to every shard; the plan has fixed everything else.
SHARD_OPTIONS = (
    "retry_failed", "timeout", "checkpoint_to_store", "compiled", "allow_pickle", "fast_launch",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The options of a run, as JSON values.

    The parameters of the flows `generate` and `generate-shard` and the options of `sjc run` have
    these names, types and defaults (tests/flows/test_settings.py). Raises `StoreError` for an
    address with credentials in it: Prefect's database keeps settings, and so does the store.
    """

    manifest: str
    store: str = "./store"
    prior: str | None = None
    recipe: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    where: str | None = None
    devices: list[str] | None = None  # None: every GPU, else one CPU engine
    scenes_per_device: int | None = None  # None: chosen by memory
    scratch: str = ".sjc"
    retry_failed: bool = False
    timeout: float | None = None  # seconds of optimisation per asset
    price_per_hour: float | None = None  # of one device, in any currency
    gallery: str | None = None  # folder or address of the store's gallery, to link to
    checkpoint_to_store: bool = False
    compiled: bool = False  # priors' networks, by torch.compile
    allow_pickle: bool = False  # whether .bin weights are read
    fast_launch: bool = False  # of a GPU's kernels (`Prior.enable_fast_launch`)
    plan: str | None = None  # id of a shard plan in the store, which replaces the manifest
    shard: int | None = None  # the part of the plan to run

    def __post_init__(self) -> None:
        check_address(self.store, "--store", "s3://bucket/prefix")
        check_address(self.manifest, "the manifest's address", "s3://bucket/prefix")

    def check(self) -> None:
        """Raises `SettingError` for a number out of range."""
        for name, allowed, fix in (
            ("scenes_per_device", lambda n: n >= 1, "use a whole number above 0, or auto"),
            ("timeout", lambda n: n > 0, "use a number of seconds above 0"),
            ("price_per_hour", lambda n: 0 <= n < float("inf"), "use a number from 0"),
            ("limit", lambda n: n >= 1, "use a whole number above 0"),
        ):
            value = getattr(self, name)
            if isinstance(value, int | float) and not allowed(value):
                raise SettingError(name, f"{value} is out of range", fix)

    def to_json(self) -> dict[str, Any]:
        """The parameters of the flow; plan and shard only for a shard."""
        unset = {"plan", "shard"} if self.plan is None else set()
        return {key: value for key, value in asdict(self).items() if key not in unset}

    def command_line(self, *, retry: bool = False) -> str:
        """The command that runs these settings again; retry: failed assets too.

        A shard's command dispatches all of its plan, from the file that `sjc plan` suggests.
        """
        words = ["sjc", "run", self.manifest]
        shown = {option.name for option in fields(self)} - {"manifest", "plan", "shard"}
        if self.plan is not None:
            words = ["sjc", "dispatch", f"{self.plan}.parquet"]
            shown = {"store", *SHARD_OPTIONS}
        settings = replace(self, retry_failed=self.retry_failed or retry)
        for option in fields(self):
            value = getattr(settings, option.name)
            if option.name in shown and value != default(option):
                words += _option_words(option.name, value)
        return shlex.join(words)


def default(option: Field[Any]) -> Any:
    """The default of a field of `Settings`; `MISSING` if there is none."""
    factory = option.default_factory
    return option.default if factory is MISSING else factory()


def _option_words(name: str, value: Any) -> list[str]:
    """An option and its value as words of a command line."""
    flag = f"--{name.replace('_', '-')}"
    match value:
        case True:
            return [flag]
        case list():
            return [flag, ",".join(value)]
        case dict():
            return [
                word for key, setting in value.items() for word in ("--set", f"{key}={setting}")
            ]
    return [flag, str(value)]


def recorded_command(store: str, run: Mapping[str, Any], *, retry: bool = False) -> str:
    """The command of a run by its document `runs/{run_id}.json`; store: where that is now."""
    known = {option.name for option in fields(Settings)}
    recorded = {name: value for name, value in run["settings"].items() if name in known}
    settings = {"manifest": run["manifest"], **recorded, "store": store}
    return Settings(**settings).command_line(retry=retry)
