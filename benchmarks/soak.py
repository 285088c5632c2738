"""Kills, breaks and starves a pipeline at work, and then asks whether anything was lost.

    python benchmarks/soak.py [--minutes 30] [--store folder|moto|swift|ceph] [--seed 0] [--json]

Two runners make one manifest of small assets, which grows as they get on, and start again whenever
they end. Meanwhile faults strike, in an order that the seed fixes: processes of every kind are
killed, stopped and told to end, Prefect's server too; requests to S3 fail, hang, break off and
arrive damaged; the disk is full; files are torn and lost; and `sjc compact` and `sjc verify` run
beside it all. At the end one last run is left alone, and everything that was ever acknowledged
must be there, exactly once and whole. Prints assets, faults and violations; exit code 1 for any.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from soak_course import Soak

PACKAGES = ("prefect", "torch", "pyarrow", "boto3")


def facts(soak: Soak, options: argparse.Namespace) -> dict[str, Any]:
    codes = Counter(str(ending.code) for ending in soak.endings)
    versions = " ".join(f"{name} {version(name)}" for name in PACKAGES)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": f"Python {platform.python_version()} {versions}",
        "store": options.store,
        "seed": options.seed,
        "seconds": round(soak.seconds),
        "assets": len(soak.manifest.ids),
        "attempts": soak.attempts,
        "faults": soak.struck.total(),
        "kinds": len(soak.struck),
        "faults_by_kind": dict(sorted(soak.struck.items())),
        "faults_without_target": dict(sorted(soak.missed.items())),
        "exit_codes": dict(sorted(codes.items())),
        "steps_again": soak.waste.steps,
        "steps_again_at_most": soak.waste.bound,
        "scenes_resumed": soak.waste.resumed,
        "violations": soak.violations,
    }


def show(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if isinstance(value, list):
            print(f"{name:22}{len(value)}", *(f"  {line}" for line in value), sep="\n")
        elif isinstance(value, dict):
            print(f"{name:22}" + ", ".join(f"{k} {n}" for k, n in value.items()))
        else:
            print(f"{name:22}{value}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of faults")
    parser.add_argument("--kinds", type=int, default=0, help="of faults, before it ends")
    parser.add_argument("--store", choices=("folder", "moto", "swift", "ceph"), default="folder")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--ahead", type=int, default=24, help="rows that the manifest grows by")
    parser.add_argument("--patience", type=float, default=900, help="seconds for the last run")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="the folder, without violations too")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    options = parser.parse_args()
    # Both end all that it started. A shell's background job starts with SIGINT ignored, and so
    # would the runners.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sjc-soak-", dir=options.folder)).resolve()
    soak = Soak(
        folder, seed=options.seed, ahead=options.ahead, patience=options.patience,
        quiet=options.quiet,
    )  # fmt: skip
    try:
        soak.run(options.store, options.minutes * 60, options.kinds)
    except KeyboardInterrupt:
        print(f"interrupted; what there is lies in {folder}", file=sys.stderr)
        return 130
    except TimeoutError as error:
        print(f"{error}; everything lies in {folder}", file=sys.stderr)
        return 1
    found = facts(soak, options)
    if options.keep or soak.violations:
        found["folder"] = str(folder)
    else:
        shutil.rmtree(folder)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)
    return 1 if soak.violations else 0


if __name__ == "__main__":
    sys.exit(main())
