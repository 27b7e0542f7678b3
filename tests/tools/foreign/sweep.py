"""Every release of Wasmtime as somebody else built it: PyPI's `wasmtime`, whose library is stripped.

    python3 sweep.py [--wstate FILE] [--cache DIR] [--stops A,B..] [--core] [--gdb] [VERSION..]

For each version and stop of host.py it compares what wstate says with what the runtime itself said, and prints a table:
right, unknown and wrong for each kind of fact. Exit code 1 if anything is wrong, 2 if anything is unknown that a version
with known layouts holds. Versions are releases as PyPI has them (`48.0.0`); without any, one of each major from 36 on.
"""

import argparse
import collections
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
RELEASES = (
    "36.0.0 37.0.0 38.0.0 39.0.0 40.0.0 41.0.0 42.0.0 43.0.0 44.0.0 45.0.0 46.0.1 47.0.1 48.0.0 49.0.0 50.0.1".split()
)
# Settings of Config, by the stops they are tried with.
STOPS = {
    "call": ["call"],
    "file": ["file"],
    "deep": ["deep"],
    "indirect": ["indirect"],
    "nested": ["nested"],
    "stores": ["stores"],
    "after-trap": ["after-trap"],
    "threads": ["threads"],
    "spin": ["spin"],
    "debug-info": ["call", "--config=debug_info=1"],
    "no-unwind-info": ["nested", "--config=native_unwind_info=0"],
    "no-optimization": ["stores", "--config=cranelift_opt_level=0"],
    "epochs": ["spin", "--config=epoch_interruption=1"],
    "fuel": ["call", "--config=consume_fuel=1"],
    "wide": ["call", "--config=wasm_gc=1", "--config=wasm_function_references=1", "--config=wasm_memory64=1"],
}
KINDS = ["walk", "names", "offsets", "instances", "memories", "bytes", "globals", "tables", "gdb"]
DATA = b"known bytes of the guest"
# Where Python begins; its `main` is nothing but a jump to the other, and is on no stack.
BEGINNINGS = ("main", "Py_BytesMain")


def package(version, cache):
    """Where the package of this version is unpacked."""
    out = cache / version
    if not (out / "wasmtime").is_dir():
        wheels = cache / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(wheels), f"wasmtime=={version}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (wheel,) = wheels.glob(f"wasmtime-{version}-*.whl")
        subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(out)], check=True)
    return out


class Counts(collections.Counter):
    """Right, unknown and wrong by kind of fact; what was wrong or unknown is kept."""

    def __init__(self):
        super().__init__()
        self.told = []

    def say(self, kind, expected, found, unknown=False):
        if expected == found:
            outcome = "right"
        elif found is None or unknown:
            outcome = "unknown"
        else:
            outcome = "wrong"
        self[kind, outcome] += 1
        if outcome != "right":
            self.told.append(f"{kind} {outcome}: {found!r} instead of {expected!r}")


def run(command, **more):
    return subprocess.run([str(c) for c in command], capture_output=True, timeout=300, **more)


def wstate_json(wstate, command, where):
    out = run([wstate, command, *where, "--json"])
    try:
        return json.loads(out.stdout)
    except ValueError:
        raise SystemExit(f"wstate {command} {where}: {out.stderr.decode()}")


def name_of(frame):
    name = frame["function"]["name"]
    # The runtime has no name either, and says so in its own words.
    return f"<wasm function {frame['function']['index']}>" if name is None or frame["function"].get("name_source") == "export" else name


def value(row):
    if row["bits"] is None:
        return None
    bits = int(row["bits"], 16)
    if row["type"] == "f64":
        return struct.unpack("<d", struct.pack("<Q", bits))[0]
    width = 32 if row["type"] == "i32" else 64
    return bits - (1 << width) if bits >> (width - 1) else bits


def check(counts, truth, report, contents, memory):
    """What `attach` or `core`, `modules` and `memory` say, against the truth."""
    threads = {t["tid"]: t for t in report["threads"]}
    frames = threads[truth["tid"]]["frames"]
    native = [f["function"]["name"] for f in frames if f["kind"] == "native" and f["function"]]
    walked = threads[truth["tid"]]["end"]["kind"] == "bottom" and any(n in BEGINNINGS for n in native)
    counts.say("walk", True, walked, unknown=True)
    wasm = [f for f in frames if f["kind"] == "wasm"]
    if truth["stop"] == "spin":
        wasm = [f for f in wasm if name_of(f) != "turn"]
    counts.say("walk", truth["depth"], len(wasm), unknown=len(wasm) < truth["depth"])
    for theirs, ours in zip(truth["frames"], wasm):
        counts.say("names", theirs["name"], name_of(ours))
        if theirs["offset"] is not None:
            counts.say("offsets", theirs["offset"], ours["wasm"] and ours["wasm"]["offset"])
    # Every frame knows its instance.
    instances = [i for m in contents["contents"] for i in m["instances"]]
    by_address = {i["address"]: i for i in instances}
    for ours in wasm:
        if ours["instance"] is None:
            # Registers that callees keep are lost without unwind tables, and code that runs told nobody.
            counts.say("instances", "one", None)
        else:
            counts.say("instances", True, ours["instance"] in by_address)
    bases = {m["base"]: i for i in instances for m in i["memories"] or [] if m["base"]}
    for guest in truth["instances"]:
        base, size = guest["memory"]
        instance = bases.get(hex(base))
        if instance is None:
            counts.say("instances", hex(base), None)
            for kind in ("memories", "globals", "tables", "bytes"):
                counts.say(kind, "known", None)
            continue
        counts.say("instances", True, True)
        counts.say("memories", [size], [m["size"] for m in instance["memories"]])
        for expected, row in zip(guest["globals"], instance["globals"]):
            counts.say("globals", expected, value(row))
        counts.say("globals", len(guest["globals"]), len(instance["globals"]))
        counts.say("tables", [guest["table"]], [t["elements"] for t in instance["tables"]])
        counts.say("bytes", DATA, memory(instance["number"]))
    expected = {hex(g["memory"][0]) for g in truth["instances"]}
    for base in bases:
        if base not in expected and truth["stop"] != "stores":
            counts.say("instances", None, base)


def check_gdb(counts, truth, wstate, pid, scratch):
    symbols = scratch / "wasm.sym"
    out = run([wstate, "symbols", "-p", pid, "-o", symbols])
    if out.returncode != 0:
        counts.say("gdb", "symbols", out.stderr.decode(), unknown=True)
        return
    commands = ["set confirm off", f"add-symbol-file {symbols}", "bt"]
    out = run(["gdb", "-nx", "-batch", "-p", pid, *(x for c in commands for x in ("-ex", c))])
    text = out.stdout.decode(errors="replace")
    names = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+) \(", text, re.MULTILINE)
    counts.say("gdb", True, any(n in BEGINNINGS for n in names), unknown=True)
    expected = [f["name"] for f in truth["frames"] if not f["name"].startswith("<")]
    found = [n for n in names if n in ("leaf", "fact")]
    counts.say("gdb", expected, found, unknown=len(found) < len(expected))


def one(arguments, version, stop, scratch):
    counts = Counts()
    place = package(version, arguments.cache)
    # gcore writes what is reserved out in full.
    small = ["--config=memory_reservation=1048576", "--config=memory_guard_size=65536"] if arguments.core else []
    command = [sys.executable, str(HERE / "host.py"), *STOPS[stop], *small]
    # It is killed, and removes nothing.
    env = {"PYTHONPATH": str(place), "TMPDIR": str(scratch)}
    host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    try:
        line = host.stdout.readline()
        if not line:
            raise SystemExit(f"{version} {stop}: the host said nothing")
        truth = json.loads(line)
        if "skip" in truth:
            return None
        pid = str(truth["pid"])
        wstate = arguments.wstate
        at = lambda where: lambda n: run([wstate, "memory", *where, "--instance", n, "0x400", len(DATA), "--raw"]).stdout
        report = wstate_json(wstate, "attach", [pid])
        check(counts, truth, report, wstate_json(wstate, "modules", ["-p", pid]), at(["-p", pid]))
        if arguments.gdb and not stop.startswith("deep"):
            check_gdb(counts, truth, wstate, pid, scratch)
        if arguments.core:
            run(["gcore", "-o", scratch / "core", pid])
            core = scratch / f"core.{pid}"
            where = ["-c", str(core)]
            report = wstate_json(wstate, "core", [str(core)])
            check(counts, truth, report, wstate_json(wstate, "modules", where), at(where))
            core.unlink()
    finally:
        host.kill()
        host.wait()
    return counts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--wstate", default=HERE.parents[2] / "target/release/wstate", type=pathlib.Path)
    parser.add_argument("--cache", type=pathlib.Path, help="where packages are kept (else nowhere)")
    parser.add_argument("--stops", default=",".join(STOPS))
    parser.add_argument("--core", action="store_true", help="the same in a core by gcore")
    parser.add_argument("--gdb", action="store_true", help="and gdb's plain bt with `wstate symbols`")
    parser.add_argument("--verbose", action="store_true", help="what is wrong or unknown")
    parser.add_argument("versions", nargs="*", default=RELEASES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        arguments.cache = arguments.cache or scratch / "packages"
        arguments.cache.mkdir(parents=True, exist_ok=True)
        status = 0
        print("right/unknown/wrong".ljust(24), *(k.rjust(11) for k in KINDS))
        for version in arguments.versions:
            total = Counts()
            for stop in arguments.stops.split(","):
                counts = one(arguments, version, stop, scratch)
                if counts is None:
                    continue
                for text, times in collections.Counter(counts.told).items() if arguments.verbose else ():
                    print(f"  {version} {stop}: {times} x {text}")
                total.update(counts)
            cells = ["/".join(str(total[k, o]) for o in ("right", "unknown", "wrong")) for k in KINDS]
            print(version.ljust(24), *(c.rjust(11) for c in cells), flush=True)
            if any(total[k, "wrong"] for k in KINDS):
                status = 1
            elif any(total[k, "unknown"] for k in KINDS):
                status = status or 2
    sys.exit(status)


main()
