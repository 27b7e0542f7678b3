"""Run inside of gdb, with a host to start: writes the registers at the first call into generated code as JSON
to $WSTATE_BOUNDARY, then lets the host go and waits for the end of stdin, since the host ends with its parent.

$WSTATE_BREAK is a place a few instructions before that call. The values are those that the caller must find again when
the call returns.
"""

import json
import os
import sys

import gdb

MASK = (1 << 64) - 1


def register(name):
    return int(gdb.newest_frame().read_register(name)) & MASK


gdb.execute("set startup-with-shell off")
gdb.Breakpoint(os.environ["WSTATE_BREAK"])
gdb.execute("run", to_string=True)
gdb.execute("delete")
gdb.execute("set scheduler-locking step")
for _ in range(5000):
    if "No symbol" in gdb.execute("info symbol $pc", to_string=True):
        break
    gdb.execute("stepi", to_string=True)
else:
    sys.exit("no call into generated code")
sp = register("rsp")
values = {name: register(name) for name in ["rbp", "rbx", "r12", "r13", "r14", "r15"]}
values["rip"] = int.from_bytes(bytes(gdb.selected_inferior().read_memory(sp, 8)), "little")
values["rsp"] = sp + 8
with open(os.environ["WSTATE_BOUNDARY"], "w") as file:
    json.dump({name: hex(value) for name, value in values.items()}, file)
gdb.execute("detach", to_string=True)
sys.stdin.read()
