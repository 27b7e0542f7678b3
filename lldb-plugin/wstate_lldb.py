"""Wasm backtraces in lldb: `wasm bt` and its family.

Load it with `command script import wstate_lldb.py`, or let `wstate plugin install lldb` do that. It knows nothing about
Wasm: it starts `wstate serve --stdio`, lends it memory and registers, and prints what it says. Needs lldb 16 or newer.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import lldb

# ---- shared client: the same text in gdb-plugin and lldb-plugin ----

PROTOCOL = 1
DEFAULT_TIMEOUT = 60
MAX_LINE = 1 << 28


class WstateError(Exception):
    """An error whose text is one line for the user."""


class Settings:
    """What the user may set. Each list is a list of paths."""

    def __init__(self) -> None:
        self.server = ""
        self.files: List[str] = []
        self.artifacts: List[str] = []
        self.debug_dirs: List[str] = []
        self.sysroot = ""
        self.auto_load = True
        self.timeout = DEFAULT_TIMEOUT

    def program(self) -> str:
        """The path of the engine: the one that the user set, else that in PATH, else that where cargo installs
        programs."""
        if self.server:
            return os.path.expanduser(self.server)
        home = os.path.expanduser("~/.cargo/bin/wstate")
        return shutil.which("wstate") or (home if os.access(home, os.X_OK) else "wstate")

    def request(self, executable: Optional[str]) -> Dict[str, Any]:
        absolute = [os.path.abspath(os.path.expanduser(f)) for f in self.files]
        return {
            "wasm": absolute,
            "artifacts": [os.path.abspath(os.path.expanduser(f)) for f in self.artifacts],
            "debug_dirs": self.debug_dirs,
            "sysroot": self.sysroot or None,
            "executable": executable,
        }


class Engine:
    """A running `wstate serve --stdio`. `lend` answers the engine's calls; `interrupted` says whether the user gave
    up."""

    def __init__(
        self,
        program: str,
        timeout: float,
        lend: Callable[[str, Dict[str, Any]], Dict[str, Any]],
        interrupted: Callable[[], bool],
        client: str,
    ) -> None:
        self.program = program
        self._timeout = timeout
        self._lend = lend
        self._interrupted = interrupted
        self._buffer = bytearray()
        self._last_id = 0
        self._log = tempfile.TemporaryFile()
        try:
            # The engine gets a session of its own, because Ctrl-C at the debugger's terminal is for the debugger.
            self._process = subprocess.Popen(
                [program, "serve", "--stdio"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as e:
            self._log.close()
            raise WstateError(f"cannot start {program}: {e.strerror}; install wstate, or set wasm server PATH") from None
        try:
            hello = self.request("hello", {"protocol": PROTOCOL, "client": client})
        except WstateError:
            self.close()
            raise
        self.ops: List[str] = hello.get("ops") or []
        self.version: str = hello.get("version") or "?"

    def close(self) -> None:
        """Ends the engine. This may be called again."""
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass
        try:
            self._process.kill()
            # The debugger may reap children of its own accord; then there is nothing to wait for.
            self._process.wait(timeout=1)
        except (OSError, subprocess.SubprocessError):
            pass
        self._log.close()

    def set_timeout(self, seconds: float) -> None:
        """Sets for how many seconds the engine may be silent."""
        self._timeout = seconds

    def is_alive(self) -> bool:
        """Whether the engine runs and can be asked."""
        return self._process.poll() is None and self._process.stdin is not None and not self._process.stdin.closed

    def request(self, op: str, keys: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        """Asks the engine, lends what it needs meanwhile, and returns its answer. Whatever goes wrong raises a
        WstateError, and an engine that cannot be relied on is ended."""
        self._last_id += 1
        wanted = self._last_id
        try:
            self._send({**(keys or {}), "id": wanted, "op": op})
            while True:
                message = self._receive()
                if "call" in message:
                    self._send({**self._answer(message), "reply": message["call"]})
                elif message.get("id") == wanted:
                    break
        except WstateError:
            self.close()
            raise
        except KeyboardInterrupt:
            self.close()
            raise WstateError("interrupted; the next command starts wstate anew") from None
        except (OSError, ValueError) as e:
            why = self._last_words() or str(e)
            self.close()
            raise WstateError(f"{self.program} has ended: {why}; the next command starts it anew") from None
        if not message.get("ok"):
            error = message.get("error") or {}
            hint = error.get("hint")
            text = error.get("message") or "wstate failed without a reason"
            raise WstateError(f"{text} ({hint})" if hint else text)
        return message

    def _answer(self, call: Dict[str, Any]) -> Dict[str, Any]:
        if self._interrupted():
            raise KeyboardInterrupt
        return self._lend(str(call.get("op")), call)

    def _send(self, message: Dict[str, Any]) -> None:
        stdin = self._process.stdin
        if stdin is None:
            raise OSError("no pipe")
        stdin.write(json.dumps(message).encode() + b"\n")
        stdin.flush()

    def _receive(self) -> Dict[str, Any]:
        stdout = self._process.stdout
        if stdout is None:
            raise OSError("no pipe")
        deadline = time.monotonic() + self._timeout
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                message = json.loads(line)
                if not isinstance(message, dict):
                    raise ValueError("it does not speak the protocol")
                return message
            searched = len(self._buffer)
            if searched > MAX_LINE:
                raise ValueError("its answer has no end")
            # The wait is in short turns, because a debugger's Ctrl-C need not interrupt a system call.
            ready, _, _ = select.select([stdout], [], [], 0.2)
            if self._interrupted():
                raise KeyboardInterrupt
            if ready:
                data = os.read(stdout.fileno(), 1 << 20)
                if not data:
                    raise OSError("it closed its output")
                self._buffer += data
            elif time.monotonic() > deadline:
                raise WstateError(f"wstate did not answer within {self._timeout:g} s; set wasm timeout SECONDS waits longer")

    def _last_words(self) -> str:
        try:
            self._log.seek(0)
            lines = self._log.read(1 << 16).decode(errors="replace").strip().splitlines()
        except (OSError, ValueError):
            return ""
        return lines[0][:200] if lines else ""


def words(arguments: str) -> List[str]:
    """The words of a command line, as a shell splits them."""
    try:
        return shlex.split(arguments or "")
    except ValueError as e:
        raise WstateError(f"{arguments!r}: {e}") from None


def integer(text: str, what: str) -> int:
    """The value of a number as C writes it. `what` names it in an error."""
    try:
        return int(text, 0)
    except ValueError:
        raise WstateError(f"{what} is a number, not {text!r}") from None


BT_WORDS = ["full", "all", "wasm", "fold", "verbose"]


def bt_request(arguments: str, thread: int) -> Dict[str, Any]:
    """The request for `[full] [all] [wasm] [fold] [verbose] [COUNT]`, the arguments of wasm-bt."""
    request: Dict[str, Any] = {"threads": [thread], "brief": True}
    for word in words(arguments):
        plain = word.lstrip("-")
        if plain == "full":
            request["brief"] = False
        elif plain == "all":
            request["threads"] = None
            request["head"] = True
        elif plain == "wasm":
            request["wasm_only"] = True
        elif plain == "fold":
            request["fold"] = True
        elif plain == "verbose":
            request["verbose"] = True
            request["brief"] = False
        elif word.isdigit():
            request["limit"] = int(word)
        else:
            raise WstateError(f"wasm-bt does not know {word!r}; it takes {', '.join(BT_WORDS)} and a count")
    return request


def memory_request(arguments: str) -> Dict[str, Any]:
    """The request for `ADDR LEN [MEMORY]`, the arguments of wasm-memory."""
    given = words(arguments)
    if not 1 <= len(given) <= 3:
        raise WstateError("wasm-memory needs an address in the linear memory, and takes a length and a memory's index")
    request = {"address": integer(given[0], "the address"), "length": 64, "memory": 0}
    for name, word in zip(("length", "memory"), given[1:]):
        request[name] = integer(word, f"the {name}")
    if min(request.values()) < 0:
        raise WstateError("wasm-memory takes no negative numbers")
    return request


def local_process(pid: int) -> bool:
    """Whether this is a process of this machine that can be looked at by its number."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            return bool(maps.readline())
    except OSError:
        return False


def code_signature(pid: int) -> Optional[int]:
    """A number that changes when code that belongs to no file comes or goes. It is None if there is no such code, or
    if nobody can say."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            mapped = maps.readlines()
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    lines = [line for line in mapped if line[line.find(b" ") + 3 : line.find(b" ") + 4] == b"x"]
    jit = [line for line in lines if len(line.split(None, 5)) < 6 or line.split(None, 5)[5].startswith(b"[anon")]
    if not jit:
        return None
    # Another module may have come to the same place. To write it there takes page faults (minflt, majflt).
    state = (pid, tuple(jit), int(fields[7]) + int(fields[9]))
    if state not in _signatures:
        _signatures.clear()
        _signatures[state] = hash((state[:2], code_content(pid, mapped, jit, state[2])))
    return _signatures[state]


_signatures: Dict[Tuple[Any, ...], int] = {}


def code_content(pid: int, mapped: List[bytes], jit: List[bytes], faults: int) -> int:
    """A number that changes when the contents of what is mapped together with code of no file change. If these
    contents may not be all of a module, it also changes with every page fault, which may have been for another
    module."""
    groups: List[List[Any]] = []
    for line in mapped:
        start, end = (int(address, 16) for address in line.split(None, 1)[0].split(b"-"))
        if groups and groups[-1][1] == start:
            groups[-1][1] = end
            groups[-1][2] |= line in jit
        else:
            groups.append([start, end, line in jit])
    parts: List[Any] = []
    left = 4 << 20
    try:
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for start, end, _ in (group for group in groups if group[2]):
                if end - start > left:
                    return hash((tuple(parts), faults))
                left -= end - start
                memory.seek(start)
                content = memory.read(end - start)
                whole = content.startswith(b"\x7fELF") and len(content) == end - start
                parts.append(content if whole else (content, faults))
    except (OSError, OverflowError):
        parts.append(faults)
    return hash(tuple(parts))


_directories: List[str] = []


def symbol_directory() -> str:
    """The plugin's own directory for symbol files, which is removed when the debugger ends."""
    if not _directories:
        _directories.append(tempfile.mkdtemp(prefix="wstate-"))
        atexit.register(shutil.rmtree, _directories[0], True)
    return _directories[0]


# ---- end of the shared client ----

GENERAL = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip fs_base".split()
VECTORS = [f"xmm{i}" for i in range(16)]

ATTEMPTS = 3

settings = Settings()


def thread_by_id(process: lldb.SBProcess, tid: int) -> Optional[lldb.SBThread]:
    thread = process.GetThreadByID(tid)
    return thread if thread.IsValid() else None


def registers_of(thread: Optional[lldb.SBThread]) -> Optional[Dict[str, str]]:
    if thread is None:
        return None
    frame = thread.GetFrameAtIndex(0)
    if not frame.IsValid():
        return None
    out = {}
    for name in GENERAL + VECTORS:
        value = frame.FindRegister(name)
        if not value.IsValid():
            continue
        error = lldb.SBError()
        data = value.GetData()
        # These are the low 64 bits; a general register has no more.
        bits = data.GetUnsignedInt64(error, 0) if data.GetByteSize() >= 8 else 0
        if data.GetByteSize() >= 8 and error.Success():
            out[name] = hex(bits)
    return out or None


def core_path(process: lldb.SBProcess) -> Optional[str]:
    if "core" not in process.GetPluginName():
        return None
    file = process.GetCoreFile() if hasattr(process, "GetCoreFile") else None
    return file.fullpath if file is not None and file.IsValid() else None


def mappings_text(process: lldb.SBProcess) -> Optional[str]:
    """What lldb knows about the mappings, in the form of /proc/PID/maps."""
    target = process.GetTarget()
    regions = process.GetMemoryRegions()
    region = lldb.SBMemoryRegionInfo()
    lines = []
    for i in range(regions.GetSize()):
        if not regions.GetMemoryRegionAtIndex(i, region) or not region.IsMapped():
            continue
        start, end = region.GetRegionBase(), region.GetRegionEnd()
        address = target.ResolveLoadAddress(start)
        section, module = address.GetSection(), address.GetModule()
        name, offset = region.GetName() or "", 0
        if section.IsValid():
            offset = section.GetFileOffset() + address.GetOffset()
            name = name or module.GetFileSpec().fullpath or ""
        flags = [
            "r" if region.IsReadable() else "-",
            "w" if region.IsWritable() else "-",
            "x" if region.IsExecutable() else "-",
        ]
        lines.append(f"{start:x}-{end:x} {''.join(flags)}p {offset & ~0xFFF:x} 00:00 0 {name}\n")
    return "".join(lines) or None


def executable(target: lldb.SBTarget) -> Optional[str]:
    file = target.GetExecutable()
    return file.fullpath if file.IsValid() else None


def patiently(ask: Callable[[], Any]) -> Any:
    """Asks lldb, and asks again for two seconds if it answers nothing. On a busy machine lldb counts a process as
    running for a moment after it has told of the stop, and then has neither registers nor mappings."""
    until = time.monotonic() + 2
    while True:
        answer = ask()
        if answer is not None or time.monotonic() >= until:
            return answer
        time.sleep(0.02)


class Lender:
    """Lends the engine threads, registers and memory of one process."""

    def __init__(self, process: lldb.SBProcess) -> None:
        self.process = process

    def __call__(self, op: str, call: Dict[str, Any]) -> Dict[str, Any]:
        process = self.process
        if op == "describe":
            core = core_path(process)
            pid = process.GetProcessID()
            names = [(process.GetThreadAtIndex(i)) for i in range(process.GetNumThreads())]
            return {
                "pid": pid,
                # The engine makes sure that the process with this number is the same one.
                "local": "core" not in process.GetPluginName() and local_process(pid),
                "core": core,
                "executable": executable(process.GetTarget()),
                "maps": None if core else patiently(lambda: mappings_text(process)),
                "threads": [{"tid": t.GetThreadID(), "name": t.GetName()} for t in names],
            }
        if op == "registers":
            ids = [int(t) for t in call["threads"]]
            return {"registers": [patiently(lambda t=t: registers_of(thread_by_id(process, t))) for t in ids]}
        if op == "memory":
            return {"data": [self.memory(int(a, 16), int(n)) for a, n in call["ranges"]]}
        return {"error": f"lldb cannot lend {op}"}

    def memory(self, address: int, length: int) -> Optional[str]:
        error = lldb.SBError()
        data = self.process.ReadMemory(address, length, error)
        return data.hex() if error.Success() and data is not None and len(data) == length else None


class Target:
    """What is known about one process: its engine, and what the user looks at."""

    def __init__(self, debugger: lldb.SBDebugger, process: lldb.SBProcess) -> None:
        self.debugger = debugger
        self.process = process
        self.engine: Optional[Engine] = None
        self.stop = 0
        self.configured: Optional[Dict[str, Any]] = None
        # Whether the user may have written memory or registers since the engine looked.
        self.stale = False
        # The frame that was chosen: its thread, its number in wasm bt, and the number of lldb's frame at that moment.
        self.chosen: Optional[Tuple[int, int, int]] = None
        self.loaded: List[str] = []
        self.signature: Optional[int] = None
        self.attempts = 0
        # Notes of the engine about the symbols, and whether a later stop may tell more about the same code.
        self.notes: List[str] = []
        self.unsure = False

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None

    def interrupted(self) -> bool:
        return hasattr(self.debugger, "InterruptRequested") and bool(self.debugger.InterruptRequested())

    def ask(self, op: str, **keys: Any) -> Dict[str, Any]:
        """Sends a request to the engine and returns the answer. Before that the engine is started, and told of
        changes, as needed."""
        if self.engine is not None and (not self.engine.is_alive() or self.engine.program != settings.program()):
            self.close()
        # This number counts stops, including those after expressions.
        stop = self.process.GetStopID(True)
        if self.engine is None:
            client = self.debugger.GetVersionString().splitlines()[0]
            self.engine = Engine(settings.program(), settings.timeout, Lender(self.process), self.interrupted, client)
            self.configured, self.stop = None, stop
        engine = self.engine
        engine.set_timeout(settings.timeout)
        if self.stop != stop:
            engine.request("resumed")
            self.stop, self.chosen = stop, None
        elif self.stale and "changed" in engine.ops:
            # lldb tells nobody about `memory write` and `register write`.
            engine.request("changed")
        self.stale = False
        configuration = settings.request(executable(self.process.GetTarget()) if core_path(self.process) else None)
        if configuration != self.configured:
            engine.request("configure", configuration)
            self.configured = configuration
        return engine.request(op, keys)

    def place(self) -> Dict[str, Any]:
        """The frame that the user looks at: the one that `wasm up` chose, or the one that lldb has selected. If lldb
        has its innermost frame selected, nothing was chosen, and the youngest Wasm frame is meant."""
        thread = current_thread(self.process)
        frame = thread.GetSelectedFrame()
        tid, level = thread.GetThreadID(), frame.idx if frame.IsValid() else 0
        if self.chosen is not None and self.chosen[0] == tid and self.chosen[2] == level:
            return {"thread": tid, "frame": self.chosen[1]}
        if level == 0:
            return {"thread": tid}
        return {"thread": tid, "frame": level, "pc": hex(frame.pc)}

    def choose(self, index: int, pc: Optional[str]) -> None:
        """Remembers the frame with the number `index` in wasm bt, and selects lldb's frame with that number if lldb
        sees the same frame there."""
        thread = current_thread(self.process)
        frame = thread.GetFrameAtIndex(index)
        if frame.IsValid() and pc is not None and frame.pc == int(pc, 16):
            thread.SetSelectedFrame(index)
        self.chosen = (thread.GetThreadID(), index, thread.GetSelectedFrame().idx)


targets: Dict[Tuple[int, int], Target] = {}


def current_target(debugger: lldb.SBDebugger) -> Target:
    process = debugger.GetSelectedTarget().GetProcess()
    state = process.GetState() if process.IsValid() else lldb.eStateInvalid
    if state in (lldb.eStateRunning, lldb.eStateStepping):
        raise WstateError("the process is running: process interrupt first")
    if state not in (lldb.eStateStopped, lldb.eStateCrashed, lldb.eStateSuspended):
        raise WstateError("there is no process and no core: run, attach or target create --core first")
    for key in [k for k, t in targets.items() if not t.process.IsValid() or t.process.GetState() in GONE]:
        targets.pop(key).close()
    key = (debugger.GetID(), process.GetUniqueID())
    return targets.setdefault(key, Target(debugger, process))


GONE = (lldb.eStateExited, lldb.eStateDetached, lldb.eStateUnloaded, lldb.eStateInvalid)


def current_thread(process: lldb.SBProcess) -> lldb.SBThread:
    thread = process.GetSelectedThread()
    if not thread.IsValid():
        # For a moment lldb says that a process is stopped although it has just let it go.
        raise WstateError("no thread can be looked at: the process is running (process interrupt first)")
    return thread


def close_all() -> None:
    for target in targets.values():
        target.close()
    targets.clear()


def color(debugger: lldb.SBDebugger) -> bool:
    return debugger.GetUseColor() and os.isatty(1)


def bt(target: Target, argument: str) -> str:
    request = bt_request(argument, current_thread(target.process).GetThreadID())
    return target.ask("walk", color=color(target.debugger), **request)["text"]


def show_frame(target: Target, argument: str, locals: bool, stack: bool) -> str:
    place = target.place()
    if argument.strip():
        place = {"thread": place["thread"], "frame": integer(argument.strip(), "a frame")}
    return target.ask("frame", locals=locals, stack=stack, color=color(target.debugger), **place)["text"]


def step(target: Target, argument: str, sign: int) -> str:
    count = integer(argument.strip(), "a count") if argument.strip() else 1
    place = target.place()
    request = {"thread": place["thread"], "from": place.get("frame"), "by": sign * count}
    answer = target.ask("step", color=color(target.debugger), **request)
    target.choose(int(answer["index"]), answer.get("pc"))
    return answer["text"]


def list_code(target: Target, argument: str) -> str:
    count = integer(argument.strip(), "a count") if argument.strip() else 10
    return target.ask("list", count=count, **target.place())["text"]


def print_value(target: Target, argument: str) -> str:
    if not argument.strip():
        raise WstateError("wasm print needs an expression: local 0, stack 0, global 0, i32[0x400], f64[l1]")
    return target.ask("print", expression=argument, **target.place())["text"]


def modules(target: Target, argument: str) -> str:
    return target.ask("modules", verbose="verbose" in argument, color=color(target.debugger))["text"]


def memory(target: Target, argument: str) -> str:
    return target.ask("memory", **memory_request(argument), **target.place())["text"]


def load(target: Target, argument: str) -> str:
    count = load_symbols(target, "all" in words(argument))
    # The symbols that were asked for stay until there is other code.
    target.signature, target.attempts = None if target.unsure else signature_of(target.process), 0
    text = f"{count} symbol file{'' if count == 1 else 's'} of Wasm code loaded\n"
    return text + "".join(f"note: {note}\n" for note in target.notes)


def load_symbols(target: Target, everything: bool) -> int:
    """Loads the symbol files that the engine makes, and drops those that it no longer has."""
    program = target.process.GetTarget()
    known = [[hex(start), hex(end)] for start, end in described_by_runtime(program)]
    answer = target.ask("symbols", directory=symbol_directory(), all=everything, known=known)
    target.notes = [str(note) for note in answer.get("notes") or []]
    target.unsure = bool(answer.get("unsure"))
    wanted = [str(f["path"]) for f in answer.get("files") or []]
    for path in [p for p in target.loaded if p not in wanted]:
        module = program.FindModule(lldb.SBFileSpec(path))
        if module.IsValid():
            program.RemoveModule(module)
        target.loaded.remove(path)
    for path in wanted:
        if path in target.loaded:
            continue
        module = program.AddModule(path, None, None)
        if not module.IsValid():
            raise WstateError(f"lldb does not take {path}")
        error = program.SetModuleLoadAddress(module, 0)
        if error.Fail():
            raise WstateError(f"lldb does not load {path}: {error.GetCString()}")
        target.loaded.append(path)
    return len(wanted)


def described_by_runtime(program: lldb.SBTarget) -> List[Tuple[int, int]]:
    """The ranges of code that the runtime itself has described to lldb (plugin.jit-loader.gdb.enable), with the
    variables of the source. Of two descriptions, lldb would take that of wstate, which has no such variables."""
    found = []
    for module in program.module_iter():
        if not (module.GetFileSpec().GetFilename() or "").startswith("JIT("):
            continue
        open_sections = list(module.section_iter())
        while open_sections:
            section = open_sections.pop()
            open_sections += [section.GetSubSectionAtIndex(i) for i in range(section.GetNumSubSections())]
            start = section.GetLoadAddress(program)
            if section.GetName() == ".text" and start != lldb.LLDB_INVALID_ADDRESS:
                found.append((start, start + section.GetByteSize()))
    return sorted(found)


def signature_of(process: lldb.SBProcess) -> Optional[int]:
    """A number that changes when there may be other Wasm code than before. It is None if there can be no Wasm code,
    or if nobody can say."""
    if "core" in process.GetPluginName():
        return process.GetUniqueID()
    code = code_signature(process.GetProcessID())
    return None if code is None else hash((code, tuple(described_by_runtime(process.GetTarget()))))


def load_what_is_new(target: Target) -> None:
    """Loads symbols if code that belongs to no file came or went. If not, this costs one read of the list of
    mappings."""
    signature = signature_of(target.process)
    if not settings.auto_load or signature is None or target.signature == signature:
        return
    # Memory that is about to become a module has no code yet, so a few more stops are waited for.
    target.attempts += 1
    found = load_symbols(target, False)
    if found or target.attempts >= ATTEMPTS:
        target.signature, target.attempts = None if target.unsure else signature, 0
    told.clear()


# The reasons that were told why symbols were not loaded. Each is told once, because the next stop, or step, has the
# same reason.
told: List[str] = []


class AutoLoad:
    """Loads symbols at stops. lldb before 21 runs no stop hook when it attaches or opens a core; there the first of
    the plugin's commands loads them (see `on_target`)."""

    def __init__(self, target: lldb.SBTarget, extra: lldb.SBStructuredData, internal: Dict[str, Any]) -> None:
        self.debugger = target.GetDebugger()

    def handle_stop(self, context: lldb.SBExecutionContext, stream: lldb.SBStream) -> bool:
        process = context.GetProcess()
        try:
            if settings.auto_load and lends(process):
                key = (self.debugger.GetID(), process.GetUniqueID())
                load_what_is_new(targets.setdefault(key, Target(self.debugger, process)))
        except (WstateError, KeyboardInterrupt) as e:
            text = f"wstate: symbols of Wasm code were not loaded: {e}\n"
            if text not in told:
                told.append(text)
                stream.Print(text)
        return True


def lends(process: lldb.SBProcess) -> bool:
    """Whether lldb gives registers now. A hook that runs while lldb still counts the process as running gets none,
    and what the engine then made of the process would be wrong for the whole stop."""
    thread = process.GetSelectedThread()
    return thread.IsValid() and registers_of(thread) is not None


def change(debugger: lldb.SBDebugger, argument: str) -> str:
    """`wasm set NAME [VALUE...]`."""
    given = words(argument)
    name, values = (given[0], given[1:]) if given else ("", [])
    attribute = name.replace("-", "_")
    if attribute not in vars(settings):
        raise WstateError(f"wasm set takes one of {', '.join(sorted(vars(settings))).replace('_', '-')}")
    before = getattr(settings, attribute)
    if isinstance(before, list):
        setattr(settings, attribute, values)
    elif len(values) > 1:
        raise WstateError(f"{name} takes one value")
    elif isinstance(before, bool):
        if values[:1] not in (["on"], ["off"], ["true"], ["false"]):
            raise WstateError(f"{name} is on or off")
        setattr(settings, attribute, values[0] in ("on", "true"))
    elif isinstance(before, int):
        setattr(settings, attribute, integer(values[0] if values else "0", name) or 1 << 30)
    else:
        setattr(settings, attribute, values[0] if values else "")
    return ""


def show(debugger: lldb.SBDebugger, argument: str) -> str:
    return "".join(f"{k.replace('_', '-'):<12} {v if v != '' else 'not set'}\n" for k, v in sorted(vars(settings).items()))


COMMANDS: Dict[str, Tuple[Callable[[Target, str], str], str, str]] = {
    "bt": (
        bt,
        "Print native and Wasm frames of this thread.",
        """Usage: wasm bt [full] [all] [wasm] [fold] [verbose] [COUNT]

full: with Wasm locals and operand stacks.  all: of all threads.
wasm: only Wasm frames.  fold: frames that come again and again, in one line.
verbose: also registers, and how each frame was found.
COUNT: the youngest COUNT frames.""",
    ),
    "up": (
        lambda t, a: step(t, a, 1),
        "Go to the next older Wasm frame.",
        "Usage: wasm up [COUNT]\n\nlldb's own frame goes along where lldb sees the same frame.",
    ),
    "down": (
        lambda t, a: step(t, a, -1),
        "Go to the next younger Wasm frame.",
        "Usage: wasm down [COUNT]",
    ),
    "locals": (
        lambda t, a: show_frame(t, a, True, False),
        "Print parameters and locals of a Wasm frame.",
        "Usage: wasm locals [FRAME]",
    ),
    "stack": (
        lambda t, a: show_frame(t, a, False, True),
        "Print the operand stack of a Wasm frame, and where each operand was found.",
        "Usage: wasm stack [FRAME]",
    ),
    "list": (
        list_code,
        "List the Wasm operators around the frame's place.",
        "Usage: wasm list [COUNT]\n\nNeeds the module's .wasm file: wasm set files FILE.wasm",
    ),
    "print": (
        print_value,
        "Print a value of a Wasm frame.",
        """Usage: wasm print EXPRESSION

local 3 or l3     a local             stack 0 or s0   an operand, 0 is the lowest
global 2 or g2    a global            i32[0x400]      a value in the linear memory:
                                      i8 u8 i16 u16 i32 u32 i64 u64 f32 f64
f64[l1]           at an address that is in a local""",
    ),
    "modules": (
        modules,
        "List the Wasm modules of the process.",
        "Usage: wasm modules [verbose]",
    ),
    "memory": (
        memory,
        "Print bytes of the linear memory of a Wasm frame's instance.",
        """Usage: wasm memory ADDRESS [LENGTH [MEMORY]]

ADDRESS is an address in the linear memory, which starts at 0.""",
    ),
    "load": (
        load,
        "Make a symbol file of the Wasm code and load it, so that lldb's own bt and frame variable know Wasm.",
        "Usage: wasm load [all]\n\nall: every function, not only those of the current stacks.",
    ),
}

PLAIN: Dict[str, Tuple[Callable[[lldb.SBDebugger, str], str], str, str]] = {
    "set": (
        change,
        "Set what the Wasm commands use.",
        """Usage: wasm set NAME [VALUE...]

server      the wstate program (nothing: from PATH)
files       the .wasm files that run in the process
artifacts   cached artifact files of modules
debug-dirs  directories of separate debug files
sysroot     the directory under which files are looked for first
auto-load   on or off: whether symbols of Wasm code are loaded at stops
timeout     how many seconds wstate may be silent (0: any number)""",
    ),
    "show": (show, "Show what the Wasm commands use.", "Usage: wasm show"),
    "help": (
        lambda d, a: "".join(f"wasm {n:<8} {c[1]}\n" for n, c in sorted({**COMMANDS, **PLAIN}.items())),
        "List the Wasm commands.",
        "Usage: wasm help",
    ),
}


def command_class(name: str, short: str, long: str, run: Callable[[lldb.SBDebugger, str], str]) -> type:
    """Makes a class of the form that `command script add -c` wants."""

    class Command:
        def __init__(self, debugger: lldb.SBDebugger, internal: Dict[str, Any]) -> None:
            pass

        def __call__(self, debugger: lldb.SBDebugger, argument: str, context: Any, result: Any) -> None:
            try:
                text = run(debugger, argument)
                if text:
                    result.AppendMessage(text.rstrip("\n"))
                result.SetStatus(lldb.eReturnStatusSuccessFinishResult)
            except WstateError as e:
                # With an exception alone, the command would still count as successful.
                result.SetError(f"wstate: {e}")
            except KeyboardInterrupt:
                result.SetError("wstate: interrupted")

        def get_short_help(self) -> str:
            return short

        def get_long_help(self) -> str:
            return f"{short}\n{long}"

    Command.__name__ = Command.__qualname__ = name
    return Command


def on_target(run: Callable[[Target, str], str]) -> Callable[[lldb.SBDebugger, str], str]:
    def command(debugger: lldb.SBDebugger, argument: str) -> str:
        target = current_target(debugger)
        target.stale = True
        text = run(target, argument)
        try:
            load_what_is_new(target)
        except WstateError:
            # The command has its answer. What is wrong with the symbols is told at a stop, or by wasm load.
            pass
        return text

    return command


def version(debugger: lldb.SBDebugger) -> int:
    found = re.search(r"\d+", debugger.GetVersionString())
    return int(found.group()) if found else 0


def __lldb_init_module(debugger: lldb.SBDebugger, internal: Dict[str, Any]) -> None:
    if version(debugger) < 16:
        found = debugger.GetVersionString().splitlines()[0]
        print(f"wstate: the Wasm commands need lldb 16 or newer, this is {found}; wstate attach and wstate core work without lldb")
        return
    interpreter = debugger.GetCommandInterpreter()

    def run(line: str) -> None:
        result = lldb.SBCommandReturnObject()
        interpreter.HandleCommand(line, result)
        if not result.Succeeded():
            print(f"wstate: {line}: {(result.GetError() or '').strip()}")

    run('command container add -o -h "Wasm frames, values and memories (wstate)." wasm')
    every = {name: (on_target(c[0]), c[1], c[2]) for name, c in COMMANDS.items()}
    for name, (function, short, long) in {**every, **PLAIN}.items():
        kind = f"Wasm{name.capitalize()}"
        globals()[kind] = command_class(kind, short, long, function)
        run(f"command script add -o -c {__name__}.{kind} wasm {name}")
    run(f"command script add -o -c {__name__}.WasmBt wasm-bt")
    run(f"target stop-hook add -P {__name__}.AutoLoad")


atexit.register(close_all)
