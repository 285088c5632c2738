"""A real S3 server: OpenStack Swift with s3api on the loopback address, in a process of its own.

    with SwiftServer(folder) as server:
        os.environ |= server.environment()
        server.make_bucket("bucket")

One replica, its data in `folder`, which outlives the process. `python swift_server.py FOLDER` is
that process: it prints its port when it listens, and ends with its standard input. Needs a file
system with extended attributes, and no privileges.
"""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import boto3

ACCESS_KEY, SECRET_KEY = "test:tester", "testing"

_COMMON = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/disks
mount_check = false
disable_fallocate = true
log_level = WARNING
log_address = {folder}/no-syslog
"""
_STORAGE = """
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
"""
_FILTERS = ("catch_errors", "gatekeeper", "listing_formats", "bulk", "slo", "dlo")


def unavailable(folder: Path) -> str:
    """Why there can be no server with its data in `folder`; empty if there can."""
    try:
        import swift  # noqa: F401
    except ImportError:
        return "Swift is not installed (it is for Linux)"
    probe = folder / "xattr-probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.sjc", b"1")
    except OSError as error:
        return f"{folder} is on a file system without extended attributes: {error}"
    finally:
        probe.unlink()
    return ""


class S3Server(ABC):
    """A server on the loopback address with its data in `folder`, from `start` to `kill`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ("127.0.0.1", 0)  # 0: a free port, which it then keeps

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @abstractmethod
    def start(self) -> None:
        """Returns when it answers; also on the data of a server that was killed."""

    @abstractmethod
    def kill(self) -> None:
        """As `kill -9` does. What it has acknowledged is on the disk."""

    def environment(self) -> dict[str, str]:
        """What a user of boto3 has to export."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://{self.address[0]}:{self.address[1]}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        client = boto3.client(
            "s3",
            endpoint_url=self.environment()["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)


class SwiftServer(S3Server):
    """All of Swift in one process."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("a") as log:
            command = [sys.executable, __file__, str(self.folder), str(self.address[1])]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        port = self._process.stdout.readline()
        if not port:
            raise RuntimeError(f"Swift did not start:\n{(self.folder / 'log').read_text()}")
        self.address = ("127.0.0.1", int(port))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve(folder: Path, port: int) -> None:
    """All four servers of Swift as green threads of this process, until stdin ends."""
    from swift.common import utils
    from swift.common.wsgi import SwiftHttpProtocol, loadapp

    utils.eventlet_monkey_patch()
    import eventlet.tpool
    import eventlet.wsgi
    from swift.common.ring import RingBuilder
    from swift.common.utils import NullLogger

    names = {"proxy": port, "object": 0, "container": 0, "account": 0}
    sockets = {name: eventlet.listen(("127.0.0.1", at)) for name, at in names.items()}
    (folder / "disks" / "d1").mkdir(parents=True, exist_ok=True)
    hashes = "[swift-hash]\nswift_hash_path_suffix = tests\n"
    policy = "[storage-policy:0]\nname = default\ndefault = yes\n"
    (folder / "swift.conf").write_text(hashes + policy)
    common = _COMMON.format(folder=folder)
    for name in ("object", "container", "account"):
        (folder / f"{name}.conf").write_text(common + _STORAGE.format(name=name))
        ring = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
        device = {"region": 1, "zone": 1, "weight": 1, "device": "d1", "ip": "127.0.0.1"}
        ring.add_dev({**device, "port": sockets[name].getsockname()[1]})
        ring.rebalance()
        ring.get_ring().save(str(folder / f"{name}.ring.gz"))
    filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _FILTERS)
    proxy = common + _PROXY.format(secret=SECRET_KEY) + filters
    (folder / "proxy.conf").write_text(proxy)
    utils.set_swift_dir(str(folder))
    for name, listener in sockets.items():
        app = loadapp(str(folder / f"{name}.conf"), global_conf={"log_name": name})
        eventlet.spawn(
            eventlet.wsgi.server,
            listener,
            app,
            NullLogger(),
            protocol=SwiftHttpProtocol,
            capitalize_response_headers=False,  # S3 clients want ETag and not Etag
        )
    print(sockets["proxy"].getsockname()[1], flush=True)
    eventlet.tpool.execute(sys.stdin.read)  # a thread of its own: the others go on


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
