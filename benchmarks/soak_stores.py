"""The stores of a soak test: a folder, or a prefix on a real S3 server behind the fault proxy."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
from ceph_server import CephServer
from certificates import write_certificates
from fault_proxy import FaultProxy
from moto.server import ThreadedMotoServer
from small_disk import mount, unmount
from soak_ledger import Bucket, Folder, Shelf
from swift_server import ACCESS_KEY, SECRET_KEY, SwiftServer

BUCKET, PREFIX = "soak", "first"


@dataclass(frozen=True)
class Place:
    """A store.

    restart: kills its server and starts it again, for one that keeps its data. disk: a file system
    that has nothing but the store.
    """

    url: str
    shelf: Shelf  # past the proxy
    proxy: FaultProxy | None = None
    restart: Callable[[], None] | None = None
    disk: Path | None = None


@contextlib.contextmanager
def open_place(kind: str, folder: Path) -> Iterator[Place]:
    """kind: `folder`, `moto`, `swift` or `ceph`. Sets AWS_* in this process, past the proxy."""
    with contextlib.ExitStack() as stack:
        if kind == "folder":
            disk = folder / "disk"
            disk.mkdir()
            own = mount(disk, "4g")
            if own:  # what is in memory stays for whoever looks into a failure
                stack.callback(unmount, disk)
                stack.callback(shutil.copytree, disk, folder / "was-disk", symlinks=True)
            store = disk / "store"
            yield Place(str(store), Folder(store), disk=disk if own else None)
            return
        restart = None
        if kind == "moto":
            logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
            moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            moto.start()
            stack.callback(moto.stop)
            address = moto.get_host_and_port()
        else:
            server = stack.enter_context(
                SwiftServer(folder / kind) if kind == "swift" else CephServer(folder / kind)
            )
            address = server.address

            def restart() -> None:
                server.kill()
                server.start()

        # HTTPS, as users have it: only there do clients send checksums in trailers.
        write_certificates(folder)
        tls = (folder / "server.pem", folder / "server.key")
        proxy = stack.enter_context(FaultProxy(address, tls))
        endpoint = f"http://{address[0]}:{address[1]}"
        os.environ |= {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CA_BUNDLE": str(folder / "ca.pem"),
        }
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield Place(f"s3://{BUCKET}/{PREFIX}", Bucket(BUCKET, PREFIX, endpoint), proxy, restart)
