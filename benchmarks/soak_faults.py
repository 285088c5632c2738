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
from soak_processes import ENGINE, HELPER, SJC, Process, Runner, Server, marked
from soak_stores import Place

STALL_SECONDS = 4.0  # that a stopped process lies still
FULL_SECONDS = 3.0  # that the disk takes no more
FULL_BYTES = 4096  # of a file, while it does
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
    later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    commands: list[Process] = field(default_factory=list)  # that run beside the runners
    damaged: set[str] = field(default_factory=set)  # run ids whose table parts were deleted

    def kinds(self) -> dict[str, Strike]:
        """The faults that there are for this store."""
        known = FAULTS | (S3_FAULTS if self.place.proxy else {})
        return known | (SWIFT_FAULTS if self.place.restart else {})

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

    def command(self, name: str, *words: str) -> None:
        """Starts `sjc` beside the runners, past the faults of the network."""
        command = [*SJC, name, *words, "--store", self.place.url]
        number = len(self.commands)
        folder = self.folder / "commands"
        self.commands.append(Process(f"{name}-{number:03d}", command, self.variables, folder))


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


def fill_disk(scene: Scene) -> bool:
    """No process of a runner can write more than a few bytes of a file for a while."""
    flow = scene.flow()
    if flow is None:
        return False
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    _limit_files(flow.mark, (FULL_BYTES, usual[1]))
    scene.after(FULL_SECONDS, partial(_limit_files, flow.mark, usual))
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
    if any(process.ended() is None for process in scene.commands):  # one at a time
        return False
    scene.command(name, *(["--json"] if name == "verify" else []))
    return True


def network(fault: Fault, scene: Scene) -> bool:
    """The next requests of that kind, a few of them."""
    assert scene.place.proxy is not None
    scene.place.proxy.add(replace(fault, times=scene.chance.randint(1, REQUESTS)))
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


ENGINE_KILLS = ("kill engine", "disk full")  # engines end that can write nothing
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
    "disk full": fill_disk,
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
    "s3 corrupt download": partial(network, Fault("corrupt-reply", r"^GET .*json", after=10)),
}
SWIFT_FAULTS: dict[str, Strike] = {  # Moto stores what arrives damaged, and nothing on the disk
    "s3 corrupt upload": partial(network, Fault("corrupt-request", FILE, after=100)),
    "kill s3 server": restart_s3,
}
