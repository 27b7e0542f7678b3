"""Generated modules whose frames, operators, locals and operands are known, in hosts that stop in them.

    python3 points.py --wstate FILE --host FILE [--count N] [--seed N] [--flags "--guest-debug --inlining"] [--keep DIR]
    python3 points.py --wstate FILE --cli FILE [--count N] [--seed N] [--flags "-D guest-debug -C inlining=y"]

Functions have 0 to 20 parameters and 0 to 8 results of all types, so that calls pass some on the stack; they call each other directly
and through a table, with operands below the arguments, in blocks, loops and arms of `if`, some in small functions that a compiler
inlines, some more than once. `--host` is the workspace's host-wasmtime: there the runtime's own debug API is asked as well. `--cli` is a
`wasmtime`: the guest says that it is there and sleeps. Printed is what was right, unknown and wrong; exit code 1 if anything is
wrong, 2 if something is unknown that `--sure` names. Nothing that is printed depends on the time: a seed is a module.
"""

import argparse
import collections
import json
import pathlib
import random
import subprocess
import sys
import tempfile

I32, I64, F32, F64, V128, FUNCREF, EXTERNREF = 0x7F, 0x7E, 0x7D, 0x7C, 0x7B, 0x70, 0x6F
NAMES = {I32: "i32", I64: "i64", F32: "f32", F64: "f64", V128: "v128", FUNCREF: "funcref", EXTERNREF: "externref"}
BITS = {I32: 32, I64: 64, F32: 32, F64: 64, V128: 128, FUNCREF: 64, EXTERNREF: 32}
KINDS = ["frames", "functions", "inlined", "operators", "locals", "operands"]


def leb(n):
    out = bytearray()
    while True:
        byte, n = n & 0x7F, n >> 7
        out.append(byte | (0x80 if n else 0))
        if not n:
            return bytes(out)


def sleb(n, bits):
    n &= (1 << bits) - 1
    if n >> (bits - 1):
        n -= 1 << bits
    out = bytearray()
    while True:
        byte, n = n & 0x7F, n >> 7
        done = (n == 0 and not byte & 0x40) or (n == -1 and byte & 0x40)
        out.append(byte | (0 if done else 0x80))
        if done:
            return bytes(out)


def vec(items):
    return leb(len(items)) + b"".join(items)


def section(number, body):
    return bytes([number]) + leb(len(body)) + body


def const(ty, bits):
    """The operator that pushes a value."""
    if ty == I32:
        return b"\x41" + sleb(bits, 32)
    if ty == I64:
        return b"\x42" + sleb(bits, 64)
    if ty in (F32, F64):
        width = BITS[ty] // 8
        return (b"\x43" if ty == F32 else b"\x44") + bits.to_bytes(width, "little")
    if ty == V128:
        return b"\xfd\x0c" + bits.to_bytes(16, "little")
    return bytes([0xD0, ty])


class Function:
    def __init__(self, number, params, results, locals_):
        self.number, self.params, self.results, self.locals = number, params, results, locals_
        # What it does: (operator bytes, what that means), filled by Module.
        self.code = []
        self.offsets = []


class Module:
    """A module and what it does, as a list of steps for each function that `run` follows."""

    def __init__(self, seed, host_import):
        self.random = random.Random(seed)
        self.host_import = host_import
        r = self.random
        self.types = []
        # Imports: fd_write, poll_oneoff; for the workspace's host, one of any signature in place of the second.
        self.write = self.type_of([I32] * 4, [I32])
        params = [self.any_type() for _ in range(r.randint(0, 20))] if host_import else [I32] * 4
        results = [self.any_type() for _ in range(r.choice([0, 1, 1, 2, 5, 8]))] if host_import else [I32]
        self.stop = (params, results)
        self.stop_type = self.type_of(params, results)
        self.functions = []
        count = r.randint(3, 8)
        for number in range(count):
            small = r.random() < 0.4
            limit = r.choice([0, 2, 6, 9, 12, 20])
            params = [self.any_type() for _ in range(r.randint(0, limit))] if number else []
            results = [self.any_type() for _ in range(r.choice([0, 0, 1, 1, 2, 3, 8]))]
            locals_ = [self.any_type() for _ in range(0 if small else r.randint(0, 6))]
            self.functions.append(Function(number + 2, params, results, locals_))
        for at, function in enumerate(self.functions):
            self.write_body(at, function)
        # Which of the calls of the last function stops is chosen among all that there are.
        self.leaves = self.count_leaves(0)
        self.nth = r.randrange(self.leaves)
        self.bytes = self.encode()

    def any_type(self):
        return self.random.choice([I32, I32, I64, I64, F32, F64, F64, V128, FUNCREF, EXTERNREF])

    def type_of(self, params, results):
        key = (tuple(params), tuple(results))
        if key not in self.types:
            self.types.append(key)
        return self.types.index(key)

    def bits(self, ty):
        r = self.random
        if ty in (FUNCREF, EXTERNREF):
            return 0
        return r.choice([0, 1, r.getrandbits(7), r.getrandbits(BITS[ty]), r.getrandbits(BITS[ty])])

    # A body is a list of steps; `depth` counts operands of enclosing blocks as well. Steps:
    #   ("push", ty, bits) ("get", local) ("set", local, ty, bits) ("drop",) ("call", index, how) ("stop",) ("open", kind, type)
    #   ("else",) ("close",) ("end",)
    def write_body(self, at, function):
        r, steps = self.random, []
        variables = function.params + function.locals
        last = at == len(self.functions) - 1
        small = not function.locals and r.random() < 0.7
        stack = []

        def push(ty):
            places = [i for i, t in enumerate(variables) if t == ty]
            if places and r.random() < 0.5:
                steps.append(("get", r.choice(places)))
            else:
                steps.append(("push", ty, self.bits(ty)))
            stack.append(ty)

        def drop(n=1):
            for _ in range(n):
                steps.append(("drop",))
                stack.pop()

        def assign():
            if variables and r.random() < 0.6:
                local = r.randrange(len(variables))
                steps.append(("set", local, variables[local], self.bits(variables[local])))

        def call(index):
            params, results = self.stop if index is None else (self.functions[index].params, self.functions[index].results)
            for number, ty in enumerate(params):
                if index is None and not self.host_import:
                    # poll_oneoff(subscription, event, 1, 8)
                    steps.append(("push", I32, [64, 256, 1, 8][number]))
                    stack.append(I32)
                else:
                    push(ty)
            if index is None:
                steps.append(("stop",))
            elif r.random() < 0.3:
                steps.append(("push", I32, index))
                steps.append(("indirect", index))
            else:
                steps.append(("call", index))
            del stack[len(stack) - len(params):]
            stack.extend(results)

        def site(index, nested):
            """A call with what is around it."""
            assign()
            below = r.randint(0, 1 if small else 4)
            for _ in range(below):
                push(self.any_type())
            kind = r.choice(["none", "none", "block", "loop", "then", "else"]) if nested < 2 and not small else "none"
            before = len(stack)
            results = [] if index is None and not self.stop[1] else self.stop[1] if index is None else self.functions[index].results
            if kind != "none":
                # In the tail of a block with the call's results, or with none.
                tail = r.random() < 0.5
                ty = self.type_of([], results if tail else [])
                if kind in ("then", "else"):
                    steps.append(("push", I32, 1 if kind == "then" else 0))
                    steps.append(("open", "if", ty))
                    if kind == "else":
                        for t in results if tail else []:
                            steps.append(("push", t, self.bits(t)))
                        steps.append(("else", "skipped"))
                else:
                    steps.append(("open", kind, ty))
                if nested < 1 and r.random() < 0.3:
                    push(self.any_type())
                    drop()
                call(index)
                if not tail:
                    drop(len(results))
                if kind == "then":
                    steps.append(("else", "skip"))
                    for t in results if tail else []:
                        steps.append(("push", t, self.bits(t)))
                steps.append(("close",))
            else:
                call(index)
            if len(stack) > before:
                drop(len(stack) - before)
            drop(below)

        if last:
            for ty in ([] if small else [self.any_type() for _ in range(r.randint(0, 2))]):
                push(ty)
            kept = len(stack)
            # Counts; stops when it is its turn.
            steps.append(("turn",))
            site(None, 1)
            steps.append(("turn-end",))
            drop(kept)
        else:
            for _ in range(1 if small else r.choice([1, 1, 2])):
                site(r.randint(at + 1, min(at + 2, len(self.functions) - 1)), 0)
        for ty in function.results:
            push(ty)
        steps.append(("end",))
        function.steps = steps

    def count_leaves(self, at, memo=None):
        memo = {} if memo is None else memo
        if at == len(self.functions) - 1:
            return 1
        if at not in memo:
            called = [s[1] for s in self.functions[at].steps if s[0] in ("call", "indirect")]
            memo[at] = sum(self.count_leaves(c, memo) for c in called)
        return memo[at]

    def encode_step(self, step):
        kind = step[0]
        if kind == "push":
            return [const(step[1], step[2])]
        if kind == "get":
            return [b"\x20" + leb(step[1])]
        if kind == "set":
            return [const(step[2], step[3]), b"\x21" + leb(step[1])]
        if kind == "drop":
            return [b"\x1a"]
        if kind == "call":
            return [b"\x10" + leb(self.functions[step[1]].number)]
        if kind == "indirect":
            f = self.functions[step[1]]
            return [b"\x11" + leb(self.type_of(f.params, f.results)) + leb(0)]
        if kind == "stop":
            return [b"\x10" + leb(1)]
        if kind == "open":
            return [{"block": b"\x02", "loop": b"\x03", "if": b"\x04"}[step[1]] + sleb(step[2], 33)]
        if kind == "else":
            return [b"\x05"]
        if kind in ("close", "end", "turn-end"):
            return [b"\x0b"]
        assert kind == "turn"
        say = []
        if not self.host_import:
            # fd_write(1, iovec at 0, 1, 8)
            say = [const(I32, 1), const(I32, 0), const(I32, 1), const(I32, 8), b"\x10\x00", b"\x1a"]
        # if (++turn == nth + 1)
        turn = [b"\x23\x00", const(I32, 1), b"\x6a", b"\x24\x00", b"\x23\x00", const(I32, self.nth + 1), b"\x46", b"\x04\x40"]
        return turn + say

    def encode(self):
        for f in self.functions:
            self.type_of(f.params, f.results)
        bodies = []
        for f in self.functions:
            declared = vec([leb(1) + bytes([ty]) for ty in f.locals])
            body, f.offsets = declared, []
            for step in f.steps:
                here = []
                for operator in self.encode_step(step):
                    here.append(len(body))
                    body += operator
                # A step of several operators is at its last one.
                f.offsets.append(here[-1])
            bodies.append(body)
        types = [b"\x60" + vec([bytes([t]) for t in p]) + vec([bytes([t]) for t in q]) for p, q in self.types]
        name = lambda text: leb(len(text)) + text.encode()
        wasi = "wasi_snapshot_preview1"
        stop = name("env") + name("stop") if self.host_import else name(wasi) + name("poll_oneoff")
        out = b"\0asm\1\0\0\0"
        out += section(1, vec(types))
        out += section(2, vec([name(wasi) + name("fd_write") + b"\0" + leb(self.write), stop + b"\0" + leb(self.stop_type)]))
        out += section(3, vec([leb(self.type_of(f.params, f.results)) for f in self.functions]))
        out += section(4, vec([b"\x70\x00" + leb(len(self.functions))]))
        out += section(5, vec([b"\x00\x01"]))
        out += section(6, vec([b"\x7f\x01\x41\x00\x0b"]))
        out += section(7, vec([name("_start" if not self.functions[0].results else "run") + b"\0" + leb(2), name("memory") + b"\2\0"]))
        out += section(9, vec([b"\x00\x41\x00\x0b" + vec([leb(f.number) for f in self.functions])]))
        code, starts = leb(len(bodies)), []
        for body in bodies:
            code += leb(len(body))
            starts.append(len(code))
            code += body
        before = len(out) + 1 + len(leb(len(code)))
        for f, start in zip(self.functions, starts):
            f.offsets = [before + start + o for o in f.offsets]
        out += section(10, code)
        # iovec {16, 6}, "READY\n" there; a subscription at 64: the monotonic clock, hours.
        data = bytearray(128)
        data[0:8] = (16).to_bytes(4, "little") + (6).to_bytes(4, "little")
        data[16:22] = b"READY\n"
        data[64 + 16] = 1
        data[64 + 24 : 64 + 32] = (1 << 44).to_bytes(8, "little")
        out += section(11, vec([b"\x00\x41\x00\x0b" + leb(len(data)) + bytes(data)]))
        return out

    def expected(self):
        """Frames at the stop, youngest first: function, offset of the call, locals, operands."""
        turn = [0]

        def run(at, arguments):
            f = self.functions[at]
            variables = list(zip(f.params, arguments)) + [(ty, 0) for ty in f.locals]
            stack, skip, level = [], None, 0
            blocks = []
            for number, step in enumerate(f.steps):
                kind = step[0]
                if skip is not None:
                    if kind in ("open",):
                        level += 1
                    elif kind == "close" and level > 0:
                        level -= 1
                    elif (kind == "else" and step[1] == skip and level == 0) or (kind == "close" and level == 0):
                        skip = None
                    continue
                here = lambda: (f, f.offsets[number], list(variables), list(stack))
                if kind == "push":
                    stack.append(step[1:3])
                elif kind == "get":
                    stack.append(variables[step[1]])
                elif kind == "set":
                    variables[step[1]] = step[2:4]
                elif kind == "drop":
                    stack.pop()
                elif kind == "open":
                    if step[1] == "if" and stack.pop()[1] == 0:
                        skip, level = "skipped", 0
                elif kind == "else":
                    skip, level = "close", 0
                elif kind == "turn":
                    turn[0] += 1
                    if turn[0] != self.nth + 1:
                        # Nothing behind the condition shows.
                        return []
                elif kind == "stop":
                    return [here()]
                elif kind in ("call", "indirect"):
                    at_call = here()
                    if kind == "indirect":
                        stack.pop()
                    callee = self.functions[step[1]]
                    n = len(callee.params)
                    frames = run(step[1], [bits for _, bits in stack[len(stack) - n :]] if n else [])
                    if frames:
                        return frames + [at_call]
                    del stack[len(stack) - n :]
                    # What it returns nobody uses: it is dropped.
                    stack.extend((ty, 0) for ty in callee.results)
            return []

        return run(0, [])


class Counts(collections.Counter):
    def __init__(self):
        super().__init__()
        self.told = []

    def say(self, kind, outcome, text=""):
        self[kind, outcome] += 1
        if outcome == "wrong":
            self.told.append(f"{kind}: {text}")

    def row(self, kinds=KINDS):
        return ["/".join(str(self[k, o]) for o in ("right", "unknown", "wrong")) for k in kinds]


def bits_of(row, ty):
    if row["bits"] is None:
        return None
    return int(row["bits"], 16) & ((1 << BITS[ty]) - 1)


def compare_values(counts, kind, where, expected, found, sure):
    if found is None:
        for _ in expected:
            counts.say(kind, "unknown")
        counts.told.append(f"{kind} unknown: {where}") if sure and expected else None
        return
    if len(found) != len(expected):
        counts.say(kind, "wrong", f"{where}: {len(found)} instead of {len(expected)}")
        return
    for number, ((ty, bits), row) in enumerate(zip(expected, found)):
        if row["type"] != NAMES[ty] and not (ty == EXTERNREF and row["type"] in ("externref", "ref")):
            counts.say(kind, "wrong", f"{where}: {number} is {row['type']} instead of {NAMES[ty]}")
            continue
        ours = bits_of(row, ty)
        outcome = "unknown" if ours is None else "right" if ours == bits else "wrong"
        counts.say(kind, outcome, f"{where}: {number} ({NAMES[ty]}) is {ours} instead of {bits}")


def check(counts, module, report, tid, flags, sure, status):
    """What an attach says, against what is known of the module."""
    expected = module.expected()
    threads = [t for t in report["threads"] if tid is None or t["tid"] == tid]
    frames = [f for t in threads for f in t["frames"] if f["kind"] == "wasm"]
    told_missing = any(f.get("may_miss_inlined") for f in frames)
    if len(frames) != len(expected):
        # Fewer are no lie if it is said.
        outcome = "unknown" if len(frames) < len(expected) and told_missing and status == 1 else "wrong"
        counts.say("frames", outcome, f"{len(frames)} instead of {len(expected)}")
        if outcome == "wrong":
            return
        # The outer ones are there, each with its function.
        physical = iter(expected)
        for ours in frames:
            found = next((e for e in physical if e[0].number == ours["function"]["index"]), None)
            counts.say("functions", "right" if found else "wrong", "a function that is not on the stack")
            offset = ours["wasm"]["offset"]
            if found and offset is not None:
                counts.say("operators", "right" if int(offset, 16) == found[1] else "wrong", f"{offset} instead of {found[1]:#x}")
        return
    counts.say("frames", "right")
    if told_missing:
        # Without an address map nothing tells where nothing is inlined.
        outcome = "unknown" if "address-map" in flags else "wrong"
        counts.say("inlined", outcome, "frames may be missing, it says, but all are there")
    for (function, offset, variables, stack), ours in zip(expected, frames):
        where = f"func {function.number}"
        index = ours["function"]["index"]
        counts.say("functions", "right" if index == function.number else "wrong", f"{index} instead of {function.number}")
        counts.say("inlined", "right")
        found = ours["wasm"]["offset"]
        outcome = "unknown" if found is None else "right" if int(found, 16) == offset else "wrong"
        counts.say("operators", outcome, f"{where}: {found} instead of {offset:#x}")
        if "guest-debug" not in flags:
            continue
        compare_values(counts, "locals", where, variables, ours["locals"], sure)
        # The index of an indirect call may be taken already.
        if ours["stack"] is not None and len(ours["stack"]) == len(stack) - 1 and is_indirect(function, offset):
            stack = stack[:-1]
        compare_values(counts, "operands", where, stack, ours["stack"], sure)


def is_indirect(function, offset):
    return any(o == offset and s[0] == "indirect" for o, s in zip(function.offsets, function.steps))


def check_runtime(counts, module, truth):
    """What the runtime's own debug API says, against the same."""
    expected = module.expected()
    if not truth.get("debug"):
        return
    frames = [f for a in truth["debug"] for f in a]
    counts.say("frames", "right" if len(frames) == len(expected) else "wrong", f"{len(frames)} instead of {len(expected)}")
    for (function, offset, variables, stack), theirs in zip(expected, frames):
        counts.say("functions", "right" if theirs["func_index"] == function.number else "wrong", "the runtime")
        for kind, wanted in (("locals", variables), ("operands", stack)):
            rows = theirs["locals" if kind == "locals" else "stack"]
            if kind == "operands" and is_indirect(function, offset) and len(rows) == len(wanted) - 1:
                wanted = wanted[:-1]
            if len(rows) != len(wanted):
                counts.say(kind, "wrong", f"the runtime: func {function.number}: {len(rows)} instead of {len(wanted)}")
                continue
            for (ty, bits), row in zip(wanted, rows):
                value = 0 if row["bits"] == "null" else int(row["bits"], 16) & ((1 << BITS[ty]) - 1)
                counts.say(kind, "right" if value == bits else "wrong", f"the runtime: {value} instead of {bits}")


def attach(wstate, pid):
    out = subprocess.run([str(wstate), "attach", str(pid), "--json"], capture_output=True, timeout=300)
    try:
        return json.loads(out.stdout), out.returncode
    except ValueError:
        raise SystemExit(f"wstate attach: {out.stderr.decode()}")


def one(arguments, seed, scratch, counts, runtime):
    module = Module(seed, arguments.host is not None)
    wasm = scratch / f"{seed}.wasm"
    wasm.write_bytes(module.bytes)
    flags = arguments.flags.split()
    entry = "_start" if not module.functions[0].results else "run"
    truth = scratch / f"{seed}.json"
    if arguments.host:
        command = [arguments.host, "wasm", "--wasm", wasm, "--call", entry, "--stop-at", "env.stop", "--truth", truth, *flags]
    else:
        call = [] if entry == "_start" else ["--invoke", entry]
        command = [arguments.cli, "run", *flags, *call, wasm]
    host = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = host.stdout.readline()
        if b"READY" not in line:
            raise SystemExit(f"seed {seed}: the host said {line!r}, {host.stderr.read().decode()[:2000]}")
        if not arguments.host:
            asleep(host)
        report, status = attach(arguments.wstate, host.pid)
    finally:
        host.kill()
        host.wait()
    tid = None
    if arguments.host:
        told = json.loads(truth.read_text())
        tid = told["tid"]
        check_runtime(runtime, module, told)
    check(counts, module, report, tid, arguments.flags, arguments.sure, status)


def asleep(host):
    """Waits until all threads of the host are in system calls, and the guest's with them."""
    while True:
        states = []
        for task in pathlib.Path(f"/proc/{host.pid}/task").iterdir():
            try:
                states.append((task / "syscall").read_text().split()[0])
            except OSError:
                pass
        if states and all(s.isdigit() for s in states):
            return
        if host.poll() is not None:
            raise SystemExit(f"the host ended: {host.stderr.read().decode()[:2000]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--wstate", required=True, type=pathlib.Path)
    parser.add_argument("--host", type=pathlib.Path)
    parser.add_argument("--cli", type=pathlib.Path)
    parser.add_argument("--flags", default="")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sure", default="", help="kinds of which nothing may be unknown, with commas")
    parser.add_argument("--keep", type=pathlib.Path, help="where modules are kept")
    arguments = parser.parse_args()
    counts, runtime = Counts(), Counts()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = arguments.keep or pathlib.Path(scratch)
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            before = len(counts.told)
            one(arguments, seed, scratch, counts, runtime)
            for text in counts.told[before:]:
                print(f"  seed {seed}: {text}")
    print("right/unknown/wrong".ljust(22), *(k.rjust(14) for k in KINDS))
    print("wstate".ljust(22), *(c.rjust(14) for c in counts.row()))
    if runtime:
        print("the runtime".ljust(22), *(c.rjust(14) for c in runtime.row()))
    for text in runtime.told:
        print(f"  {text}")
    if any(counts[k, "wrong"] or runtime[k, "wrong"] for k in KINDS):
        sys.exit(1)
    if any(counts[k, "unknown"] for k in arguments.sure.split(",") if k):
        sys.exit(2)


main()
