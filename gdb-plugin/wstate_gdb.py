"""Wasm backtraces in gdb: wasm-bt and its family.

Load it with `source wstate_gdb.py`, or let `wstate plugin install gdb` do that. It knows nothing about Wasm: it starts
`wstate serve --stdio`, lends it memory and registers, and prints what it says. Needs gdb 13 or newer.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import shlex
import shutil
import struct
import subprocess
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import gdb

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
MASK = (1 << 64) - 1

ATTEMPTS = 3

settings = Settings()


def core_path() -> Optional[str]:
    """The core that gdb has open."""
    found = re.search(r"Local core dump file:\n\s*`(.*)', file type", gdb.execute("info files", to_string=True) or "")
    return found.group(1) if found else None


def connection_type(inferior: gdb.Inferior) -> str:
    """The type of the connection to the target: `native`, `core`, `remote`, ...; empty without a target."""
    connection = getattr(inferior, "connection", None)
    return connection.type if connection is not None else ""


def mappings_text() -> Optional[str]:
    """What gdb knows about the mappings, in the form of /proc/PID/maps."""
    try:
        text = gdb.execute("info proc mappings", to_string=True) or ""
    except gdb.error:
        return None
    lines = []
    for line in text.splitlines():
        m = re.match(r"\s*0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+([-rwxsp]{4})\s*(.*)$", line)
        if m:
            start, end, offset, flags, name = m.groups()
            lines.append(f"{start}-{end} {flags} {offset} 00:00 0 {name.strip()}\n")
    return "".join(lines) or None


def auxv_hex() -> Optional[str]:
    """The bytes of the auxiliary vector, in hexadecimal."""
    try:
        text = gdb.execute("info auxv", to_string=True) or ""
    except gdb.error:
        return None
    out = b""
    for line in text.splitlines():
        m = re.match(r"(\d+)\s+\S+\s.*?\s?(0x[0-9a-f]+|\d+)(?:\s+\".*\")?$", line)
        if m:
            out += struct.pack("<QQ", int(m.group(1)), int(m.group(2), 0) & MASK)
    return out.hex() or None


class Lender:
    """Lends the engine threads, registers and memory of one inferior."""

    def __init__(self, inferior: gdb.Inferior) -> None:
        self.inferior = inferior

    def __call__(self, op: str, call: Dict[str, Any]) -> Dict[str, Any]:
        try:
            if op == "describe":
                return self.describe()
            if op == "registers":
                return {"registers": self.registers([int(t) for t in call["threads"]])}
            if op == "memory":
                return {"data": [self.memory(int(a, 16), int(n)) for a, n in call["ranges"]]}
        except gdb.error as e:
            return {"error": str(e)}
        return {"error": f"gdb cannot lend {op}"}

    def describe(self) -> Dict[str, Any]:
        kind = connection_type(self.inferior)
        local = kind == "native" and local_process(self.inferior.pid)
        # With a remote target, these lists take a round trip per page.
        return {
            "pid": self.inferior.pid,
            "local": local,
            "core": core_path() if kind == "core" else None,
            "executable": executable(self.inferior),
            "maps": None if local or kind == "core" else mappings_text(),
            "auxv": None if local or kind == "core" else auxv_hex(),
            "threads": [{"tid": tid(t), "name": t.name} for t in self.inferior.threads()],
        }

    def memory(self, address: int, length: int) -> Optional[str]:
        try:
            return bytes(self.inferior.read_memory(address, length)).hex()
        except (gdb.error, OverflowError):
            return None

    def registers(self, wanted: List[int]) -> List[Optional[Dict[str, str]]]:
        by_id = {tid(t): t for t in self.inferior.threads()}
        thread = gdb.selected_thread()
        frame = selected_frame()
        try:
            return [one_thread(by_id.get(t)) for t in wanted]
        finally:
            if thread is not None and thread.is_valid():
                thread.switch()
                if frame is not None and frame.is_valid():
                    frame.select()


def one_thread(thread: Optional[gdb.InferiorThread]) -> Optional[Dict[str, str]]:
    # Until gdb has told of a stop it counts every thread as running, even the one that stopped.
    if thread is None or not (thread.is_stopped() or tid(thread) == NewCode.thread):
        return None
    thread.switch()
    try:
        frame = gdb.newest_frame()
    except gdb.error:
        return None
    out = {}
    for name in GENERAL:
        try:
            out[name] = hex(int(frame.read_register(name)) & MASK)
        except (gdb.error, ValueError):
            pass
    for name in VECTORS:
        try:
            out[name] = hex(int(frame.read_register(name)["v2_int64"][0]) & MASK)
        except (gdb.error, ValueError):
            pass
    return out


def tid(thread: gdb.InferiorThread) -> int:
    """The kernel's thread id, or the process id where a core's only thread has none."""
    return thread.ptid[1] or thread.ptid[2] or thread.ptid[0]


def selected_frame() -> Optional[gdb.Frame]:
    try:
        return gdb.selected_frame()
    except gdb.error:
        return None


def executable(inferior: gdb.Inferior) -> Optional[str]:
    space = inferior.progspace
    return space.filename if space is not None else None


class Target:
    """What is known about one inferior: its engine, and what the user looks at."""

    def __init__(self, inferior: gdb.Inferior) -> None:
        self.inferior = inferior
        self.engine: Optional[Engine] = None
        self.key: Optional[Tuple[Any, ...]] = None
        self.ran = False
        self.configured: Optional[Dict[str, Any]] = None
        # The frame that was chosen: its thread, its number in wasm-bt, and gdb's level at that moment.
        self.chosen: Optional[Tuple[int, int, int]] = None
        # The symbol files that are loaded, by path: an address inside each, and where each module in it begins.
        self.loaded: Dict[str, Tuple[str, List[str]]] = {}
        self.signature: Optional[int] = None
        self.attempts = 0
        # The signature of the code for which symbols were loaded between two stops.
        self.early: Optional[int] = None
        # Notes of the engine about the symbols.
        self.notes: List[str] = []
        # Whether a later stop may tell more about the same code.
        self.unsure = False
        # Whether each store of this process runs a copy of code of its own.
        self.per_store = False

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None
        self.chosen = None

    def identity(self) -> Tuple[Any, ...]:
        kind = connection_type(self.inferior)
        return (self.inferior.pid, kind, core_path() if kind == "core" else None)

    def ask(self, op: str, **keys: Any) -> Dict[str, Any]:
        """Sends a request to the engine and returns the answer. Before that the engine is started, and told of
        changes, as needed."""
        key = self.identity()
        if self.engine is not None and not self.engine.is_alive():
            self.close()
        if self.engine is not None and (key != self.key or self.engine.program != settings.program()):
            self.close()
        if self.engine is None:
            client = f"gdb {gdb.VERSION}"
            self.engine = Engine(settings.program(), settings.timeout, Lender(self.inferior), lambda: False, client)
            self.key, self.configured, self.ran = key, None, False
        engine = self.engine
        engine.set_timeout(settings.timeout)
        if self.ran:
            engine.request("resumed")
            self.ran = False
        # The executable in gdb is a choice of the user only where it does not follow from the process.
        configuration = settings.request(executable(self.inferior) if key[1] == "core" else None)
        if configuration != self.configured:
            engine.request("configure", configuration)
            self.configured = configuration
        return engine.request(op, keys)

    def place(self) -> Dict[str, Any]:
        """The frame that the user looks at: the one that wasm-up chose, or the one that gdb has selected. If gdb has
        its innermost frame selected, nothing was chosen, and the youngest Wasm frame is meant."""
        thread = current_thread()
        frame = selected_frame()
        level = frame.level() if frame is not None else 0
        if self.chosen is not None and self.chosen[0] == tid(thread) and self.chosen[2] == level:
            return {"thread": tid(thread), "frame": self.chosen[1]}
        if frame is None or level == 0:
            return {"thread": tid(thread)}
        return {"thread": tid(thread), "frame": level, "pc": hex(frame.pc())}

    def choose(self, index: int, pc: Optional[str]) -> None:
        """Remembers the frame with the number `index` in wasm-bt, and selects gdb's frame with that number if gdb
        sees the same frame there."""
        try:
            frame: Optional[gdb.Frame] = gdb.newest_frame()
            while frame is not None and frame.level() < index:
                frame = frame.older()
            if frame is not None and pc is not None and frame.pc() == int(pc, 16):
                frame.select()
        except gdb.error:
            pass
        now = selected_frame()
        self.chosen = (tid(current_thread()), index, now.level() if now is not None else 0)


targets: Dict[int, Target] = {}


def current_target() -> Target:
    inferior = gdb.selected_inferior()
    if not inferior.threads():
        raise WstateError("there is no process and no core: run, attach or core-file first")
    return targets.setdefault(inferior.num, Target(inferior))


def current_thread() -> gdb.InferiorThread:
    thread = gdb.selected_thread()
    if thread is None:
        raise WstateError("no thread is selected")
    if thread.is_running():
        raise WstateError("the selected thread is running: interrupt it first")
    return thread


def forget_what_ran(*_: Any) -> None:
    # All inferiors are marked, because a stop of one is rarely a stop of one alone.
    for target in targets.values():
        target.ran = True
        target.chosen = None


def on_inferior_gone(event: Any) -> None:
    inferior = event.inferior
    target = targets.pop(inferior.num, None)
    if target is not None:
        target.close()


def close_all() -> None:
    for target in targets.values():
        target.close()
    targets.clear()


def color() -> bool:
    return bool(gdb.parameter("style enabled")) and os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"


class Command(gdb.Command):
    """A command under both of its names."""

    def __init__(self, name: str, run: Callable[[Target, str], None], doc: str, complete: Optional[List[str]]) -> None:
        self.run = run
        self.choices = complete or []
        self.__doc__ = doc
        super().__init__(name, gdb.COMMAND_STACK)

    def invoke(self, argument: str, from_tty: bool) -> None:
        try:
            self.run(current_target(), argument)
        except WstateError as e:
            raise gdb.GdbError(f"wstate: {e}") from None
        except KeyboardInterrupt:
            raise gdb.GdbError("wstate: interrupted") from None

    def complete(self, text: str, word: str) -> List[str]:
        return [c for c in self.choices if c.startswith(word)]


def bt(target: Target, argument: str) -> None:
    request = bt_request(argument, tid(current_thread()))
    gdb.write(target.ask("walk", color=color(), **request)["text"])


def show_frame(target: Target, argument: str, locals: bool, stack: bool) -> None:
    place = target.place()
    if argument.strip():
        place = {"thread": place["thread"], "frame": integer(argument.strip(), "a frame")}
    gdb.write(target.ask("frame", locals=locals, stack=stack, color=color(), **place)["text"])


def step(target: Target, argument: str, sign: int) -> None:
    count = integer(argument.strip(), "a count") if argument.strip() else 1
    place = target.place()
    answer = target.ask("step", **{"thread": place["thread"], "from": place.get("frame"), "by": sign * count, "color": color()})
    target.choose(int(answer["index"]), answer.get("pc"))
    gdb.write(answer["text"])


def list_code(target: Target, argument: str) -> None:
    count = integer(argument.strip(), "a count") if argument.strip() else 10
    gdb.write(target.ask("list", count=count, **target.place())["text"])


def print_value(target: Target, argument: str) -> None:
    if not argument.strip():
        raise WstateError("wasm-print needs an expression: local 0, stack 0, global 0, i32[0x400], f64[l1]")
    gdb.write(target.ask("print", expression=argument, **target.place())["text"] + "\n")


def modules(target: Target, argument: str) -> None:
    current_thread()
    gdb.write(target.ask("modules", verbose="verbose" in argument, color=color())["text"])


def memory(target: Target, argument: str) -> None:
    gdb.write(target.ask("memory", **memory_request(argument), **target.place())["text"])


def load(target: Target, argument: str) -> None:
    everything = "all" in words(argument)
    current_thread()
    files = load_symbols(target, everything)
    gdb.write(f"{files} symbol file{'' if files == 1 else 's'} of Wasm code loaded\n")
    for note in target.notes:
        gdb.write(f"note: {note}\n")


def load_symbols(target: Target, everything: bool) -> int:
    """Loads the symbol files that the engine makes, and drops those that it no longer has."""
    # If the program is not stopped for the user, no symbols are taken away, because breakpoints are in the code.
    early = NewCode.thread is not None
    known = [[base, hex(int(base, 16) + 1)] for _, bases in target.loaded.values() for base in bases] if early else []
    keys = {"described": described_by_runtime(), "known": known}
    answer = target.ask("symbols", directory=symbol_directory(), all=everything, **keys)
    target.notes = [str(note) for note in answer.get("notes") or []]
    target.unsure, target.per_store = bool(answer.get("unsure")), bool(answer.get("per_store"))
    if NewCode.published and not target.per_store:
        # The runtime that has just compiled the code may keep it on disk, and a breakpoint of gdb's would be in there
        # for good.
        return 0
    wanted = {str(f["path"]): (str(f["address"]), f.get("modules") or []) for f in answer.get("files") or []}
    gone = [p for p in target.loaded if p not in wanted and not early]
    lifted = lift_breakpoints() if gone or any(p not in target.loaded for p in wanted) else []
    try:
        for path in gone:
            try:
                gdb.execute(f"remove-symbol-file -a {target.loaded[path][0]}", to_string=True)
            except gdb.error:
                pass
            del target.loaded[path]
        for path, place in wanted.items():
            if path not in target.loaded:
                gdb.execute(f"add-symbol-file {shlex.quote(path)}", to_string=True)
                target.loaded[path] = place
    finally:
        for one in lifted:
            if one.is_valid():
                one.enabled = True
    return len(wanted)


def lift_breakpoints() -> List[gdb.Breakpoint]:
    """Takes the user's breakpoints out of the code and returns them. While symbol files come and go, gdb 13 forgets
    that a breakpoint is in the code, or puts it there twice, and the instruction there would be broken for good."""
    lifted = []
    for one in gdb.breakpoints() or ():
        if one.is_valid() and one.enabled and one.type == gdb.BP_BREAKPOINT:
            one.enabled = False
            lifted.append(one)
    return lifted


def in_memory() -> List[str]:
    """The symbol files that the program itself has given to gdb."""
    return sorted(o.filename for o in gdb.objfiles() if (o.filename or "").startswith("<in-memory@"))


def described_by_runtime() -> List[List[str]]:
    """The ranges of code that the runtime itself has described to gdb (Wasmtime's debug_info), with the variables of
    the source. Of two descriptions, gdb would take that of wstate, which has no such variables."""
    names = set(in_memory())
    if not names:
        return []
    try:
        text = gdb.execute("maintenance info sections -all-objects", to_string=True) or ""
    except gdb.error:
        return []
    found, ours = [], False
    for line in text.splitlines():
        file = re.match(r"\S.*`(.*)', file type|\S.*: `(.*)'", line)
        if file:
            ours = (file.group(1) or file.group(2)) in names
        section = re.search(r"(0x[0-9a-f]+)->(0x[0-9a-f]+) at \S+: \.text ", line)
        if ours and section:
            found.append([section.group(1), section.group(2)])
    return found


def auto_load(event: Any = None) -> None:
    """After a stop, loads symbols if code that belongs to no file came or went. If not, this costs one read of the
    list of mappings."""
    if not settings.auto_load or isinstance(event, getattr(gdb, "ExitedEvent", ())):
        return
    try:
        load_what_is_new(gdb.selected_inferior())
    except (WstateError, gdb.error, KeyboardInterrupt) as e:
        tell(e)
    wait_for_code()


def load_what_is_new(inferior: gdb.Inferior) -> None:
    if connection_type(inferior) != "native":
        return
    code = code_signature(inferior.pid)
    signature = None if code is None else hash((code, tuple(in_memory())))
    known = targets.get(inferior.num)
    if signature is None or (known is not None and signature in (known.signature, known.early if NewCode.thread else None)):
        return
    target = targets.setdefault(inferior.num, Target(inferior))
    # Memory that is about to become a module has no code yet, so a few more stops are waited for.
    target.attempts += 1
    if load_symbols(target, False) or target.attempts >= ATTEMPTS:
        target.signature, target.attempts = None if target.unsure else signature, 0
    if NewCode.thread is not None:
        # The next stop looks again, because threads that run now have registers then.
        target.signature, target.early = None, None if NewCode.published else signature
    told.clear()


told: List[str] = []


def tell(why: BaseException) -> None:
    """Says why there are no symbols. This is said only once until there are some, because the next stop, or step, has
    the same reason."""
    text = f"wstate: symbols of Wasm code were not loaded: {why}\n"
    if text not in told:
        told.append(text)
        gdb.write(text)


def auto_load_core(event: Any = None) -> None:
    """A core makes no stop, so its symbols are loaded with the first of its files, or before the prompt that follows.
    With -batch and in the machine interface only the first of these two happens."""
    inferior = gdb.selected_inferior()
    if not settings.auto_load or connection_type(inferior) != "core" or not inferior.threads():
        return
    # Every core-file command makes a connection of its own. The symbol file itself counts as one of the core's files,
    # too.
    connection = inferior.connection.num
    if cores_seen.get(inferior.num) == connection:
        return
    cores_seen[inferior.num] = connection
    try:
        load_symbols(current_target(), False)
        told.clear()
    except (WstateError, gdb.error, KeyboardInterrupt) as e:
        tell(e)
        if event is not None:
            # It is tried again with another of the core's files, or before the prompt.
            del cores_seen[inferior.num]


cores_seen: Dict[int, int] = {}


class NewCode(gdb.Breakpoint):
    """A breakpoint at a place where a runtime has just made code executable. It is never a stop for the user: symbols
    are loaded and the program goes on, so that breakpoints in code that was not there before are hit from its first
    call on."""

    # The thread that is at such a place now, and whether code was published there that is not called yet.
    thread: Optional[int] = None
    published = False

    def stop(self) -> bool:
        inferior = gdb.selected_inferior()
        thread = gdb.selected_thread()
        if not settings.auto_load or thread is None:
            return False
        NewCode.thread, NewCode.published = tid(thread), self.location.endswith(PUBLISHED)
        try:
            load_what_is_new(inferior)
        except (WstateError, gdb.error, KeyboardInterrupt) as e:
            tell(e)
        finally:
            NewCode.thread, NewCode.published = None, False
            # The program runs on without an event that would say so.
            forget_what_ran()
        return False


# The function by which Wasmtime gives the unwind tables of new code to the C++ runtime. At this moment a store's own
# copy is about to run; code that was just compiled is written to Wasmtime's cache before its copy runs, from memory.
PUBLISHED = "__register_frame"
# The functions that are watched. Besides the one above, these are called before code runs: the first by Wasmtime at a
# thread's first call of a guest, the second by Wasmer 0.x at each call.
NEW_CODE = (PUBLISHED, "sigaltstack", "setjmp")

# The breakpoints of this kind that are set, by the name of the function.
new_code: Dict[str, NewCode] = {}


def waits_for_code() -> bool:
    """Whether a breakpoint of the user may be for code that is still to come."""
    users = [b for b in gdb.breakpoints() or () if b.is_valid() and b.number > 0 and b.enabled]
    return any(b.pending for b in users) or (bool(users) and any(t.per_store for t in targets.values()))


def wait_for_code(event: Any = None) -> None:
    """Watches the places where code appears, but only while a breakpoint waits for code, because each time that the
    program comes to such a place costs a short stop of it."""
    if isinstance(event, NewCode):
        return
    if settings.auto_load and waits_for_code():
        for name in NEW_CODE:
            known = new_code.get(name)
            if (known is None or not known.is_valid()) and is_loaded(name):
                try:
                    new_code[name] = NewCode(f"-qualified -function {name}", internal=True)
                    new_code[name].silent = True
                except (gdb.error, RuntimeError):
                    pass
    elif event is None:
        # Breakpoints are deleted only at a stop. At other moments gdb may be in the middle of its list of
        # breakpoints.
        for one in new_code.values():
            if one.is_valid():
                one.delete()
        new_code.clear()


def is_loaded(function: str) -> bool:
    """Whether gdb knows the function. If gdb does not know the function of a new breakpoint, it says so each time."""
    try:
        gdb.parse_and_eval(f"&{function}")
    except gdb.error:
        return False
    return True


COMMANDS: List[Tuple[str, Callable[[Target, str], None], List[str], str]] = [
    (
        "bt",
        bt,
        BT_WORDS,
        """Print native and Wasm frames of this thread.
Usage: {0} [full] [all] [wasm] [fold] [verbose] [COUNT]

full: with Wasm locals and operand stacks.  all: of all threads.
wasm: only Wasm frames.  fold: frames that come again and again, in one line.
verbose: also registers, and how each frame was found.
COUNT: the youngest COUNT frames.""",
    ),
    (
        "up",
        lambda t, a: step(t, a, 1),
        [],
        """Go to the next older Wasm frame.
Usage: {0} [COUNT]

gdb's own frame goes along where gdb sees the same frame.""",
    ),
    (
        "down",
        lambda t, a: step(t, a, -1),
        [],
        """Go to the next younger Wasm frame.
Usage: {0} [COUNT]""",
    ),
    (
        "locals",
        lambda t, a: show_frame(t, a, True, False),
        [],
        """Print parameters and locals of a Wasm frame.
Usage: {0} [FRAME]""",
    ),
    (
        "stack",
        lambda t, a: show_frame(t, a, False, True),
        [],
        """Print the operand stack of a Wasm frame, and where each operand was found.
Usage: {0} [FRAME]""",
    ),
    (
        "list",
        list_code,
        [],
        """List the Wasm operators around the frame's place.
Usage: {0} [COUNT]

Needs the module's .wasm file: set wasm files FILE.wasm""",
    ),
    (
        "print",
        print_value,
        ["local", "stack", "global", "memory"],
        """Print a value of a Wasm frame.
Usage: {0} EXPRESSION

local 3 or l3     a local             stack 0 or s0   an operand, 0 is the lowest
global 2 or g2    a global            i32[0x400]      a value in the linear memory:
                                      i8 u8 i16 u16 i32 u32 i64 u64 f32 f64
f64[l1]           at an address that is in a local""",
    ),
    (
        "modules",
        modules,
        ["verbose"],
        """List the Wasm modules of the process.
Usage: {0} [verbose]""",
    ),
    (
        "memory",
        memory,
        [],
        """Print bytes of the linear memory of a Wasm frame's instance.
Usage: {0} ADDRESS [LENGTH [MEMORY]]

ADDRESS is an address in the linear memory, which starts at 0.""",
    ),
    (
        "load",
        load,
        ["all"],
        """Make a symbol file of the Wasm code and load it, so that gdb's own bt, up and info locals know Wasm.
Usage: {0} [all]

all: every function, not only those of the current stacks.""",
    ),
]


class Prefix(gdb.Command):
    """Wasm frames, values and memories (wstate)."""

    def __init__(self, name: str, doc: str) -> None:
        self.__doc__ = doc
        self.name = name
        super().__init__(name, gdb.COMMAND_STACK, gdb.COMPLETE_COMMAND, True)

    def invoke(self, argument: str, from_tty: bool) -> None:
        gdb.execute(f"help {self.name}")


class Setting(gdb.Parameter):
    """A parameter that writes itself into `settings`."""

    def __init__(self, name: str, kind: int, initial: Any, store: Callable[[Any], None], doc: str) -> None:
        self.name = name
        self.store = store
        self.set_doc = f"Set {doc}."
        self.show_doc = f"Show {doc}."
        self.__doc__ = ""
        super().__init__(f"wasm {name}", gdb.COMMAND_SUPPORT, kind)
        self.value = initial

    def get_set_string(self) -> str:
        try:
            self.store(self.value)
        except WstateError as e:
            raise gdb.GdbError(f"wstate: {e}") from None
        return ""

    def get_show_string(self, value: str) -> str:
        return f"wasm {self.name}: {value or 'not set'}"


def set_attribute(name: str, convert: Callable[[Any], Any]) -> Callable[[Any], None]:
    return lambda value: setattr(settings, name, convert(value))


def register() -> None:
    Prefix("wasm", "Wasm frames, values and memories (wstate).\n\nEach command is there as wasm-NAME too.")
    Prefix("set wasm", "Set variables of the Wasm commands.")
    Prefix("show wasm", "Show variables of the Wasm commands.")
    for name, run, complete, doc in COMMANDS:
        for full in (f"wasm {name}", f"wasm-{name}"):
            Command(full, run, doc.format(full), complete)
    text = lambda value: value or ""
    paths = lambda value: words(value or "")
    Setting("server", gdb.PARAM_OPTIONAL_FILENAME, "", set_attribute("server", text), "the wstate program (empty: from PATH)")
    Setting("files", gdb.PARAM_STRING_NOESCAPE, "", set_attribute("files", paths), "the .wasm files that run in the process, as a list of words")
    Setting("artifacts", gdb.PARAM_STRING_NOESCAPE, "", set_attribute("artifacts", paths), "cached artifact files of modules, as a list of words")
    Setting("debug-dirs", gdb.PARAM_STRING_NOESCAPE, "", set_attribute("debug_dirs", paths), "directories of separate debug files, as a list of words")
    Setting("sysroot", gdb.PARAM_OPTIONAL_FILENAME, "", set_attribute("sysroot", text), "the directory under which files are looked for first")
    Setting("auto-load", gdb.PARAM_BOOLEAN, True, set_attribute("auto_load", bool), "whether symbols of Wasm code are loaded at stops")
    Setting("timeout", gdb.PARAM_ZUINTEGER, DEFAULT_TIMEOUT, set_attribute("timeout", lambda n: n or 1 << 30), "how many seconds wstate may be silent (0: any number)")
    for name in ("cont", "memory_changed", "register_changed", "inferior_call"):
        getattr(gdb.events, name).connect(forget_what_ran)
    gdb.events.stop.connect(auto_load)
    gdb.events.before_prompt.connect(auto_load_core)
    gdb.events.new_objfile.connect(auto_load_core)
    gdb.events.breakpoint_created.connect(wait_for_code)
    gdb.events.new_objfile.connect(wait_for_code)
    gdb.events.exited.connect(on_inferior_gone)
    gdb.events.inferior_deleted.connect(on_inferior_gone)
    atexit.register(close_all)


def version() -> Tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", gdb.VERSION)[:2])


if version() < (13,):
    gdb.write(f"wstate: the Wasm commands need gdb 13 or newer, this is {gdb.VERSION}; wstate attach and wstate core work without gdb\n")
else:
    register()
