"""Scheduled runs: their cron lines, checked and shown as next times, their names and tags."""

import asyncio
from collections.abc import Iterable
from pathlib import PurePosixPath
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sjc_engine.errors import SettingError

SHOWN = 3  # times that are printed
_CRON = 'write minute, hour, day, month, weekday: "0 2 * * *" is 2 o\'clock every night'


def format_times(cron: str, timezone: str) -> str:
    """The next times of a schedule as a person reads them.

    Raises SettingError for a wrong cron line or time zone.
    """
    from prefect.server.schemas.schedules import CronSchedule

    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        fix = "use a name such as UTC or Europe/Berlin"
        raise SettingError("timezone", f"{timezone!r} is unknown", fix) from error
    if len(cron.split()) != 5 and not cron.startswith("@"):  # a sixth would be read as seconds
        raise SettingError("cron", f"{cron!r} does not have five fields", _CRON)
    try:
        times = asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(SHOWN))
    except ValueError as error:  # of which pydantic's is one
        raise SettingError("cron", f"{cron!r} is not a cron line", _CRON) from error
    if not times:
        raise SettingError("cron", f"{cron!r} never comes", "check its day and month")
    return ", ".join(f"{time:%a %Y-%m-%d %H:%M}" for time in times) + f" ({timezone})"


def manifest_name(manifest: str) -> str:
    """The last part of a manifest's path or address."""
    return PurePosixPath(manifest).name or manifest


def run_tags(manifest: str, priors: Iterable[str]) -> list[str]:
    """What Prefect's pages filter runs and deployments by."""
    names = dict.fromkeys(priors)
    return ["sjc", f"manifest:{manifest_name(manifest)}", *(f"prior:{name}" for name in names)]


def deployment_name(manifest: str) -> str:
    """What to call the scheduled runs of a manifest: its name without the ending."""
    return PurePosixPath(manifest).stem or "generate"
