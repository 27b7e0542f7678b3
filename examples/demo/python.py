"""Starts shop.py, waits until its plugin waits, prints what wstate shows of it from outside, and ends it.

    python3 python.py WSTATE    (PYTHONPATH: where PyPI's wasmtime is)
"""

import pathlib
import subprocess
import sys

here = pathlib.Path(__file__).parent
wstate = sys.argv[1]

# The shop ends with this program, whatever ends it: its standard input is closed then.
shop = subprocess.Popen(
    [sys.executable, here / "shop.py", here / "plugin/orders.wasm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
try:
    words = shop.stdout.readline().split()
    if words[:1] != ["READY"]:
        sys.exit("demo: the shop ended before its plugin asked for a rate; its messages are above")
    pid = words[1].partition("=")[2]
    print("A Wasmtime host in Python hangs. Its plugin, written in Rust, prices an order: in which line does it wait, and with")
    print("which values? (Without --wasm-only the frames of Python are there too.)\n")
    print(f"  $ wstate attach {pid} --wasm-only\n", flush=True)
    code = subprocess.run([wstate, "attach", pid, "--wasm-only"]).returncode
finally:
    shop.kill()
    shop.wait()
if code != 0:
    sys.exit(f"demo: wstate ended with exit code {code}; `{wstate} doctor PID` may say why")
