"""The official command runs a guest that never ends: what PyPI's library of a release cannot be told to do (Winch before 45).

    python3 cli.py WASMTIME [OPTION].. FILE.wasm

Calls its export `run`; imports return zero. Says `READY pid=PID tid=TID` when the guest has computed for a while, and ends
with its standard input.
"""

import collections
import os
import pathlib
import subprocess
import sys
import time

# Ticks of processor time after which it runs the guest, and is not compiling any more.
ENOUGH = 25


def ticks(pid, tid):
    fields = (pathlib.Path("/proc") / str(pid) / "task" / str(tid) / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11])


def main():
    command, *options, file = sys.argv[1:]
    options += ["-W", "unknown-imports-default=y"]
    host = subprocess.Popen(
        [command, "run", *options, "--invoke", "run", file], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    last, alone = {}, collections.Counter()
    while host.poll() is None:
        now = {tid: ticks(host.pid, tid) for tid in os.listdir(f"/proc/{host.pid}/task")}
        ran = [tid for tid, n in now.items() if n > last.get(tid, n)]
        # While it compiles, other threads run as well.
        for tid in ran if len(ran) == 1 else []:
            alone[tid] += now[tid] - last[tid]
        if len(ran) > 1:
            alone.clear()
        for tid in (tid for tid, n in alone.items() if n > ENOUGH):
            print(f"READY pid={host.pid} tid={tid}", flush=True)
            sys.stdin.read()
            host.kill()
            return
        last = now
        time.sleep(0.05)
    sys.exit(f"FAILED {host.stderr.read().decode()}")


main()
