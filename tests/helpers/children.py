"""Child processes: Python in an environment of its own, and children that may be killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HELPERS = Path(__file__).parent
ROOT = HELPERS.parent.parent
WITH_HELPERS = f"{ROOT}{os.pathsep}{HELPERS}"  # a PYTHONPATH: the checkout, and the helpers of its tests
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")  # at a port that is free


def run_python(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in `cwd` with these environment variables besides ours; it must succeed.

    It is given far more time than it needs, since other processes may keep the machine busy.
    """
    command, variables = [sys.executable, *map(str, arguments)], os.environ | environment
    told = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200)
    done = subprocess.run(command, cwd=cwd, env=variables, **told)
    assert done.returncode == 0, done.stderr[-5000:]
    return done


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
