"""Becomes another program, which ends when its parent does. Run as a script, never imported by what serves.

    python -I -S leash.py PARENT PROGRAM ARGUMENT…

PARENT is the process id of who starts it: should that one be gone already, nothing is begun. On Linux the kernel sends
SIGTERM to the program when the thread that started it ends, so that has to be one that lasts: the main thread. Elsewhere
the program outlives a parent that is killed, and the parent's successor ends it (`relay.store.embedded`).

Between fork and exec of a process with threads only C may run; so this runs after an exec, in a process of its own. It
takes a session of its own too: Ctrl-C in a terminal is for the relay, which ends its server when its replies have ended.

https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == int(sys.argv[1]):
        os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the program that our parent has chosen
