"""``python -m service.child MODULE``: run a module as ``__main__``, and end with the process that started it.

The parent holds the write end of the pipe on our standard input. However it dies, ``kill -9`` included, the kernel
closes that end; we read the end of file, ask ourselves to terminate, and are killed where that takes too long.
Unlike ``PR_SET_PDEATHSIG`` this works on every POSIX system, does not depend on which thread of the parent forked,
and leaves time to end cleanly.
"""

import os
import runpy
import signal
import sys
import threading
import time

#: Seconds between the polite signal and the last one.
GRACE_S = 30.0


def end_with_parent(pipe: int, *, grace_s: float = GRACE_S) -> None:
    """Watch `pipe` in a thread; at its end send ourselves SIGTERM, and SIGKILL to our whole group `grace_s` later."""

    def watch() -> None:
        while os.read(pipe, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def main() -> None:
    """Take the pipe off standard input, leave an empty one there, and become the module."""
    module = sys.argv[1]
    pipe = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    end_with_parent(pipe)
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
