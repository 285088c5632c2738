"""A SLURM cluster of one machine with two places, of Debian's packages, on loopback; as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# A requeued task waits until its old credential has expired: two minutes, if nothing is set
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=30
SchedulerParameters=sched_interval=1,batch_sched_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# Nothing is constrained, so that it need not be a real mount
CGROUPS = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint={folder}/cgroup\n"


def unavailable() -> str:
    """Why there can be no cluster here; empty if there can."""
    if os.getuid():
        return "SLURM's daemons want to be root"
    missing = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The variables with which sbatch, squeue and scontrol reach the cluster, once it is up."""
    for name in ("state", "spool", "cgroup"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # munged wants its socket's folder open
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        controller, node = one.getsockname()[1], other.getsockname()[1]
    places = {"host": socket.gethostname().partition(".")[0], "folder": folder}
    text = CONFIGURATION.format(controller=controller, node=node, **places)
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text(CGROUPS.format(folder=folder))
    key = folder / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munge += [f"--{kind}-file={folder / kind}" for kind in ("pid", "log", "seed")]
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    with contextlib.ExitStack() as stack:
        for command in ([*munge, f"--socket={folder / 'socket'}"], ["slurmctld", "-D"],
                        ["slurmd", "-D"]):  # fmt: skip
            stack.enter_context(_daemon(command, folder, variables))
            if command[0] == "munged":
                _wait((folder / "socket").exists)
        _wait(lambda: "idle" in ask(variables, "sinfo", "--noheader", "--format=%T"))
        try:
            yield variables
        finally:  # of a test that failed
            ask(variables, "scancel", "--state=PENDING", "--user=root")
            ask(variables, "scancel", "--signal=KILL", "--full", "--user=root")
            _wait(lambda: not ask(variables, "squeue", "--noheader").strip())


def ask(variables: dict[str, str], *command: str) -> str:
    """What a program of SLURM's says."""
    ran = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    return ran.stdout


@contextlib.contextmanager
def _daemon(command: list[str], folder: Path, variables: dict[str, str]) -> Iterator[None]:
    with (folder / f"{command[0]}.out").open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | variables, stdout=output, stderr=output, process_group=0
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "SLURM does not start"
        time.sleep(0.1)
