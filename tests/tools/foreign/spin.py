"""PyPI's `wasmtime` runs a guest that never ends.

    python3 spin.py [--winch] [--config NAME=VALUE].. [--threads N] FILE.wasm    (PYTHONPATH: where the package is)

Says `READY pid=PID tid=TID` when the guest has called `env.ready` in each thread, with a `tid=` for each, and ends with its
standard input.
"""

import argparse
import ctypes
import os
import sys
import threading

import wasmtime
from wasmtime import _ffi

WINCH = 2


def setting(config, name, value):
    f = getattr(_ffi.dll, f"wasmtime_config_{name}_set", None)
    if f is None:
        return
    f.restype = None
    f.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    f(ctypes.cast(config.ptr(), ctypes.c_void_p), int(value))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--winch", action="store_true")
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("file")
    arguments = parser.parse_args()
    config = wasmtime.Config()
    if arguments.winch:
        setting(config, "strategy", WINCH)
    for pair in arguments.config:
        setting(config, *pair.split("="))
    engine = wasmtime.Engine(config)
    with open(arguments.file, "rb") as file:
        module = wasmtime.Module(engine, file.read())
    tids = []
    inside = threading.Barrier(arguments.threads + 1)
    failed = []

    def guest():
        def ready():
            tids.append(threading.get_native_id())
            inside.wait()

        try:
            store = wasmtime.Store(engine)
            func = wasmtime.Func(store, wasmtime.FuncType([], []), ready)
            instance = wasmtime.Instance(store, module, [func for _ in module.imports])
            instance.exports(store)["run"](store)
        except BaseException as e:
            print(f"FAILED {e}", flush=True)
            os._exit(1)

    for _ in range(arguments.threads):
        threading.Thread(target=guest, daemon=True).start()
    inside.wait()
    print(f"READY pid={os.getpid()} " + " ".join(f"tid={tid}" for tid in tids), flush=True)
    sys.stdin.read()
    os._exit(0)


main()
