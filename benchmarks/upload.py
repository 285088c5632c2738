"""Committing assets' files: to a folder, and to an S3 server on this machine (moto).

    python benchmarks/upload.py [--assets 20] [--mb 4] [--rounds 3] [--s3 s3://BUCKET/PREFIX]
                                [--json FILE]

An asset is `commit_asset` of the files that a run makes, of random bytes in usual proportions, and
the commit marker; MB/s is all its bytes over the time until that is there. `cp` writes and syncs
the same files without a store, one after the other; a store moves four at a time. moto answers from
this very process: it shows what the client costs, and no network. `--s3` names a real bucket
(credentials as boto3 finds them).
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median

import boto3
import numpy as np
from moto.server import ThreadedMotoServer
from report import Report, interleaved, ratio

from sjc_engine.recipes import Recipe
from sjc_engine.spec import AssetSpec
from tasks.records.attempts import start_attempt
from tasks.records.commit import commit_asset
from tasks.store import open_store
from tasks.store.interface import Store

SHARES = {
    "mesh.glb": 0.35,
    "field.safetensors": 0.35,
    "preview.png": 0.1,
    "turntable.mp4": 0.07,
    "thumbnail.webp": 0.04,
    **{f"views/{source}_{k}.png": 0.005 for source in ("field", "mesh") for k in range(9)},
}
SPEC = AssetSpec("", "", None, 0, "toybox", "r", Recipe.for_prior("toybox"))


def make_files(folder: Path, size: int) -> dict[str, Path]:
    """One asset's files; random bytes, which nothing on the way can squeeze."""
    chance = np.random.default_rng(0)
    files = {name: folder / name for name in SHARES}
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.bytes(int(SHARES[name] * size)))
    return files


def commits(store: Store, files: dict[str, Path], assets: int) -> Callable[[], None]:
    seeds = itertools.count()  # every commit is of another asset: none is ever written twice

    def work() -> None:
        for seed in itertools.islice(seeds, assets):
            spec = replace(SPEC, seed=seed)
            attempt = start_attempt(store, spec, "20260101T000000-000000")["attempt"]
            commit_asset(store, spec.asset_id, attempt, files, spec, {}, {}, {})

    return work


def copies(folder: Path, files: dict[str, Path], assets: int) -> Callable[[], None]:
    numbers = itertools.count()

    def work() -> None:
        for number in itertools.islice(numbers, assets):
            for name, source in files.items():
                path = folder / str(number) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    file.write(source.read_bytes())
                    os.fsync(file.fileno())

    return work


def s3_server(stack: ExitStack) -> str:
    """A bucket on a server in this process; its URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    stack.callback(server.stop)
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    boto3.client("s3").create_bucket(Bucket="benchmark")
    return "s3://benchmark/store"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=int, default=20, help="in a round")
    parser.add_argument("--mb", type=float, default=4.0, help="of an asset")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--s3", metavar="URL", help="instead of the server in this process")
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = parser.parse_args()
    used = {k: v for k, v in vars(settings).items() if k != "json"} | {"files": len(SHARES)}
    report = Report("upload", used, ("boto3", "moto"))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        files = make_files(folder / "files", int(settings.mb * 1e6))
        size = settings.assets * sum(path.stat().st_size for path in files.values()) / 1e6
        bucket = settings.s3 or s3_server(stack)
        works = {
            "cp": copies(folder / "copies", files, settings.assets),
            "folder": commits(open_store(folder / "store"), files, settings.assets),
            "S3": commits(open_store(bucket), files, settings.assets),
        }
        times = interleaved(works, settings.rounds)
    for way, seconds in times.items():
        report.figure(way, size / median(seconds), "MB/s")
        report.figure(f"{way}, an asset", 1000 * median(seconds) / settings.assets, "ms")
    report.figure("folder / cp", ratio(times, "folder", "cp"), "x")
    report.figure("S3 / folder", ratio(times, "S3", "folder"), "x")
    report.write_json(settings.json)


if __name__ == "__main__":
    main()
