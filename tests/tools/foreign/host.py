"""A host of other people: PyPI's `wasmtime`, whose library is stripped and built without us.

    python3 host.py STOP [--config NAME=VALUE]...      (PYTHONPATH: where the package is)

Runs a guest to a stop, prints one line of JSON with what the runtime itself says of it, and stays until stdin is closed.
The frames are those of a trap that an earlier run of the same instance ended with at the same place; they are told before
the stop because there is no way to ask the runtime from inside of a callback.
"""

import ctypes
import json
import os
import re
import sys
import tempfile
import threading

import wasmtime
import wasmtime._func

GUEST = """
(module $guest
  (import "env" "stop" (func $stop (param i32)))
  (import "env" "again" (func $again))
  (import "env" "count" (global $count (mut i64)))
  (memory (export "memory") 2 9)
  (table (export "table") 7 funcref)
  (elem (i32.const 1) $leaf $fact)
  (global (export "small") (mut i32) (i32.const -5))
  (global (export "large") (mut i64) (i64.const 0x1122334455667788))
  (global (export "real") f64 (f64.const 2.5))
  (data (i32.const 0x400) "known bytes of the guest")
  (func $leaf (param i32)
    local.get 0
    call $stop)
  (func $fact (param $n i32) (result i32)
    local.get $n
    i32.eqz
    if (result i32)
      i32.const 3
      call $leaf
      i32.const 1
    else
      local.get $n
      i32.const 1
      i32.sub
      call $fact
      local.get $n
      i32.add
    end)
  (func (export "run") (param i32) (result i32)
    i32.const 0x500
    local.get 0
    i32.store
    local.get 0
    call $fact)
  (func (export "nest")
    call $again)
  (func (export "indirect")
    i32.const 4
    i32.const 1
    call_indirect (param i32))
  (func $divide (param i32 i32) (result i32)
    local.get 0
    local.get 1
    i32.div_s)
  (func (export "trap") (result i32)
    i32.const 1
    i32.const 0
    call $divide)
  (func $turn (param i32) (result i32)
    local.get 0
    i32.const 1
    i32.add)
  (func (export "spin") (local i32)
    i32.const 0
    call $stop
    loop
      local.get 0
      call $turn
      local.set 0
      br 0
    end))
"""


class Stop(Exception):
    """Ends the run whose frames are wanted."""


def dll():
    from wasmtime import _ffi

    return _ffi.dll


def settings(pairs):
    config = wasmtime.Config()
    for pair in pairs:
        name, value = pair.split("=")
        f = getattr(dll(), f"wasmtime_config_{name}_set", None)
        if f is None:
            print(json.dumps({"skip": f"no setting {name}"}), flush=True)
            sys.exit(0)
        f.restype = None
        f.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
        f(ctypes.cast(config.ptr(), ctypes.c_void_p), int(value))
    return config


def frames_of(run):
    """The runtime's frames at the place where `run`'s callback raises `Stop`."""
    keep = wasmtime._func.maybe_raise_last_exn
    wasmtime._func.maybe_raise_last_exn = lambda: None
    try:
        run()
    except (wasmtime.Trap, wasmtime.WasmtimeError) as e:
        found = re.findall(r"^ +\d+: +(0x[0-9a-f]+) - guest!(.+)$", str(e), re.MULTILINE)
        return [{"name": name, "offset": offset} for offset, name in found]
    finally:
        wasmtime._func.maybe_raise_last_exn = keep
        wasmtime._func.LAST_EXCEPTION = None
    raise AssertionError("the callback was not reached")


class Guest:
    """A store with an instance. `stop` does what `self.at_stop` says."""

    def __init__(self, engine, module):
        self.store = wasmtime.Store(engine)
        if "--config=epoch_interruption=1" in sys.argv:
            self.store.set_epoch_deadline(1 << 40)
        if "--config=consume_fuel=1" in sys.argv:
            self.store.set_fuel(1 << 40)
        self.at_stop = self.at_again = self.raise_stop
        i32 = [wasmtime.ValType.i32()]
        stop = wasmtime.Func(self.store, wasmtime.FuncType(i32, []), lambda _: self.at_stop())
        again = wasmtime.Func(self.store, wasmtime.FuncType([], []), lambda: self.at_again())
        ty = wasmtime.GlobalType(wasmtime.ValType.i64(), True)
        self.count = wasmtime.Global(self.store, ty, wasmtime.Val.i64(0x7766554433221100))
        imports = {"stop": stop, "again": again, "count": self.count}
        self.instance = wasmtime.Instance(self.store, module, [imports[i.name] for i in module.imports])
        self.exports = self.instance.exports(self.store)

    def raise_stop(self):
        raise Stop

    def call(self, name, *arguments):
        return self.exports[name](self.store, *arguments)

    def truth(self):
        memory, table = self.exports["memory"], self.exports["table"]
        size = table.size(self.store)
        globals_ = [self.count] + [self.exports[n] for n in ("small", "large", "real")]
        return {
            "memory": [ctypes.addressof(memory.data_ptr(self.store).contents), memory.data_len(self.store)],
            "globals": [g.value(self.store) for g in globals_],
            "table": size,
        }


def main():
    stop, *options = sys.argv[1:]
    assert all(o.startswith("--config=") for o in options), options
    engine = wasmtime.Engine(settings([o[len("--config=") :] for o in options]))
    module = wasmtime.Module(engine, GUEST)
    if stop == "file":
        with tempfile.NamedTemporaryFile(suffix=".cwasm", delete=False) as file:
            file.write(module.serialize())
        module = wasmtime.Module.deserialize_file(engine, file.name)
    guest = Guest(engine, module)
    out = {"stop": stop, "pid": os.getpid()}

    def stay():
        out["tid"] = threading.get_native_id()
        print(json.dumps(out), flush=True)
        sys.stdin.read()
        if stop == "file":
            os.unlink(file.name)
        os._exit(0)

    def finish(guests, frames, depth=0):
        out["instances"] = [g.truth() for g in guests]
        out["frames"] = frames
        # The runtime shows 20 at most.
        out["depth"] = depth + 3 if depth else len(frames)
        guests[0].at_stop = stay

    if stop in ("call", "file", "deep"):
        depth = 3000 if stop == "deep" else 5
        frames = frames_of(lambda: guest.call("run", depth))
        guest.exports["memory"].grow(guest.store, 3)
        finish([guest], frames, depth)
        guest.call("run", depth)
    elif stop == "indirect":
        finish([guest], frames_of(lambda: guest.call("indirect")))
        guest.call("indirect")
    elif stop == "nested":
        # host -> Wasm -> host -> Wasm, in one store.
        inner = frames_of(lambda: guest.call("run", 2))
        outer = frames_of(lambda: guest.call("nest"))
        finish([guest], inner + outer)
        guest.at_again = lambda: (guest.call("run", 2), None)[1]
        guest.call("nest")
    elif stop == "stores":
        # The same with an instance in a store of its own, and a third store that no thread runs in.
        other, idle = Guest(engine, module), Guest(engine, module)
        inner = frames_of(lambda: guest.call("run", 2))
        outer = frames_of(lambda: other.call("nest"))
        finish([guest, other], inner + outer)
        other.at_again = lambda: (guest.call("run", 2), None)[1]
        other.call("nest")
        del idle
    elif stop == "after-trap":
        # In a callback from which a guest was called that trapped.
        outer = frames_of(lambda: guest.call("nest"))
        finish([guest], outer)

        def again():
            try:
                guest.call("trap")
            except wasmtime.Trap:
                stay()

        guest.at_again = again
        guest.call("nest")
    elif stop == "threads":
        # Each with an engine, a store and an instance of its own; the first one tells.
        guests, inside = [], threading.Barrier(3)
        for number in range(3):
            own = wasmtime.Engine()
            guests.append(Guest(own, wasmtime.Module(own, GUEST)))
        frames = frames_of(lambda: guests[0].call("run", 4))
        finish(guests, frames)
        forever = threading.Event()
        guests[0].at_stop = lambda: (inside.wait(), stay())
        for g in guests[1:]:
            g.at_stop = lambda: (inside.wait(), forever.wait())[1]
            threading.Thread(target=g.call, args=("run", 4), daemon=True).start()
        guests[0].call("run", 4)
    elif stop == "spin":
        frames = frames_of(lambda: guest.call("spin"))
        # Only the outer frame's function and instance are known.
        finish([guest], [dict(f, offset=None) for f in frames])
        told = threading.Event()
        out_of_callback = lambda: told.set()
        guest.at_stop = out_of_callback
        tid = threading.get_native_id()

        def tell():
            told.wait()
            out["tid"] = tid
            print(json.dumps(out), flush=True)
            sys.stdin.read()
            os._exit(0)

        threading.Thread(target=tell, daemon=True).start()
        guest.call("spin")
    else:
        sys.exit(f"no such stop: {stop}")


main()
