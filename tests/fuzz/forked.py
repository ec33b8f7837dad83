"""Files of Keras walked by a fork of one process that has loaded h5py, not by a new one each.

Starting Python and loading h5py is 100 ms, nearly all of a trial. A fork runs the same script with
the same limits and the same end, in some 5 ms. Run as ``python forked.py SCRIPT``, this is that
process: it reads lines of JSON, [file, folder], and answers [return code, bytes at the peak].
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path


class ForkedWalks:
    """What `subprocess` is to keras_walk.py: `run` ends as the new process would."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self, script, folder):
        self.folder, self.peak = folder, 0
        self.server = subprocess.Popen(
            [sys.executable, "-P", __file__, script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip

    def run(self, command, **options):
        """Return what the process has written and how it has ended; keep the most of its memory."""
        self.server.stdin.write(json.dumps([command[-1], str(self.folder)]) + "\n")
        self.server.stdin.flush()
        code, peak = json.loads(self.server.stdout.readline())
        self.peak = max(self.peak, peak)
        out, err = (
            (self.folder / name).read_bytes().decode(options["encoding"]) for name in ("out", "err")
        )
        return subprocess.CompletedProcess(command, code, out, err)

    def close(self):
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


def walked(code, script, file, folder):
    """Run the script's code here, as a new process would, and end."""
    for number, name in ((0, os.devnull), (1, f"{folder}/out"), (2, f"{folder}/err")):
        mode = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0)
        os.dup2(os.open(name, mode, 0o600), number)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.argv = [script, file]
    status = 0
    try:
        exec(code, {"__name__": "__main__", "__file__": script})
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(script):
    import h5py  # noqa: F401  # for the forks

    code = compile(Path(script).read_bytes(), script, "exec")
    for line in sys.stdin:
        file, folder = json.loads(line)
        fork = os.fork()
        if not fork:
            walked(code, script, file, folder)
        _, status, used = os.wait4(fork, 0)
        answer = [os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
