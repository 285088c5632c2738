"""The stores of a soak test: a folder, or a prefix on a real S3 server behind the fault proxy."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
from fault_proxy import FaultProxy
from moto.server import ThreadedMotoServer
from soak_ledger import Bucket, Folder, Shelf
from swift_server import ACCESS_KEY, SECRET_KEY, SwiftServer

BUCKET, PREFIX = "soak", "first"


@dataclass(frozen=True)
class Place:
    """A store. restart: kills its server and starts it again, for one that keeps its data."""

    url: str
    shelf: Shelf  # past the proxy
    proxy: FaultProxy | None = None
    restart: Callable[[], None] | None = None


@contextlib.contextmanager
def open_place(kind: str, folder: Path) -> Iterator[Place]:
    """kind: `folder`, `moto` or `swift`. Sets AWS_* in this process, past the proxy."""
    with contextlib.ExitStack() as stack:
        if kind == "folder":
            yield Place(str(folder / "store"), Folder(folder / "store"))
            return
        if kind == "moto":
            logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
            moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            moto.start()
            stack.callback(moto.stop)
            address, restart = moto.get_host_and_port(), None
        else:
            swift = stack.enter_context(SwiftServer(folder / "swift"))
            address = swift.address

            def restart() -> None:
                swift.kill()
                swift.start()

        proxy = stack.enter_context(FaultProxy(address))
        endpoint = f"http://{address[0]}:{address[1]}"
        os.environ |= {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield Place(f"s3://{BUCKET}/{PREFIX}", Bucket(BUCKET, PREFIX, endpoint), proxy, restart)
