"""A shop whose prices come from a plugin: an ordinary Wasmtime host, and what demo-python.sh attaches to.

    python3 shop.py examples/demo/plugin/orders.wasm    (PYTHONPATH: where PyPI's wasmtime is)

The plugin asks for a rate of exchange, and the shop asks a bank, which is whoever is at the other end of standard input. In
the demo the bank does not answer, so the shop hangs.
"""

import ctypes
import os
import sys

import wasmtime

PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


def ask_bank(currency):
    """The rate of a currency, in thousandths of the shop's own."""
    print(f"READY pid={os.getpid()} currency={currency}", flush=True)
    # os.read and not sys.stdin: a thread that waits there is asleep, whatever Python buffers.
    answer = os.read(0, 4)
    if len(answer) < 4:
        sys.exit("the bank does not answer")
    return int.from_bytes(answer, "little")


def sell(order, plugin):
    """Lets the plugin price an order."""
    config = wasmtime.Config()
    # Off by default. Without it the frames have the same names and offsets, but neither lines nor variables.
    config.debug_info = True
    # One module does not need a thread for each processor to compile it.
    config.parallel_compilation = False
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    linker = wasmtime.Linker(engine)
    linker.define_func("shop", "ask_rate", wasmtime.FuncType([wasmtime.ValType.i32()], [wasmtime.ValType.i32()]), ask_bank)
    instance = linker.instantiate(store, wasmtime.Module.from_file(engine, plugin))
    return instance.exports(store)["price_order"](store, order)


# Where Yama lets only a parent attach: this process is there to be looked at.
ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
print("the order costs", sell(1042, sys.argv[1]), "cents")
