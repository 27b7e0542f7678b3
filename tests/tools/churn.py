"""Attaches again and again to a host that loads and unloads modules all the time, and counts frames that are wrong.

    python3 tests/tools/churn.py [--attaches 500] [--loads 0] [--wasm FILE].. [--wstate PATH] [--show N] [ARG..] -- HOST [WORD..]

HOST is churn-singlepass, churn-wasmtime, churn-wasmtime-36 (see tests/hosts/churn/guests.rs), or `python3
tests/tools/churn_host.py`. ARG goes to `wstate attach`. The truth is in the stack: the thread's name is that of the module
that it ran in, local 2 is the module's number and the function's, and so is the operand at each call. It goes on until both
so many attaches and so many loads were made. Exit code 1: something was wrong.
"""
import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile

GONE = "the module was gone before it could be read"


def number(slot):
    return None if slot is None or slot.get("bits") is None else int(slot["bits"], 16) & 0xFFFFFFFF


def judge(report, code, counts, bad):
    """Counts what is right, unknown and wrong in one report."""
    text = json.dumps(report)
    counts["exit %d" % code] += 1
    counts["reports that say gone"] += GONE in text
    for thread in report["threads"]:
        name = thread["name"] or ""
        if not name.startswith("m_"):
            continue
        letter = name[2:]
        frames = [f for f in thread["frames"] if f["kind"] == "wasm"]
        unknown = [f for f in thread["frames"] if f["kind"] == "unknown"]
        counts["stacks"] += 1
        counts["stacks with Wasm frames"] += bool(frames)
        if not frames and letter != "-":
            # It has its name a little before and after it is in Wasm code: the youngest frame says so.
            youngest = next((f["function"] or {} for f in thread["frames"]), {})
            counts["no Wasm frame yet, in %s" % (youngest.get("name") or "?")[-60:]] += 1
        counts["unknown frames"] += len(unknown)
        counts["stacks that end: %s" % thread["end"]["kind"]] += 1
        seen = []
        for frame in frames:
            function = (frame["function"] or {}).get("name")
            if letter == "-":
                counts["frames beside a run"] += 1
                continue
            k = None
            if function is None:
                counts["no name"] += 1
            elif function == "run":
                k = 255
                counts["right name"] += 1
            elif function.startswith("f%s_" % letter):
                k = int(function[3:])
                counts["right name"] += 1
            else:
                counts["WRONG name"] += 1
                bad.append(("name", name, function, frame["wasm"], report["notes"], code))
                continue
            seen.append(k)
            for place, slots in (("local", frame["locals"]), ("operand", frame["stack"])):
                # Behind the operand that is kept there may be the arguments of the call, and in the youngest others.
                slots = [s for s in slots or [] if s["index"] == (2 if place == "local" else 0)]
                slots = [] if place == "operand" and frame is frames[0] else slots
                for slot in slots:
                    value = number(slot)
                    if value is None:
                        counts["%s not known" % place] += 1
                    elif k is None:
                        counts["%s without a name" % place] += 1
                    elif value == 0 and place == "local":
                        counts["local not set yet"] += 1
                    elif value >> 16 == 10 + "abc".index(letter) and value & 0xFFFF in (k, k | 256):
                        counts["right %s" % place] += 1
                    else:
                        counts["WRONG %s" % place] += 1
                        bad.append((place, name, function, hex(value), code))
        # Youngest first: f_n .. f_0, run. Where all is said to be there, each one is.
        known = [k for k in seen if k is not None]
        whole = sorted((k for k in known if k != 255), reverse=True)
        if known and None not in seen and (thread["end"]["kind"] == "bottom" and code == 0):
            if known != [*range(whole[0], -1, -1), 255] if whole else known != [255]:
                counts["WRONG: a frame left out"] += 1
                bad.append(("left out", name, known))
        elif known != whole + [k for k in known if k == 255]:
            counts["WRONG order"] += 1
            bad.append(("order", name, known))


def main():
    words = sys.argv[1:]
    split = words.index("--")
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--attaches", type=int, default=500)
    parser.add_argument("--loads", type=int, default=0)
    parser.add_argument("--wstate", default="target/release/wstate")
    parser.add_argument("--show", type=int, default=5)
    options, rest = parser.parse_known_args(words[:split])
    # The host is killed, and removes nothing of what it writes there.
    scratch = tempfile.TemporaryDirectory()
    env = {**os.environ, "TMPDIR": scratch.name}
    host = subprocess.Popen(words[split + 1 :], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert host.stdout.readline().startswith("READY")
    counts, bad = collections.Counter(), []
    stood, took = [], []

    def loaded():
        host.stdin.write("\n")
        host.stdin.flush()
        return int(host.stdout.readline().split()[1])

    done, loads = 0, 0
    while done < options.attaches or loads < options.loads:
        done += 1
        command = [options.wstate, "attach", str(host.pid), "--json", "--timing"] + rest
        output = subprocess.run(command, capture_output=True, text=True)
        try:
            report = json.loads(output.stdout)
        except ValueError:
            counts["no report"] += 1
            bad.append(("no report", output.returncode, output.stderr[-300:]))
            continue
        stood.append(report["timing"]["stopped_ms"] or 0)
        took.append(sum(report["timing"][part] for part in ("reading_ms", "walking_ms", "symbolizing_ms")))
        judge(report, output.returncode, counts, bad)
        loads = loaded() if done % 50 == 0 or done >= options.attaches else loads
    host.kill()
    host.wait()
    median = lambda list: sorted(list)[len(list) // 2] if list else 0
    print("%d attaches, %d loads, stood %.3f ms, took %.1f ms (medians)" % (done, loads, median(stood), median(took)))
    for what, count in sorted(counts.items()):
        if count:
            print("  %7d  %s" % (count, what))
    for one in bad[: options.show]:
        print("   ", one)
    return 1 if any(what.startswith("WRONG") for what in counts if counts[what]) else 0


sys.exit(main())
