"""A Wasmer host as somebody else built it: PyPI's `wasmer-sdk`, whose coroutines mark their unwind tables as signal frames.

    python3 wasmer_host.py [--wstate FILE] [--cache DIR] [--verbose]

A WASI guest waits in a coroutine of a coroutine. No signal was sent: exit code 1 if a frame says so, if a thread does not end
at the bottom of its stack, or if the frames of the coroutines are missing.
"""

import argparse
import asyncio
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
VERSION = "0.5.0"
# Where a coroutine begins, and where its host calls are made on the host's stack.
SWITCHES = ("stack_init_trampoline", "stack_call_trampoline")


def host(guest):
    """The process that is looked at."""
    from wasmer_sdk import Wasmer

    async def main():
        async with Wasmer() as wasmer:
            package = await wasmer.packages.load(pathlib.Path(guest).read_bytes())
            async with await wasmer.sandboxes.create(packages=[package]) as sandbox:
                print("READY", flush=True)
                await sandbox.command(package).run()

    asyncio.run(main())


def waits(pid):
    """Whether a thread waits in the guest's call."""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            if (task / "comm").read_text().startswith("TokioTask"):
                if (task / "syscall").read_text().split()[0] == "202":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            # The thread has ended since it was listed.
            continue
    return False


def look(wstate, pid):
    out = subprocess.run([wstate, "attach", str(pid), "--json"], capture_output=True, timeout=300)
    return json.loads(out.stdout)


def switches(report):
    names = [(f["function"] or {}).get("name") or "" for t in report["threads"] for f in t["frames"]]
    return [n for n in names if n in SWITCHES]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--wstate", default=HERE.parents[2] / "target/release/wstate", type=pathlib.Path)
    parser.add_argument("--cache", type=pathlib.Path)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.host:
        return host(arguments.host)
    with tempfile.TemporaryDirectory() as scratch:
        place = (arguments.cache or pathlib.Path(scratch)).resolve() / f"wasmer-sdk-{VERSION}"
        if not place.is_dir():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*command, "--target", str(place), f"wasmer-sdk=={VERSION}"], check=True, stdout=sys.stderr)
        guest = pathlib.Path(scratch) / "sleeper.wasm"
        subprocess.run(["wat2wasm", str(HERE / "sleeper.wat"), "-o", str(guest)], check=True)
        command = [sys.executable, str(HERE / "wasmer_host.py"), "--host", str(guest)]
        environment = {**os.environ, "PYTHONPATH": str(place)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment, cwd=scratch)
        try:
            assert process.stdout.readline() == b"READY\n", "the host did not start"
            while not waits(process.pid):
                os.sched_yield()
            report = look(arguments.wstate, process.pid)
            # The thread may have waited for something before the guest ran.
            while not switches(report):
                report = look(arguments.wstate, process.pid)
        finally:
            process.kill()
            process.wait()
    frames = [f for t in report["threads"] for f in t["frames"]]
    signals = [f for f in frames if any("signal" in n for n in f["notes"]) or "signal" in ((f["function"] or {}).get("name") or "")]
    lost = [t["end"] for t in report["threads"] if t["end"]["kind"] != "bottom"]
    print(f"{len(switches(report))} switches of stacks, {len(signals)} frames said to be of signals, {len(lost)} threads lost")
    for problem in [*signals, *lost] if arguments.verbose else ():
        print(f"  {problem}")
    sys.exit(1 if signals or lost else 0)


main()
