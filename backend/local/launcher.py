"""Becomes another program that is told to end when the process that started it ends.

Run as `python -m backend.local.launcher PARENT_PID SIGNAL PROGRAM ARGUMENT...`. A killed parent
cannot stop its children any more; on Linux the kernel does it for it. The bond has to be made in
the child, between its birth and the program it becomes, which is all that happens here.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def bind_to_parent(parent_pid: int, signal_number: int) -> None:
    """Has the kernel send a signal to this process when its parent ends (Linux; else nothing).

    Raises:
        OSError: the kernel refused.
        SystemExit: the parent has ended already.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    # A parent that ended before the line above would never be noticed.
    if os.getppid() != parent_pid:
        raise SystemExit(f"process {parent_pid}, which started this one, has ended")


def main(arguments: list[str]) -> None:
    """Binds this process to its parent and becomes the given program."""
    parent_pid, signal_number, program, *rest = arguments
    bind_to_parent(int(parent_pid), int(signal_number))
    os.execvp(program, [program, *rest])  # noqa: S606 (no shell is the point)


if __name__ == "__main__":
    main(sys.argv[1:])
