"""Random modules, stopped at random instants: the callers that wstate finds, and the locals where they are recorded.

    python3 random_stops.py [--wstate FILE] [--stops N] [--seed N] [--singlepass HOST] [--guest-debug HOST]..
                            [--package DIR].. [--verbose]

Each function of a generated module writes its number to a stack in linear memory when it begins, and takes it off before it
ends or calls on. The process is stopped by SIGSTOP, so that this stack and wstate's answer are of one instant: the chain has
to be the stack, or the stack and one function more, which has not written its number yet or has taken it off already.
Local 1 of every function is its number times 0x01010101 and never changes behind its first instructions.

--singlepass names the host of tests/hosts/singlepass, --guest-debug that of tests/hosts/wasmtime, which record locals; each
--package a directory that PyPI's `wasmtime` was unpacked in, which is tried with Cranelift (with tail calls) and Winch. N
stops are made of each. The seeds are printed: `--seed` repeats a module, not its stops. Exit code 1 if anything is wrong.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
MAGIC = 0x5AFE57AC
# Where the stack of numbers begins; its end is in the word at 0, MAGIC at 4.
STACK = 0x400
NUMBER = 0x01010101
# What is counted: callers, values, and whether the file that the module was made from is accepted.
KINDS = ("chain", "locals", "file")


class Module:
    """A random module as text."""

    def __init__(self, seed, tail_calls, multi_value):
        self.random = random.Random(seed)
        self.tail_calls, self.multi_value = tail_calls, multi_value
        r = self.random
        self.count = r.randint(6, 16)
        types = ["i32", "i64", "f64"]
        self.signatures = []
        for _ in range(self.count):
            params = ["i32", *(r.choice(types) for _ in range(r.choice([0, 1, 2, 4, 7, 12, 20])))]
            wanted = r.choice([1, 1, 1, 2, 5, 11]) if multi_value else 1
            self.signatures.append((params, [r.choice(types) for _ in range(wanted)]))
        # Several functions of one type, for calls through the table.
        for i in range(self.count // 2):
            self.signatures[i * 2] = self.signatures[(i * 2 + 1) % self.count]

    def value(self, ty, params, depth=0):
        r = self.random
        choices = ["const", "const", "param"]
        if depth < 3:
            choices += ["add", "load"]
        kind = r.choice(choices)
        if kind == "param":
            fit = [i for i, p in enumerate(params) if p == ty and i > 0]
            if fit:
                return f"(local.get {r.choice(fit)})"
        if kind == "load" and ty != "f64":
            return f"({ty}.load offset={0x4000 + 8 * r.randint(0, 100)} (i32.and (local.get 0) (i32.const 0xff8)))"
        if kind == "add":
            return f"({ty}.add {self.value(ty, params, depth + 1)} {self.value(ty, params, depth + 1)})"
        return f"({ty}.const {r.randint(0, 1000)})"

    def arguments(self, callee, params):
        return " ".join(["(i32.sub (local.get 0) (i32.const 1))", *(self.value(p, params) for p in self.signatures[callee][0][1:])])

    def call(self, callee, params):
        """A call whose results are dropped."""
        same = [i for i in range(self.count) if self.signatures[i] == self.signatures[callee]]
        results = len(self.signatures[callee][1])
        if self.random.random() < 0.4:
            index = f"(i32.const {self.random.choice(same)})"
            call = f"(call_indirect (type $t{callee}) {self.arguments(callee, params)} {index})"
        else:
            call = f"(call $f{callee} {self.arguments(callee, params)})"
        return call + " drop" * results

    def statement(self, params, depth):
        r = self.random
        kind = r.choice(["call", "call", "call", "loop", "store", "if", "table", "grow", "fill"])
        inner = lambda: "\n".join(self.statement(params, depth + 1) for _ in range(r.randint(1, 2)))
        if kind in ("loop", "if", "table") and depth >= 2:
            kind = "store"
        if kind == "call":
            return f"(if {self.chance()} (then {self.call(r.randrange(self.count), params)}))"
        if kind == "loop":
            counter = f"(local.set $n (i32.sub (local.get $n) (i32.const 1)))"
            return (
                f"(local.set $n (i32.const {r.randint(1, 6)})) (loop {inner() if depth else ''} (local.set $x (i64.add (local.get $x) "
                f"(i64.const {r.randint(1, 99)}))) {counter} (br_if 0 (i32.gt_s (local.get $n) (i32.const 0))))"
            )
        if kind == "if":
            return f"(if {self.chance()} (then {inner()}) (else {inner()}))"
        if kind == "table":
            return f"(block (block (block (br_table 0 1 2 {self.draw(3)})) {inner()}) {inner()})"
        if kind == "grow":
            return "(drop (memory.grow (i32.const 0)))" if r.random() < 0.3 else "(drop (memory.size))"
        if kind == "fill" and self.multi_value:
            return f"(memory.fill (i32.const 0x8000) (i32.const {r.randint(0, 255)}) (i32.const {r.randint(0, 99)}))"
        return f"(i64.store offset={0x6000 + 8 * r.randint(0, 99)} (i32.const 0) (local.get $x))"

    def draw(self, mask):
        """A number that differs each time."""
        return (
            f"(i32.and (i32.const {mask}) (i32.shr_u (i32.load (i32.const 8)) (i32.const {self.random.randint(9, 20)})))"
        )

    def chance(self):
        turn = "(i32.store (i32.const 8) (i32.add (i32.mul (i32.load (i32.const 8)) (i32.const 1664525)) (i32.const 1013904223)))"
        return f"(i32.eqz (block (result i32) {turn} {self.draw(self.random.choice([1, 1, 3]))}))"

    def function(self, number):
        r = self.random
        params, results = self.signatures[number]
        # Local 1 is the number, so it comes behind one parameter: others are copied where they are needed.
        head = " ".join(f"(param {p})" for p in params) + " " + " ".join(f"(result {p})" for p in results)
        push = (
            f"(i32.store (i32.load (i32.const 0)) (i32.const {number})) "
            "(i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 4)))"
        )
        pop = "(i32.store (i32.const 0) (i32.sub (i32.load (i32.const 0)) (i32.const 4)))"
        values = " ".join(self.value(ty, params) for ty in results)
        body = [f"(local $id i32) (local $n i32) (local $x i64)", push, f"(local.set $id (i32.const {(number + 1) * NUMBER}))"]
        body.append(f"(if (i32.le_s (local.get 0) (i32.const 0)) (then {pop} (return {values})))")
        body += [self.statement(params, 0) for _ in range(r.randint(1, 5))]
        body.append("(i64.store offset=0x7000 (i32.const 0) (i64.add (local.get $x) (i64.extend_i32_u (local.get $id))))")
        body.append(pop)
        on = [i for i in range(self.count) if self.signatures[i][1] == results]
        if self.tail_calls and on and r.random() < 0.6:
            callee = r.choice(on)
            if r.random() < 0.4:
                body.append(f"(return_call_indirect (type $t{callee}) {self.arguments(callee, params)} (i32.const {callee}))")
            else:
                body.append(f"(return_call $f{callee} {self.arguments(callee, params)})")
        else:
            body.append(" ".join(self.value(ty, params) for ty in results))
        return f"(func $f{number} (type $t{number}) {head}\n" + "\n".join(body) + ")"

    def text(self):
        out = ['(module (import "env" "ready" (func $ready))', '(memory (export "memory") 2 3)']
        for i, (params, results) in enumerate(self.signatures):
            head = " ".join(f"(param {p})" for p in params) + " " + " ".join(f"(result {p})" for p in results)
            out.append(f"(type $t{i} (func {head}))")
        out.append(f"(table {self.count} funcref) (elem (i32.const 0) {' '.join(f'$f{i}' for i in range(self.count))})")
        out += [self.function(i) for i in range(self.count)]
        turns = "\n".join(
            f"(call $f{i} (i32.const {self.random.randint(2, 7)}) "
            + " ".join(f"({p}.const 7)" for p in self.signatures[i][0][1:])
            + ")"
            + " drop" * len(self.signatures[i][1])
            for i in range(self.count)
        )
        out.append(
            f'(func $run (export "run") (i32.store (i32.const 0) (i32.const {STACK})) (i32.store (i32.const 4) (i32.const {MAGIC}))\n'
            f"(call $ready) (loop {turns} (br 0))))"
        )
        return "\n".join(out)

    def id_local(self, number):
        return len(self.signatures[number][0])


class Counts(collections.Counter):
    def __init__(self):
        super().__init__()
        self.told = []

    def say(self, kind, outcome, what=""):
        self[kind, outcome] += 1
        if outcome != "right" and len(self.told) < 200:
            self.told.append(f"{kind} {outcome}: {what}")


def state(pid, tid):
    return (pathlib.Path("/proc") / str(pid) / "task" / str(tid) / "stat").read_text().rpartition(")")[2].split()[0]


def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    tids = os.listdir(f"/proc/{pid}/task")
    while any(state(pid, tid) not in "Tt" for tid in tids):
        time.sleep(0.0005)


def memory_bases(wstate, pid):
    """Where linear memories are, proven by what the guest wrote there."""
    out = subprocess.run([wstate, "modules", "-p", str(pid), "--json"], capture_output=True)
    contents = json.loads(out.stdout)
    instances = [i for m in contents["contents"] for i in m["instances"] or []]
    return {i["address"]: int(i["memories"][0]["base"], 16) for i in instances if i["memories"]}


def words(memory, address, count):
    memory.seek(address)
    return struct.unpack(f"<{count}I", memory.read(4 * count))


def check(counts, module, report, tids, bases, memory, singlepass):
    for thread in report["threads"]:
        if thread["tid"] not in tids:
            continue
        counts["stops", "all"] += 1
        frames = [f for f in thread["frames"] if f["kind"] == "wasm"]
        names = [f["function"]["name"] for f in frames]
        base = bases.get(thread["tid"])
        end, magic = words(memory, base, 2)
        assert magic == MAGIC, hex(magic)
        stack = [f"f{n}" for n in words(memory, base + STACK, (end - STACK) // 4)][::-1]
        stack.append("run")
        if names == stack or names[1:] == stack:
            counts.say("chain", "right")
        else:
            marked = thread["end"]["kind"] != "bottom" or any(f["trust"] in ("frame_pointer", "scan") for f in thread["frames"])
            place = frames[0]["function"] if frames else None
            top = thread["frames"][0]
            told = f"{names} instead of {stack}; pc {top['pc']}, {place}, end {thread['end']}"
            counts.say("chain", "unknown" if marked else "wrong", told)
        for frame in frames:
            name = frame["function"]["name"] or ""
            if not (name.startswith("f") and name[1:].isdigit() and frame["locals"]):
                continue
            number = int(name[1:])
            local = module.id_local(number)
            row = frame["locals"][local] if local < len(frame["locals"]) else None
            if row is None or row["bits"] is None:
                counts.say("locals", "unknown", row and row.get("why"))
                continue
            value = int(row["bits"], 16) & 0xFFFFFFFF
            # Of the youngest it may not have been set.
            good = value == (number + 1) * NUMBER or (frame is frames[0] and value == 0)
            counts.say("locals", "right" if good else "wrong", f"{name} local {local} is {value:#x}")


def run(arguments, name, command, environment, wanted, features, seed, scratch):
    counts = Counts()
    while counts["stops", "all"] < wanted:
        seed += 1
        module = Module(seed, **features)
        wat, wasm = scratch / "module.wat", scratch / "module.wasm"
        wat.write_text(module.text())
        subprocess.run(["wat2wasm", "--enable-all", "--debug-names", str(wat), "-o", str(wasm)], check=True)
        host = subprocess.Popen(
            [str(wasm) if word == "FILE" else word for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            line, said = host.stdout.readline().decode(), []
            while line and not line.startswith(("READY", "FAILED")):
                said += line.split() if line.startswith("STOPPED") else []
                line = host.stdout.readline().decode()
            if not line.startswith("READY"):
                counts.say("host", "failed", f"seed {seed}: {line}")
                if counts["host", "failed"] > 20:
                    break
                continue
            said = [w.partition("=")[::2] for w in [*said, *line.split()]]
            pid = int(dict(said)["pid"])
            tids = {int(v) for k, v in said if k == "tid"}
            # Others want to compute as well.
            for tid in tids:
                os.setpriority(os.PRIO_PROCESS, tid, 15)
            for round in range(arguments.rounds):
                time.sleep(arguments.random.random() * 0.01)
                stopped(pid)
                try:
                    instances = memory_bases(arguments.wstate, pid) if round == 0 else instances
                    out = subprocess.run(
                        [arguments.wstate, "attach", str(pid), "--json", "--wasm", str(wasm)], capture_output=True
                    )
                    report = json.loads(out.stdout)
                    refused = [note for note in report["notes"] if "not used" in note]
                    counts.say("file", "wrong" if refused else "right", f"seed {seed}: {refused}")
                    bases = {}
                    for thread in report["threads"]:
                        of = {f["instance"] for f in thread["frames"] if f["kind"] == "wasm" and f["instance"]}
                        if len(of) == 1 and (base := instances.get(of.pop())):
                            bases[thread["tid"]] = base
                    # A thread whose frames have no instance: the only memory that is left.
                    left = set(instances.values()) - set(bases.values())
                    for tid in tids - set(bases):
                        if len(left) == 1:
                            bases[tid] = next(iter(left))
                    known = {t for t in tids if t in bases}
                    counts["memory unknown", "all"] += len(tids) - len(known)
                    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                        before = counts["chain", "wrong"] + counts["locals", "wrong"]
                        check(counts, module, report, known, bases, memory, "singlepass" in name)
                    if counts["chain", "wrong"] + counts["locals", "wrong"] > before:
                        counts.told.append(f"that was seed {seed}")
                finally:
                    os.kill(pid, signal.SIGCONT)
        finally:
            host.kill()
            host.wait()
    shown = "  ".join(
        f"{kind}: " + " ".join(f"{o} {counts[kind, o]}" for o in ("right", "unknown", "wrong")) for kind in KINDS
    )
    print(f"{name:44} stops {counts['stops', 'all']:5}  {shown}  without a memory {counts['memory unknown', 'all']}", flush=True)
    for told in counts.told if arguments.verbose else [t for t in counts.told if " wrong" in t or t.startswith("that")]:
        print(f"    {told}")
    return counts, seed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--wstate", default=str(HERE.parents[1] / "target/debug/wstate"))
    parser.add_argument("--stops", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--singlepass")
    parser.add_argument("--guest-debug", action="append", default=[])
    parser.add_argument("--package", action="append", default=[])
    parser.add_argument("--only")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 30)
    print(f"seed {seed}")
    arguments.random = random.Random(seed)
    total = collections.Counter()
    runs = []
    plain = dict(tail_calls=False, multi_value=True)
    for place in arguments.package:
        version = next((p.name.split("-")[1].removesuffix(".dist") for p in pathlib.Path(place).glob("wasmtime-*.dist-info")), place)
        major = int(version.split(".")[0])
        host = [sys.executable, str(HERE / "foreign/spin.py"), "--threads", str(arguments.threads), "FILE"]
        environment = dict(os.environ, PYTHONPATH=place)
        runs.append((f"{version} cranelift", host, environment, dict(plain, tail_calls=True)))
        # The library of older releases takes no other strategy than Cranelift.
        if major >= 45:
            tails = ["--config", "wasm_tail_call=1"] if major >= 50 else []
            runs.append((f"{version} winch", [*host, "--winch", *tails], environment, dict(plain, tail_calls=major >= 50)))
    for place in arguments.guest_debug:
        # The library in PyPI's package cannot be asked for it.
        more = [word for _ in range(arguments.threads - 1) for word in ("--more", "FILE")]
        host = [place, "wasm", "--wasm", "FILE", "--call", "run", "--stop-after", "1", "--guest-debug", *more]
        runs.append((f"{pathlib.Path(place).name} guest_debug", host, None, dict(plain, tail_calls=True)))
    if arguments.singlepass:
        runs.append(("singlepass", [arguments.singlepass, "wasm", "--stay", "--call", "run", "--wasm", "FILE"], None, dict(tail_calls=False, multi_value=False)))
    with tempfile.TemporaryDirectory() as scratch:
        for name, command, environment, features in runs:
            if arguments.only and arguments.only not in name:
                continue
            counts, seed = run(arguments, name, command, environment, arguments.stops, features, seed, pathlib.Path(scratch))
            total.update(counts)
    print("all: " + "  ".join(f"{k} {o} {n}" for (k, o), n in sorted(total.items())))
    sys.exit(1 if any(total[kind, "wrong"] for kind in KINDS) else 0)


main()
