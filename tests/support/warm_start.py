"""`sjc` and `python -` that begin at once, as forks of a process that has imported what they need.

    with warm_programs(folder, variables, modules) as bin: ...   # goes first on a PATH

Each program is a process of its own with the arguments, the environment, the folder and the
standard streams of its caller, who gets its exit code; but it saves seconds of imports. So nothing
is proven about those, and Prefect's settings are those of `variables`: it read them when it was
imported. In `bin` are clients: they hand their streams to a server through a socket, and wait.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROGRAMS = ("sjc", "python")
MOST = 1 << 20  # bytes of a request
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    argv = [{program!r}, *sys.argv[1:]]
    request = {{"argv": argv, "folder": os.getcwd(), "environ": {{**os.environ}}}}
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    code = server.recv(8)
sys.exit(int(code or 1))
"""


@contextlib.contextmanager
def warm_programs(
    folder: Path, variables: Mapping[str, str], modules: Sequence[str]
) -> Iterator[Path]:
    """The folder of the programs; `folder` is for it, and `modules` are imported beforehand."""
    address = str(folder / "socket")
    (folder / "bin").mkdir()
    for program in PROGRAMS:
        client = folder / "bin" / program
        client.write_text(CLIENT.format(python=sys.executable, address=address, program=program))
        client.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, address, *modules],
        env=variables, stdout=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield folder / "bin"
    finally:
        server.terminate()
        server.communicate()


def serve(address: str) -> None:
    """Forks for each request a process that waits for the program, another fork."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            if not os.fork():
                listener.close()
                break
            client.close()
            with contextlib.suppress(ChildProcessError):  # ended ones
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    request, streams = receive(client)
    if program := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        with contextlib.suppress(OSError):
            client.send(str(code if code >= 0 else 128 - code).encode())
        os._exit(0)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    run(request)


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, streams, _, _ = socket.recv_fds(client, MOST, 3)
    while more := client.recv(MOST):
        data += more
    return json.loads(data), streams


def run(request: dict[str, Any]) -> NoReturn:
    """Ends as an interpreter does, but for taking its modules apart: that costs two seconds."""
    try:
        start(request)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(request: dict[str, Any]) -> None:
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv = request["argv"]
    if sys.argv[0] == "sjc":
        from flows.commands.main import main

        main()
    else:
        assert sys.argv[1:] == ["-"], "a script on stdin"
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    serve(sys.argv[1])
