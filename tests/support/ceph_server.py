"""A real S3 server: Ceph's radosgw on the loopback address, with one monitor and one disk.

    with CephServer(folder) as server:
        os.environ |= server.environment()
        server.make_bucket("bucket")

Its data is in `folder` and outlives the processes, which end with their parent. The programs are
those of `scripts/install-ceph`, and need no privileges.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path

from swift_server import ACCESS_KEY, SECRET_KEY, S3Server

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")
START_SECONDS = 180.0  # the first start takes ten on an idle machine

# Nobody has to show a key, but to radosgw, which would want one to encrypt its way to the monitor.
_CONF = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{monitor}]
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = {folder}
crash_dir = {folder}
admin_socket =
log_file = {folder}/$name.log
log_to_stderr = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = 17179869184
osd_memory_target = 939524096
[client.rgw]
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_thread_pool_size = 32
"""


def unavailable() -> str:
    """Why there can be no server here; empty if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return (
        f"Ceph is not installed ({missing[0]} is missing): scripts/install-ceph" if missing else ""
    )


class CephServer(S3Server):
    """The processes, from `start` to `kill`; they may be started again on the same data."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.resolve())
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        if not self.folder.exists():
            self._make()
        self._spawn("ceph-mon", "-i", "a")
        self._spawn("ceph-osd", "-i", "0")
        if not (self.folder / "user").exists():
            self._run("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", "tester",
                      "--display-name", "tester", "--access-key", ACCESS_KEY,
                      "--secret-key", SECRET_KEY)  # fmt: skip
            (self.folder / "user").touch()
        self._spawn("radosgw", "-n", "client.rgw")
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._processes[-1].poll() is not None:
                raise RuntimeError(f"Ceph does not start; see {self.folder}/*.log")
            time.sleep(0.1)

    def kill(self) -> None:
        while self._processes:
            self._processes[-1].kill()
            self._processes.pop().wait()

    def _make(self) -> None:
        """A new cluster: its settings, the monitor's map and database, and the disk."""
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in "mr"]
            monitor, port = (one.getsockname()[1] for one in sockets)
        self.address = ("127.0.0.1", port)
        fsid, disk = str(uuid.uuid4()), str(uuid.uuid4())
        conf = _CONF.format(folder=self.folder, fsid=fsid, monitor=monitor, port=port)
        (self.folder / "ceph.conf").write_text(conf)
        monitors = str(self.folder / "monitors")
        self._run("monmaptool", "--create", "--fsid", fsid,
                  "--addv", "a", f"[v2:127.0.0.1:{monitor}]", monitors)  # fmt: skip
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
        self._spawn("ceph-mon", "-i", "a")
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self.kill()

    @property
    def _variables(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.folder / "ceph.conf")}

    def _run(self, *command: str) -> None:
        ended = subprocess.run(
            command, env=self._variables, capture_output=True, text=True, timeout=START_SECONDS
        )
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ended.stderr}")

    def _spawn(self, *command: str) -> None:
        with (self.folder / "output").open("ab") as output:
            self._processes.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command, "-f"],
                    env=self._variables,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            )

    def _answers(self) -> bool:
        try:
            socket.create_connection(self.address, 1).close()
        except OSError:
            return False
        return True
