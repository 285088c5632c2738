"""A child process that never outlives its parent."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Asks the kernel to SIGKILL this process when the thread that started it ends.

    `parent` is the process id of the parent, as the parent knows it. A parent that was gone
    before the request reached the kernel sends no signal any more, hence the check after it.
    """
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:  # Linux; elsewhere the end of the stdin pipe has to do
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(3)
