"""What the plugins for gdb and lldb share.

A plugin reads this file by its path and runs it as a module of its own. Everything that is the same in both debuggers
is here: this code starts `wstate serve --stdio`, which is called the engine below, and speaks its protocol. It also
has the commands with their help, the settings, and the texts of errors.

It imports neither gdb nor lldb. What only the debugger can do, it asks of the plugin: see `Program`. It knows nothing
about Wasm either, because the engine does. It needs Python 3.7 or newer.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from typing import Any, Callable, Dict, Hashable, List, Optional, Tuple

# The version of wstate that this file belongs to. A plugin takes only the file of its own version.
VERSION = "0.1.0"

# The protocol of the engine that is spoken here. src/server/mod.rs describes it.
PROTOCOL = 1
# The engine's answers are shorter than this.
MAX_LINE = 1 << 28
# Stands for a timeout that never comes.
NO_TIMEOUT = 1 << 30
# At so many stops symbols of the same code are asked for until there are some: memory that is about to become a module
# has no code yet.
ATTEMPTS = 3

# The registers that the engine asks for. Of a vector register it wants the low 64 bits.
GENERAL = "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip fs_base".split()
VECTORS = [f"xmm{i}" for i in range(16)]


class WstateError(Exception):
    """An error whose text is one line for the user."""


# ---- settings ----

# The name of each setting, and what the debugger's help says about it.
SETTINGS = {
    "server": "the path of the wstate program (if empty: the one in PATH)",
    "files": "the .wasm files that run in the process, separated by spaces",
    "artifacts": "cached artifact files of modules, separated by spaces",
    "debug-dirs": "directories with separate debug files, separated by spaces",
    "sysroot": "the directory in which the files of the process are looked for first",
    "auto-load": "whether symbols of Wasm code are loaded when the process stops",
    "timeout": "how many seconds wstate may be silent before a command gives up (0: no limit)",
}


class Settings:
    """The values of the settings. An attribute has the name of its setting, with `_` for `-`."""

    def __init__(self) -> None:
        self.server = ""
        self.files: List[str] = []
        self.artifacts: List[str] = []
        self.debug_dirs: List[str] = []
        self.sysroot = ""
        self.auto_load = True
        self.timeout = 60

    def get(self, name: str) -> Any:
        return getattr(self, name.replace("-", "_"))

    def set(self, name: str, value: Any) -> None:
        """Gives a setting a value of its type. Nothing stands for no value, and 0 seconds for no limit. A list may be
        given as the text of a command line."""
        kind = type(self.get(name))
        if kind is list and not isinstance(value, list):
            value = words(value or "")
        elif kind is int:
            value = value or NO_TIMEOUT
        setattr(self, name.replace("-", "_"), kind(value or kind()))

    def program(self) -> str:
        """The path of the engine: the one that the user set, else the one in PATH, else the one where cargo installs
        programs."""
        if self.server:
            return os.path.expanduser(self.server)
        home = os.path.expanduser("~/.cargo/bin/wstate")
        return shutil.which("wstate") or (home if os.access(home, os.X_OK) else "wstate")

    def request(self, executable: Optional[str]) -> Dict[str, Any]:
        """The keys of the request `configure`."""

        def absolute(files: List[str]) -> List[str]:
            return [os.path.abspath(os.path.expanduser(file)) for file in files]

        return {
            "wasm": absolute(self.files),
            "artifacts": absolute(self.artifacts),
            "debug_dirs": self.debug_dirs,
            "sysroot": self.sysroot or None,
            "executable": executable,
        }


# ---- the engine ----

class Engine:
    """A running `wstate serve --stdio`."""

    def __init__(self, plugin: Plugin, program: Program) -> None:
        self.path = plugin.settings.program()
        self._plugin = plugin
        self._program = program
        self._buffer = bytearray()
        self._last_id = 0
        self._log = tempfile.TemporaryFile()
        try:
            # The engine gets a session of its own, because Ctrl-C at the debugger's terminal is for the debugger.
            self._process = subprocess.Popen(
                [self.path, "serve", "--stdio"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as e:
            self._log.close()
            hint = f"install wstate, or say where it is: {plugin.setting('server PATH')}"
            raise WstateError(f"cannot start {self.path}: {e.strerror}; {hint}") from None
        try:
            hello = self.request("hello", {"protocol": PROTOCOL, "client": program.debugger()})
        except WstateError:
            self.close()
            raise
        self.ops: List[str] = hello.get("ops") or []

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

    def is_alive(self) -> bool:
        """Whether the engine runs and can be asked."""
        return self._process.poll() is None and self._process.stdin is not None and not self._process.stdin.closed

    def request(self, op: str, keys: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        """Asks the engine, lends it what it asks for meanwhile, and returns its answer. Whatever goes wrong raises a
        WstateError, and an engine that can no longer be relied on is ended."""
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
            raise WstateError(f"{self.path} has ended: {why}; the next command starts it anew") from None
        if not message.get("ok"):
            error = message.get("error") or {}
            hint = error.get("hint")
            text = error.get("message") or "wstate failed without a reason"
            raise WstateError(f"{text} ({hint})" if hint else text)
        return message

    def _answer(self, call: Dict[str, Any]) -> Dict[str, Any]:
        """Lends the engine what it asks for."""
        program = self._program
        if program.interrupted():
            raise KeyboardInterrupt
        op = call.get("op")
        try:
            if op == "describe":
                return program.describe()
            if op == "registers":
                return {"registers": program.registers([int(thread) for thread in call["threads"]])}
            if op == "memory":
                ranges = [(int(address, 16), int(length)) for address, length in call["ranges"]]
                return {"data": [program.memory(address, length) for address, length in ranges]}
        except program.errors as e:
            return {"error": str(e)}
        return {"error": f"{self._plugin.debugger} cannot lend {op}"}

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
        timeout = self._plugin.settings.timeout
        deadline = time.monotonic() + timeout
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
            if self._program.interrupted():
                raise KeyboardInterrupt
            if ready:
                data = os.read(stdout.fileno(), 1 << 20)
                if not data:
                    raise OSError("it closed its output")
                self._buffer += data
            elif time.monotonic() > deadline:
                hint = f"to wait longer: {self._plugin.setting('timeout SECONDS')}"
                raise WstateError(f"wstate did not answer within {timeout:g} s; {hint}")

    def _last_words(self) -> str:
        """The first line that the engine wrote to its standard error."""
        try:
            self._log.seek(0)
            lines = self._log.read(1 << 16).decode(errors="replace").strip().splitlines()
        except (OSError, ValueError):
            return ""
        return lines[0][:200] if lines else ""


# ---- what the debugger looks at ----


class Program:
    """What a plugin gives to `Target`: one process or core as its debugger has it. Each plugin has a class with these
    members. It does not inherit from this one, because a plugin that cannot find this file has to say so."""

    # The exceptions of the debugger by which it says that it cannot lend something.
    errors: Tuple[type, ...] = ()

    def debugger(self) -> str:
        """Name and version of the debugger."""
        raise NotImplementedError

    def identity(self) -> Hashable:
        """A value that differs when the debugger has another process or core here than before."""
        raise NotImplementedError

    def moment(self) -> Hashable:
        """A value that differs when the process has run since, or when the debugger told that it was written to."""
        raise NotImplementedError

    def interrupted(self) -> bool:
        """Whether the user wants the command to end."""
        raise NotImplementedError

    def color(self) -> bool:
        """Whether what is printed may have colors."""
        raise NotImplementedError

    def chosen_executable(self) -> Optional[str]:
        """The executable that the user named, where it does not follow from the process itself."""
        raise NotImplementedError

    def describe(self) -> Dict[str, Any]:
        """The answer to the engine's call `describe`."""
        raise NotImplementedError

    def registers(self, threads: List[int]) -> List[Optional[Dict[str, str]]]:
        """Of each thread the values of its registers, or None if there are none now."""
        raise NotImplementedError

    def memory(self, address: int, length: int) -> Optional[str]:
        """The bytes at an address, in hexadecimal, or None if not all of them can be read."""
        raise NotImplementedError

    def selected(self) -> Tuple[int, int, int]:
        """The id of the selected thread, and the number and the pc of its selected frame, both 0 if there is none. It
        is an error if the thread cannot be looked at now."""
        raise NotImplementedError

    def select(self, number: int, pc: int) -> None:
        """Selects the debugger's frame with this number, if it is at this pc."""
        raise NotImplementedError

    def code(self) -> Optional[int]:
        """A number that differs when there may be other Wasm code than before. It is None if there can be no Wasm
        code, or if nobody can say."""
        raise NotImplementedError

    def load_symbols(self, target: Target, everything: bool) -> int:
        """Asks for symbol files (see `Target.symbols`), loads them, and drops those that the engine no longer has.
        The result is how many are loaded then."""
        raise NotImplementedError


class Target:
    """One process or core: its engine, and what the user looks at."""

    def __init__(self, plugin: Plugin, program: Program) -> None:
        self.plugin = plugin
        self.program = program
        self.engine: Optional[Engine] = None
        # What the engine was told, or found when it began.
        self.identity: Hashable = None
        self.moment: Hashable = None
        self.configured: Optional[Dict[str, Any]] = None
        # Whether the user may have written memory or registers since the engine looked, if the debugger does not tell.
        self.stale = False
        # The frame that the user chose: the moment, its thread, the number of the debugger's frame then, and its number
        # in wasm-bt.
        self.chosen: Optional[Tuple[Hashable, int, int, int]] = None
        # The code for which symbols were loaded (see `Program.code`), and how often they were asked for since.
        self.code: Optional[int] = None
        self.attempts = 0
        # Notes of the engine about the symbols, and whether a later stop may tell more about the same code.
        self.notes: List[str] = []
        self.unsure = False

    def close(self) -> None:
        """Ends the engine. The next request starts another."""
        if self.engine is not None:
            self.engine.close()
        self.engine = None

    def ask(self, op: str, **keys: Any) -> Dict[str, Any]:
        """Sends a request to the engine and returns the answer. Before that the engine is started, and told of
        changes, as needed."""
        settings, identity, moment = self.plugin.settings, self.program.identity(), self.program.moment()
        if identity != self.identity:
            self.chosen = None
            self.close()
        if self.engine is not None and (not self.engine.is_alive() or self.engine.path != settings.program()):
            self.close()
        if self.engine is None:
            self.engine = Engine(self.plugin, self.program)
            self.identity, self.moment, self.configured = identity, moment, None
        engine = self.engine
        if self.moment != moment:
            engine.request("resumed")
            self.moment = moment
        elif self.stale and "changed" in engine.ops:
            engine.request("changed")
        self.stale = False
        configuration = settings.request(self.program.chosen_executable())
        if configuration != self.configured:
            engine.request("configure", configuration)
            self.configured = configuration
        return engine.request(op, keys)

    def place(self) -> Dict[str, Any]:
        """The frame that the user looks at, as the engine's requests name it: the one that wasm-up chose, or the one
        that the debugger has selected. If the debugger has its innermost frame selected, nothing was chosen, and the
        youngest Wasm frame is meant."""
        thread, level, pc = self.program.selected()
        if self.chosen is not None and self.chosen[:3] == (self.program.moment(), thread, level):
            return {"thread": thread, "frame": self.chosen[3]}
        if level == 0:
            return {"thread": thread}
        return {"thread": thread, "frame": level, "pc": hex(pc)}

    def choose(self, number: int, pc: Optional[str]) -> None:
        """Remembers the frame with this number in wasm-bt as the one that the user looks at. The debugger's own frame
        goes along if the debugger sees the same frame under that number."""
        if pc is not None:
            self.program.select(number, int(pc, 16))
        thread, level, _ = self.program.selected()
        self.chosen = (self.program.moment(), thread, level, number)

    def symbols(self, everything: bool, **keys: Any) -> Dict[str, Any]:
        """Asks the engine for symbol files of the Wasm code."""
        answer = self.ask("symbols", directory=symbol_directory(), all=everything, **keys)
        self.notes = [str(note) for note in answer.get("notes") or []]
        self.unsure = bool(answer.get("unsure"))
        return answer

    def load_new_symbols(self, known: Optional[int] = None) -> Optional[int]:
        """Loads symbols if there may be other code than before, and returns what `Program.code` said of it then. If
        there is none, or if it is that of `known`, this costs one read of the list of mappings."""
        code = self.program.code()
        if code is None or code in (self.code, known):
            return None
        self.attempts += 1
        if self.program.load_symbols(self, False) or self.attempts >= ATTEMPTS:
            self.code, self.attempts = None if self.unsure else code, 0
        self.plugin.told.clear()
        return code


# ---- code that comes and goes ----


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


# ---- commands ----


def words(arguments: str) -> List[str]:
    """The words of a command line, split as a shell does it."""
    try:
        return shlex.split(arguments or "")
    except ValueError as e:
        raise WstateError(f"{arguments!r}: {e}") from None


def integer(text: str, what: str) -> int:
    """The number that a text stands for: 10, 0x10 or 0b10. `what` names it in an error."""
    try:
        return int(text, 0)
    except ValueError:
        raise WstateError(f"{what} is a number, not {text!r}") from None


def count(argument: str, otherwise: int) -> int:
    """The count that a command was given, or that which it has without one."""
    return integer(argument.strip(), "a count") if argument.strip() else otherwise


def bt(target: Target, argument: str) -> str:
    request: Dict[str, Any] = {"threads": [target.program.selected()[0]], "brief": True}
    for word in words(argument):
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
        elif plain == "whole":
            request["whole"] = True
        elif plain == "verbose":
            request["verbose"] = True
            request["brief"] = False
        elif word.isdigit():
            request["limit"] = int(word)
        else:
            takes = ", ".join(COMMANDS["bt"].words)
            raise WstateError(f"{target.plugin.command('bt')} does not know {word!r}; it takes {takes} and a count")
    return target.ask("walk", color=target.program.color(), **request)["text"]


def show_frame(target: Target, argument: str, **what: bool) -> str:
    place = target.place()
    if argument.strip():
        place = {"thread": place["thread"], "frame": integer(argument.strip(), "a frame")}
    return target.ask("frame", color=target.program.color(), **what, **place)["text"]


def step(target: Target, argument: str, sign: int) -> str:
    place = target.place()
    request = {"thread": place["thread"], "from": place.get("frame"), "by": sign * count(argument, 1)}
    answer = target.ask("step", color=target.program.color(), **request)
    target.choose(int(answer["index"]), answer.get("pc"))
    return answer["text"]


def list_operators(target: Target, argument: str) -> str:
    return target.ask("list", count=count(argument, 10), **target.place())["text"]


def print_value(target: Target, argument: str) -> str:
    if not argument.strip():
        needs = "an expression: local 0, stack 0, global 0, i32[0x400], f64[l1]"
        raise WstateError(f"{target.plugin.command('print')} needs {needs}")
    return target.ask("print", expression=argument, **target.place())["text"]


def modules(target: Target, argument: str) -> str:
    return target.ask("modules", color=target.program.color(), verbose="verbose" in argument)["text"]


def memory(target: Target, argument: str) -> str:
    given, command = words(argument), target.plugin.command("memory")
    if not 1 <= len(given) <= 3:
        needs = "an address in the linear memory; a length and the number of a memory may follow"
        raise WstateError(f"{command} needs {needs}")
    request = {"address": integer(given[0], "the address"), "length": 64, "memory": 0}
    for name, word in zip(("length", "memory"), given[1:]):
        request[name] = integer(word, f"the {name}")
    if min(request.values()) < 0:
        raise WstateError(f"{command} takes no negative numbers")
    return target.ask("memory", **request, **target.place())["text"]


def load(target: Target, argument: str) -> str:
    files = target.program.load_symbols(target, "all" in words(argument))
    if files:
        # The symbols that were asked for stay until there is other code.
        target.code, target.attempts = None if target.unsure else target.program.code(), 0
    text = f"{files} symbol file{'' if files == 1 else 's'} of Wasm code loaded\n"
    return text + "".join(f"note: {note}\n" for note in target.notes)


class Command:
    """A command of the user. In its texts, `{debugger}` is the debugger's name, `{native}` are its own commands for
    stacks, and `{set}` is how its user begins to set something. `words` are those that it takes."""

    def __init__(
        self, run: Callable[[Target, str], str], arguments: str, words: List[str], short: str, long: str = ""
    ) -> None:
        self.run = run
        self.arguments = arguments
        self.words = words
        self.short = short
        self.long = long


COMMANDS = {
    "bt": Command(
        bt,
        "[full] [all] [wasm] [fold] [whole] [verbose] [COUNT]",
        ["full", "all", "wasm", "fold", "whole", "verbose"],
        "Print the native and Wasm frames of this thread.",
        """
full      print also the locals and operands of each Wasm frame
all       print the frames of all threads
wasm      print only Wasm frames
fold      print frames that come again and again, as in a recursion, in one line
whole     print every native frame, with names and paths in full; without it, frames of Rust's runtime that stand in a row
          have one line
verbose   print also registers, and how each frame was found
COUNT     print only so many frames, the youngest ones
""",
    ),
    "up": Command(
        lambda target, argument: step(target, argument, 1),
        "[COUNT]",
        [],
        "Go to the next older Wasm frame.",
        """
COUNT     go so many Wasm frames further

The frame that {debugger} has selected goes along where {debugger} sees the same frame.
""",
    ),
    "down": Command(
        lambda target, argument: step(target, argument, -1),
        "[COUNT]",
        [],
        "Go to the next younger Wasm frame.",
        """
COUNT     go so many Wasm frames further

The frame that {debugger} has selected goes along where {debugger} sees the same frame.
""",
    ),
    "locals": Command(
        lambda target, argument: show_frame(target, argument, locals=True, stack=False),
        "[FRAME]",
        [],
        "Print the parameters and locals of a Wasm frame.",
        """
FRAME     the number of the frame; without it, the selected frame is meant
""",
    ),
    "stack": Command(
        lambda target, argument: show_frame(target, argument, locals=False, stack=True),
        "[FRAME]",
        [],
        "Print the operand stack of a Wasm frame, and where each operand was found.",
        """
FRAME     the number of the frame; without it, the selected frame is meant
""",
    ),
    "list": Command(
        list_operators,
        "[COUNT]",
        [],
        "List the Wasm operators around the place where the selected frame is.",
        """
COUNT     list so many operators

This needs the .wasm file of the module: {set} files FILE.wasm
""",
    ),
    "print": Command(
        print_value,
        "EXPRESSION",
        ["local", "stack", "global", "memory"],
        "Print a value of the selected Wasm frame.",
        """
local 3 or l3     a local
stack 0 or s0     an operand; 0 is the lowest one
global 2 or g2    a global
i32[0x400]        a value in the linear memory, of one of the types
                  i8 u8 i16 u16 i32 u32 i64 u64 f32 f64
f64[l1]           a value in the linear memory, at the address that is in a local
""",
    ),
    "modules": Command(
        modules,
        "[verbose]",
        ["verbose"],
        "List the Wasm modules of the process.",
    ),
    "memory": Command(
        memory,
        "ADDRESS [LENGTH [MEMORY]]",
        [],
        "Print bytes of the linear memory that the selected Wasm frame uses.",
        """
ADDRESS   an address in the linear memory, which starts at 0
LENGTH    how many bytes to print; without it, 64
MEMORY    the number of the memory, for modules with several; without it, 0
""",
    ),
    "load": Command(
        load,
        "[all]",
        ["all"],
        "Load symbols of the Wasm code, so that {debugger}'s own {native} know Wasm.",
        """
all       write the variables of every function, not only of those on the current stacks
""",
    ),
}


class Plugin:
    """The plugin of one debugger: its settings and targets, and how its user writes commands."""

    def __init__(self, debugger: str, command: str, setting: str, native: str) -> None:
        self.debugger = debugger
        self.settings = Settings()
        # The debugger's process or core by what the plugin knows it by.
        self.targets: Dict[Hashable, Target] = {}
        # Why symbols were not loaded, as the user was told.
        self.told: List[str] = []
        self._command = command
        self._setting = setting
        self._native = native
        atexit.register(self.close)

    def close(self) -> None:
        """Ends all engines and forgets the targets."""
        for target in self.targets.values():
            target.close()
        self.targets.clear()

    def target(self, key: Hashable, program: Callable[[], Program]) -> Target:
        """The target that is known by `key`. If it is new, `program` makes what it is asked about."""
        if key not in self.targets:
            self.targets[key] = Target(self, program())
        return self.targets[key]

    def forget(self, key: Hashable) -> None:
        """Ends the engine of a target that is gone."""
        target = self.targets.pop(key, None)
        if target is not None:
            target.close()

    def command(self, name: str) -> str:
        """How the user writes a command."""
        return f"{self._command}{name}"

    def setting(self, text: str) -> str:
        """How the user sets something."""
        return f"{self._setting} {text}"

    def short(self, name: str) -> str:
        """The first sentence of a command's help."""
        return self._fill(COMMANDS[name].short)

    def usage(self, name: str, written: str) -> str:
        """The rest of a command's help. `written` is how this user has written the command."""
        command = COMMANDS[name]
        return f"Usage: {written} {command.arguments}\n{self._fill(command.long)}".rstrip()

    def _fill(self, text: str) -> str:
        return text.format(debugger=self.debugger, native=self._native, set=self._setting)

    def not_loaded(self, why: BaseException) -> str:
        """What to tell the user when symbols were not loaded. The next stop, or step, has the same reason, so it is
        told only once until there are symbols; otherwise this is empty."""
        text = f"wstate: symbols of Wasm code were not loaded: {why}\n"
        if text in self.told:
            return ""
        self.told.append(text)
        return text
