"""A Python host that loads and unloads modules all the time, as tests/hosts/churn/guests.rs describes it.

    churn-singlepass print DIRECTORY KIND; python3 tests/tools/churn_host.py DIRECTORY KIND COUNT [guest-debug]
"""
import ctypes
import sys
import threading

import wasmtime

directory, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
libc = ctypes.CDLL(None)
libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
loads = 0


def tell():
    for _ in sys.stdin:
        print("LOADED", loads, flush=True)


config = wasmtime.Config()
if "guest-debug" in sys.argv[4:]:
    wasmtime._ffi.dll.wasmtime_config_guest_debug_set(config.ptr(), True)
engine = wasmtime.Engine(config)
sources = [open("%s/%s-%s.wasm" % (directory, kind, letter), "rb").read() for letter in "abc"]
images = [bytes(wasmtime.Module(engine, source).serialize()) for source in sources]
threading.Thread(target=tell, daemon=True).start()
print("READY", flush=True)
while True:
    for number, image in enumerate(images):
        module = wasmtime.Module.deserialize(engine, image)
        store = wasmtime.Store(engine)
        run = wasmtime.Instance(store, module, []).exports(store)["run"]
        libc.prctl(15, b"m_" + b"abc"[number : number + 1], 0, 0, 0)  # PR_SET_NAME
        run(store, count, 10 + number)
        libc.prctl(15, b"m_-", 0, 0, 0)
        del run, store, module
        loads += 1
