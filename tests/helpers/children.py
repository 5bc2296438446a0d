"""Child processes that may be killed."""

import os
from collections.abc import Callable


def in_child(action: Callable[[], object], told: Callable[[int], object] = lambda pid: None) -> dict:
    """How a child process ends that does `action`: its signal or 0, and its error or "". `told` gets its id first."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        message = ""
        try:
            action()
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(write, message.encode())
        os._exit(0)
    told(pid)
    os.close(write)
    with os.fdopen(read) as pipe:
        message = pipe.read()
    return {"signal": os.WTERMSIG(os.waitpid(pid, 0)[1]), "message": message}
