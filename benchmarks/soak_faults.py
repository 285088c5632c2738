"""What goes wrong in a soak test: each fault strikes once, and says whether it found a target."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from fault_proxy import Fault
from soak_manifest import Manifest
from soak_outside import (
    delete_scratch,
    edit_manifest,
    link_store,
    lock_database,
    raise_format,
    replace_database,
    set_clock_back,
    start_first_runs,
    take_store_away,
    use_up_inodes,
)
from soak_processes import ENGINE, HELPER, SJC, Process, Runner, Server, marked
from soak_stores import Place

from tasks.store.leases import EXPIRE_SECONDS

STALL_SECONDS = 4.0  # that a stopped process lies still
FULL_SECONDS = 3.0  # that the disk takes no more
FULL_BYTES = 4096  # of a file, while it does
SLEEP_SECONDS = EXPIRE_SECONDS + 15.0  # that a run lies still, and its lease ends
LAG_SECONDS = 20.0  # of a listing, at most
LISTINGS = 40  # that one fault makes lag
HANG_SECONDS = 5.0  # of a request without a reply; clients wait up to 60 s
REQUESTS = 4  # that one fault of the network spoils

Strike = Callable[["Scene"], bool]


@dataclass
class Scene:
    """Where faults strike, and what they did that is to be known at the end."""

    chance: random.Random
    runners: Sequence[Runner]
    server: Server
    place: Place
    folder: Path
    variables: dict[str, str]
    manifest: Manifest
    later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    commands: list[Process] = field(default_factory=list)  # that run beside the runners
    damaged: set[str] = field(default_factory=set)  # run ids whose table parts were deleted
    violations: list[str] = field(default_factory=list)

    def kinds(self) -> dict[str, Strike]:
        """The faults that there are for this store."""
        known = FAULTS | (S3_FAULTS if self.place.proxy else FOLDER_FAULTS)
        known |= SERVER_FAULTS if self.place.restart else {}
        return known | (DISK_FAULTS if self.place.disk else {})

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        self.later.append((time.monotonic() + seconds, what))

    def tend(self, *, everything: bool = False) -> None:
        """Does what is due by now; or all that is left."""
        now = time.monotonic()
        due = [pair for pair in self.later if everything or pair[0] <= now]
        self.later = [pair for pair in self.later if pair not in due]
        for _, what in due:
            what()

    def flow(self) -> Process | None:
        """The flow process of some runner that is at work."""
        flows = [flow for runner in self.runners if (flow := runner.flow())]
        return self.chance.choice(flows) if flows else None

    def child(self, word: str) -> int | None:
        pids = [pid for runner in self.runners for pid in runner.children(word)]
        return self.chance.choice(pids) if pids else None

    def busy(self) -> bool:
        """Whether a command is at work, or none may begin since the store is away."""
        return Path(f"{self.place.url}.away").exists() or any(
            process.ended() is None for process in self.commands
        )

    def command(
        self, name: str, *words: str, called: str = "", variables: dict[str, str] | None = None
    ) -> None:
        """Starts `sjc` beside the runners, past the faults of the network."""
        command = [*SJC, name, *words, "--store", self.place.url]
        called = f"{called or name}-{len(self.commands):03d}"
        folder = self.folder / "commands"
        self.commands.append(Process(called, command, variables or self.variables, folder))


def kill_child(word: str, scene: Scene) -> bool:
    pid = scene.child(word)
    return pid is not None and _send(pid, signal.SIGKILL)


def end_flow(number: signal.Signals, scene: Scene, *, group: bool = False) -> bool:
    flow = scene.flow()
    if flow is None:
        return False
    (flow.send_group if group else flow.send)(number)
    return True


def stall(word: str, scene: Scene) -> bool:
    """A process stops, as on a machine that swaps, and goes on."""
    pid = scene.child(word)
    if pid is None or not _send(pid, signal.SIGSTOP):
        return False
    scene.after(STALL_SECONDS, partial(_send, pid, signal.SIGCONT))
    return True


def end_server(number: signal.Signals, scene: Scene) -> bool:
    if scene.server.process is None or scene.server.process.ended():
        return False
    scene.server.process.send(number)
    return True


def sleep_past_lease(scene: Scene) -> bool:
    """A run with all its processes stops for so long that others may take its assets."""
    flow = scene.flow()
    if flow is None:
        return False
    flow.send_group(signal.SIGSTOP)
    scene.after(SLEEP_SECONDS, partial(flow.send_group, signal.SIGCONT))
    return True


def fill_disk(process: Process | None, scene: Scene) -> bool:
    """None of its processes can write more than a few bytes of a file for a while."""
    if process is None or process.ended():
        return False
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    _limit_files(process.mark, (FULL_BYTES, usual[1]))
    scene.after(FULL_SECONDS, partial(_limit_files, process.mark, usual))
    return True


def _limit_files(mark: str, limits: tuple[int, int]) -> None:
    """Bytes of a file that these processes may write; those that they start inherit it."""
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def leave_litter(scene: Scene) -> bool:
    """What writers leave that die within a write, in the store and in a scratch folder."""
    assets = sorted(scene.place.shelf.asset_ids())
    if not assets:
        return False
    scene.place.shelf.leave_litter(f"assets/{scene.chance.choice(assets)}/a99")
    fields = scene.chance.choice(scene.runners).scratch / "fields"
    fields.mkdir(parents=True, exist_ok=True)
    (fields / f".{'0' * 16}.checkpoint.{scene.chance.randrange(10**6)}.tmp").write_bytes(b"torn")
    return True


def lose_part(scene: Scene) -> bool:
    """A file of a table is deleted."""
    table = scene.chance.choice(["assets", "attempts", "views"])
    keys = [key for key in scene.place.shelf.keys(f"tables/{table}") if "/run_id=" in key]
    if not keys:
        return False
    key = scene.chance.choice(keys)
    scene.damaged.add(key.partition("/run_id=")[2].partition("/")[0])
    scene.place.shelf.delete(key)
    return True


def command(name: str, scene: Scene) -> bool:
    if scene.busy():  # one at a time
        return False
    scene.command(name, *(["--json"] if name == "verify" else []))
    return True


def network(fault: Fault, scene: Scene) -> bool:
    """The next requests of that kind, a few of them."""
    assert scene.place.proxy is not None
    scene.place.proxy.add(replace(fault, times=scene.chance.randint(1, REQUESTS)))
    return True


def stale_listings(scene: Scene) -> bool:
    """Listings do not show what has changed since they were last asked for."""
    assert scene.place.proxy is not None
    scene.place.proxy.add(Fault("lag", "^GET .*list-type=2", times=LISTINGS, seconds=LAG_SECONDS))
    return True


def restart_s3(scene: Scene) -> bool:
    assert scene.place.restart is not None
    scene.place.restart()
    return True


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


# Engines end that can write nothing, and start from the beginning without checkpoints.
ENGINE_KILLS = ("kill engine", "disk full", "scratch deleted")
FAULTS: dict[str, Strike] = {
    "kill engine": partial(kill_child, ENGINE),
    "kill flow": partial(end_flow, signal.SIGKILL),
    "kill group": partial(end_flow, signal.SIGKILL, group=True),
    "kill helper": partial(kill_child, HELPER),
    "terminate": partial(end_flow, signal.SIGTERM),
    "interrupt": partial(end_flow, signal.SIGINT),
    "stall engine": partial(stall, ENGINE),
    "stall flow": partial(stall, " run "),
    "restart server": partial(end_server, signal.SIGTERM),
    "kill server": partial(end_server, signal.SIGKILL),
    "disk full": lambda scene: fill_disk(scene.flow(), scene),
    "database full": lambda scene: fill_disk(scene.server.process, scene),
    "database locked": lock_database,
    "database replaced": replace_database,
    "first runs": start_first_runs,
    "clock back": set_clock_back,
    "scratch deleted": delete_scratch,
    "manifest edited": edit_manifest,
    "newer store": raise_format,
    "torn files": leave_litter,
    "lost table part": lose_part,
    "compact": partial(command, "compact"),
    "verify": partial(command, "verify"),
}
ANY = "^(PUT|GET|HEAD|POST) "
FILE = r"^PUT .*/a\d\d/.*\."  # of an asset
S3_FAULTS: dict[str, Strike] = {
    "s3 500": partial(network, Fault("status", ANY, status=500, code="InternalError")),
    "s3 503": partial(network, Fault("status", ANY, status=503, code="SlowDown")),
    "s3 hang": partial(network, Fault("hang", ANY, seconds=HANG_SECONDS)),
    "s3 lost reply": partial(network, Fault("lose-reply", "^(PUT|POST) ")),
    "s3 reset upload": partial(network, Fault("reset-request", FILE, after=1000)),
    "s3 cut download": partial(network, Fault("truncate-reply", "^GET .*(json|parquet)", after=99)),
    "s3 stale listing": stale_listings,
    "zombie": sleep_past_lease,
    "s3 corrupt download": partial(network, Fault("corrupt-reply", r"^GET .*json", after=10)),
}
SERVER_FAULTS: dict[str, Strike] = {  # Moto stores what arrives damaged, and nothing on the disk
    "s3 corrupt upload": partial(network, Fault("corrupt-request", FILE, after=100)),
    "kill s3 server": restart_s3,
}
FOLDER_FAULTS: dict[str, Strike] = {"store away": take_store_away, "store linked": link_store}
DISK_FAULTS: dict[str, Strike] = {"no inodes": use_up_inodes}
