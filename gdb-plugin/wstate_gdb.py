"""The Wasm commands in gdb: wasm-bt and its family.

Load it with `source wstate_gdb.py`, or let `wstate plugin install gdb` do that. What it shares with the lldb plugin is
in wstate_client.py, beside this file. Here is what only gdb can do: it reads memory and registers, loads symbol files,
and hears of stops. It needs gdb 13 or newer.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import struct
import types
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import gdb

# gdb runs each sourced file among the same global names. These are the names that were there before this file, perhaps
# those of an earlier load. If this load fails, they are put back, so that the earlier load serves on.
names_before_wstate = {name: value for name, value in globals().items() if name != "names_before_wstate"}

# The version of wstate that this file belongs to. Only the wstate_client.py of the same version fits.
VERSION = "0.1.0"

# The events of gdb that are listened to, each with the function of this file that hears of it.
HANDLERS = [
    ("cont", "forget_what_ran"),
    ("memory_changed", "forget_what_ran"),
    ("register_changed", "forget_what_ran"),
    ("inferior_call", "forget_what_ran"),
    ("stop", "auto_load"),
    ("before_prompt", "auto_load_core"),
    ("new_objfile", "auto_load_core"),
    ("breakpoint_created", "wait_for_code"),
    ("new_objfile", "wait_for_code"),
    ("exited", "on_inferior_gone"),
    ("inferior_deleted", "on_inferior_gone"),
]


def function_of_plugin(name: str) -> Optional[Callable[..., None]]:
    """The function of this name, if a file with the name of this one has defined it. That file may have been loaded
    through a link of another name."""
    function = globals().get(name)
    code = getattr(function, "__code__", None)
    path = os.path.realpath(os.path.expanduser(code.co_filename)) if code is not None else ""
    return function if os.path.basename(path) == "wstate_gdb.py" else None


# An earlier load of the plugin, perhaps of another version, may have left these: wstate_client.py as a module, and the
# `Plugin` that it made. `load_plugin` replaces them.
wstate_client: Any = globals().get("wstate_client")
wstate: Any = globals().get("wstate")

# What the earlier load listens with. Versions that had no `Plugin` are known by their names.
earlier_handlers = [(event, function_of_plugin(name)) for event, name in HANDLERS if function_of_plugin(name)]
earlier_handlers += getattr(wstate, "handlers", [])


def load_client() -> Any:
    """Runs wstate_client.py, which is beside this file or, in a clone of the repository, in its folder gdb-plugin.

    The module gets no name in sys.modules and no compiled copy on disk. So a plugin of another version in the same
    debugger has a module of its own, and a plugin that is loaded again reads the file again."""
    # `__file__` is another script's if that one lets gdb load the plugin.
    here = os.path.dirname(os.path.realpath(os.path.expanduser(load_client.__code__.co_filename)))
    places = [here, os.path.join(os.path.dirname(here), "gdb-plugin")]
    paths = [os.path.join(place, "wstate_client.py") for place in places]
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        raise ImportError(f"{paths[0]} is missing; run: wstate plugin install, or load wstate_gdb.py by its full path")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    found = re.search(r'^VERSION = "(.*)"$', text, re.MULTILINE)
    if found is None or found.group(1) != VERSION:
        theirs = found.group(1) if found is not None else "an unknown version"
        raise ImportError(f"{path} belongs to wstate {theirs}, wstate_gdb.py to {VERSION}; run: wstate plugin install")
    module = types.ModuleType("wstate_client")
    exec(compile(text, path, "exec"), module.__dict__)
    return module


MASK = (1 << 64) - 1


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


class Program:
    """One inferior: what the shared part asks about it."""

    errors = (gdb.error,)

    def __init__(self, inferior: gdb.Inferior) -> None:
        self.inferior = inferior
        # The symbol files that are loaded, by path: an address inside each, and where each module in it begins.
        self.loaded: Dict[str, Tuple[str, List[str]]] = {}
        # The code for which symbols were loaded between two stops.
        self.early: Optional[int] = None
        # Whether each store of this process runs a copy of code of its own.
        self.per_store = False

    def debugger(self) -> str:
        return f"gdb {gdb.VERSION}"

    def identity(self) -> Tuple[Any, ...]:
        kind = connection_type(self.inferior)
        return (self.inferior.pid, kind, core_path() if kind == "core" else None)

    def moment(self) -> int:
        return wstate.moment

    def interrupted(self) -> bool:
        # gdb raises KeyboardInterrupt.
        return False

    def color(self) -> bool:
        styled = bool(gdb.parameter("style enabled"))
        return styled and os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb"

    def chosen_executable(self) -> Optional[str]:
        return executable(self.inferior) if connection_type(self.inferior) == "core" else None

    def describe(self) -> Dict[str, Any]:
        kind = connection_type(self.inferior)
        local = kind == "native" and wstate_client.local_process(self.inferior.pid)
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
            return [registers_of(by_id.get(t)) for t in wanted]
        finally:
            if thread is not None and thread.is_valid():
                thread.switch()
                if frame is not None and frame.is_valid():
                    frame.select()

    def selected(self) -> Tuple[int, int, int]:
        thread, frame = current_thread(), selected_frame()
        return (tid(thread), frame.level(), frame.pc()) if frame is not None else (tid(thread), 0, 0)

    def select(self, number: int, pc: int) -> None:
        try:
            frame: Optional[gdb.Frame] = gdb.newest_frame()
            while frame is not None and frame.level() < number:
                frame = frame.older()
            if frame is not None and frame.pc() == pc:
                frame.select()
        except gdb.error:
            pass

    def code(self) -> Optional[int]:
        if connection_type(self.inferior) != "native":
            return None
        code = wstate_client.code_signature(self.inferior.pid)
        return None if code is None else hash((code, tuple(in_memory())))

    def load_symbols(self, target: Any, everything: bool) -> int:
        # If the program is not stopped for the user, no symbols are taken away, because breakpoints are in the code.
        early = NewCode.thread is not None
        known = [[base, hex(int(base, 16) + 1)] for _, bases in self.loaded.values() for base in bases] if early else []
        answer = target.symbols(everything, described=described_by_runtime(), known=known)
        self.per_store = bool(answer.get("per_store"))
        if NewCode.published and not self.per_store:
            # The runtime that has just compiled the code may keep it on disk, and a breakpoint of gdb's would be in
            # there for good.
            return 0
        wanted = {str(f["path"]): (str(f["address"]), f.get("modules") or []) for f in answer.get("files") or []}
        gone = [path for path in self.loaded if path not in wanted and not early]
        new = [path for path in wanted if path not in self.loaded]
        if gone or new:
            with breakpoints_lifted():
                self.drop_symbols(gone)
                for path in new:
                    gdb.execute(f"add-symbol-file {shlex.quote(path)}", to_string=True)
                    self.loaded[path] = wanted[path]
        return len(wanted)

    def drop_symbols(self, paths: List[str]) -> None:
        for path in paths:
            try:
                gdb.execute(f"remove-symbol-file -a {self.loaded[path][0]}", to_string=True)
            except gdb.error:
                pass
            del self.loaded[path]


def registers_of(thread: Optional[gdb.InferiorThread]) -> Optional[Dict[str, str]]:
    # Until gdb has told of a stop it counts every thread as running, even the one that stopped.
    if thread is None or not (thread.is_stopped() or tid(thread) == NewCode.thread):
        return None
    thread.switch()
    try:
        frame = gdb.newest_frame()
    except gdb.error:
        return None
    out = {}
    for name in wstate_client.GENERAL:
        try:
            out[name] = hex(int(frame.read_register(name)) & MASK)
        except (gdb.error, ValueError):
            pass
    for name in wstate_client.VECTORS:
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


def current_target() -> Any:
    inferior = gdb.selected_inferior()
    if not inferior.threads():
        raise wstate_client.WstateError("there is no process and no core: run, attach or core-file first")
    # Some commands need no thread. But if one is selected, it has to stand still.
    if gdb.selected_thread() is not None:
        current_thread()
    return target_of(inferior)


def target_of(inferior: gdb.Inferior) -> Any:
    return wstate.target(inferior.num, lambda: Program(inferior))


def current_thread() -> gdb.InferiorThread:
    thread = gdb.selected_thread()
    if thread is None:
        raise wstate_client.WstateError("no thread is selected")
    if thread.is_running():
        raise wstate_client.WstateError("the selected thread is running: interrupt it first")
    return thread


def forget_what_ran(*_: Any) -> None:
    # This is for all inferiors, because a stop of one is rarely a stop of one alone.
    wstate.moment += 1


def on_inferior_gone(event: Any) -> None:
    wstate.forget(event.inferior.num)


def close_all(lifted: Callable[[], Any], unwatch: Callable[[Dict[str, NewCode]], None]) -> None:
    """Leaves gdb as if the plugin was not there, for a plugin that is loaded after this one. It also does so for
    versions of the plugin whose breakpoints are a global name."""
    with lifted():
        for target in wstate.targets.values():
            target.program.drop_symbols(list(target.program.loaded))
    unwatch(wstate.new_code if hasattr(wstate, "new_code") else globals().get("new_code", {}))
    wstate.close()


def close_single_file() -> None:
    """Does the same for an earlier load of a version that was a single file. Its targets and breakpoints are global
    names."""
    if function_of_plugin("load_what_is_new") is None:
        # Global names belong to all of the user's scripts, so without that version's function these are of others.
        return
    with breakpoints_lifted():
        for target in globals()["targets"].values():
            Program.drop_symbols(target, list(target.loaded))
            target.close()
    unwatch_new_code(globals()["new_code"])


class Command(gdb.Command):
    """A command under one of its names."""

    def __init__(self, name: str, written: str) -> None:
        self.run = wstate_client.COMMANDS[name].run
        self.words = wstate_client.COMMANDS[name].words
        self.__doc__ = f"{wstate.short(name)}\n{wstate.usage(name, written)}"
        super().__init__(written, gdb.COMMAND_STACK)

    def invoke(self, argument: str, from_tty: bool) -> None:
        try:
            text = self.run(current_target(), argument)
        except wstate_client.WstateError as e:
            raise gdb.GdbError(f"wstate: {e}") from None
        except KeyboardInterrupt:
            raise gdb.GdbError("wstate: interrupted") from None
        gdb.write(text if text.endswith("\n") else f"{text}\n")

    def complete(self, text: str, word: str) -> List[str]:
        return [known for known in self.words if known.startswith(word)]


@contextlib.contextmanager
def breakpoints_lifted() -> Iterator[None]:
    """Takes the user's breakpoints out of the code for a while. While symbol files come and go, gdb 13 forgets that a
    breakpoint is in the code, or puts it there twice, and the instruction there would be broken for good."""
    every = gdb.breakpoints() or ()
    lifted = [one for one in every if one.is_valid() and one.enabled and one.type == gdb.BP_BREAKPOINT]
    try:
        for one in lifted:
            one.enabled = False
        yield
    finally:
        for one in lifted:
            if one.is_valid():
                one.enabled = True


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
    if not wstate.settings.auto_load or isinstance(event, getattr(gdb, "ExitedEvent", ())):
        return
    try:
        look_for_code(gdb.selected_inferior())
    except (wstate_client.WstateError, gdb.error, KeyboardInterrupt) as e:
        tell_not_loaded(e)
    wait_for_code()


def look_for_code(inferior: gdb.Inferior) -> None:
    target = target_of(inferior)
    early = target.program.early if NewCode.thread is not None else None
    looked_at = target.load_new_symbols(known=early)
    if looked_at is not None and NewCode.thread is not None:
        # The next stop looks again, because threads that run now have registers then.
        target.code, target.program.early = None, None if NewCode.published else looked_at


def tell_not_loaded(why: BaseException) -> None:
    gdb.write(wstate.not_loaded(why))


def auto_load_core(event: Any = None) -> None:
    """A core makes no stop, so its symbols are loaded with the first of its files, or before the prompt that follows.
    With -batch and in the machine interface only the first of these two happens."""
    inferior = gdb.selected_inferior()
    if not wstate.settings.auto_load or connection_type(inferior) != "core" or not inferior.threads():
        return
    # Every core-file command makes a connection of its own. The symbol file itself counts as one of the core's files,
    # too.
    connection = inferior.connection.num
    if wstate.cores_seen.get(inferior.num) == connection:
        return
    wstate.cores_seen[inferior.num] = connection
    try:
        target = target_of(inferior)
        target.program.load_symbols(target, False)
        wstate.told.clear()
    except (wstate_client.WstateError, gdb.error, KeyboardInterrupt) as e:
        tell_not_loaded(e)
        if event is not None:
            # It is tried again with another of the core's files, or before the prompt.
            del wstate.cores_seen[inferior.num]


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
        if not wstate.settings.auto_load or thread is None:
            return False
        NewCode.thread, NewCode.published = tid(thread), self.location.endswith(PUBLISHED)
        try:
            look_for_code(inferior)
        except (wstate_client.WstateError, gdb.error, KeyboardInterrupt) as e:
            tell_not_loaded(e)
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


def waits_for_code() -> bool:
    """Whether a breakpoint of the user may be for code that is still to come."""
    users = [b for b in gdb.breakpoints() or () if b.is_valid() and b.number > 0 and b.enabled]
    return any(b.pending for b in users) or (bool(users) and any(t.program.per_store for t in wstate.targets.values()))


def wait_for_code(event: Any = None) -> None:
    """Watches the places where code appears, but only while a breakpoint waits for code, because each time that the
    program comes to such a place costs a short stop of it."""
    if isinstance(event, NewCode):
        return
    if wstate.settings.auto_load and waits_for_code():
        for name in NEW_CODE:
            known = wstate.new_code.get(name)
            if (known is None or not known.is_valid()) and is_loaded(name):
                try:
                    wstate.new_code[name] = NewCode(f"-qualified -function {name}", internal=True)
                    wstate.new_code[name].silent = True
                except (gdb.error, RuntimeError):
                    pass
    elif event is None:
        # Breakpoints are deleted only at a stop. At other moments gdb may be in the middle of its list of
        # breakpoints.
        unwatch_new_code(wstate.new_code)


def unwatch_new_code(new_code: Dict[str, NewCode]) -> None:
    for one in new_code.values():
        if one.is_valid():
            one.delete()
    new_code.clear()


def is_loaded(function: str) -> bool:
    """Whether gdb knows the function. If gdb does not know the function of a new breakpoint, it says so each time."""
    try:
        # An expression would not do: in a frame of Rust code, it has no functions without debug information.
        found = gdb.decode_line(function)[1] or ()
        names = [gdb.execute(f"info symbol {one.pc:#x}", to_string=True) or "" for one in found]
    except gdb.error:
        return False
    # gdb finds functions of all namespaces too, and the breakpoint is for none of these.
    return any("::" not in name for name in names)


class Prefix(gdb.Command):
    """Wasm frames, values and memories (wstate)."""

    def __init__(self, name: str, doc: str) -> None:
        self.__doc__ = doc
        self.name = name
        super().__init__(name, gdb.COMMAND_STACK, gdb.COMPLETE_COMMAND, True)

    def invoke(self, argument: str, from_tty: bool) -> None:
        gdb.execute(f"help {self.name}")


class Setting(gdb.Parameter):
    """A parameter of gdb that is a setting of the plugin."""

    # Of each type of a setting, the type of the parameter.
    KINDS = {
        str: gdb.PARAM_OPTIONAL_FILENAME,
        list: gdb.PARAM_STRING_NOESCAPE,
        bool: gdb.PARAM_BOOLEAN,
        int: gdb.PARAM_ZUINTEGER,
    }

    def __init__(self, name: str, doc: str) -> None:
        self.name = name
        self.set_doc = f"Set {doc}."
        self.show_doc = f"Show {doc}."
        self.__doc__ = ""
        initial = wstate.settings.get(name)
        super().__init__(f"wasm {name}", gdb.COMMAND_SUPPORT, self.KINDS[type(initial)])
        self.value = "" if isinstance(initial, list) else initial

    def get_set_string(self) -> str:
        try:
            wstate.settings.set(self.name, self.value)
        except wstate_client.WstateError as e:
            raise gdb.GdbError(f"wstate: {e}") from None
        return ""

    def get_show_string(self, value: str) -> str:
        return f"wasm {self.name}: {value or 'not set'}"


def version() -> Tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", gdb.VERSION)[:2])


def put_back_names() -> None:
    names = names_before_wstate
    globals().clear()
    globals().update(names)


def load_plugin() -> None:
    global wstate_client, wstate
    if version() < (13,):
        older = f"the Wasm commands need gdb 13 or newer, this is {gdb.VERSION}"
        gdb.write(f"wstate: {older}; wstate attach and wstate core work without gdb\n")
        put_back_names()
        return
    try:
        loaded = load_client()
    except Exception as e:  # Whatever is wrong with that file, the earlier load serves on.
        gdb.write(f"wstate: the Wasm commands are not there: {e}\n", gdb.STDERR)
        put_back_names()
        return
    close = functools.partial(close_all, breakpoints_lifted, unwatch_new_code)
    try:
        close_single_file()
        if wstate is not None:
            # The earlier load knows best how it is ended.
            getattr(wstate, "close_all", close)()
    except gdb.error as e:
        gdb.write(f"wstate: the earlier load cannot be ended now, so it serves on: {e}\n", gdb.STDERR)
        put_back_names()
        return
    for event, function in earlier_handlers:
        try:
            getattr(gdb.events, event).disconnect(function)
        except (ValueError, SystemError):
            # It is not connected, or no longer. gdb 13 says this by the second of them.
            pass
    names_before_wstate.clear()
    wstate_client = loaded
    wstate = wstate_client.Plugin("gdb", command="wasm-", setting="set wasm", native="bt, up and info locals")
    # These are kept here because a later load replaces the global names, and then ends what this load has begun.
    # A number that grows when a process may have run or was written to.
    wstate.moment = 0
    # The breakpoints of the kind `NewCode` that are set, by the name of the function.
    wstate.new_code = {}
    # The number of the connection to the core that was last looked at, by the number of the inferior.
    wstate.cores_seen = {}
    # The functions are named here because a later load replaces the global names before it calls this.
    wstate.close_all = close
    Prefix("wasm", "Wasm frames, values and memories (wstate).\n\nEach command is there as wasm-NAME too.")
    Prefix("set wasm", "Set what the Wasm commands use.")
    Prefix("show wasm", "Show what the Wasm commands use.")
    for name in wstate_client.COMMANDS:
        for written in (f"wasm {name}", f"wasm-{name}"):
            Command(name, written)
    for name, doc in wstate_client.SETTINGS.items():
        Setting(name, doc)
    wstate.handlers = [(event, globals()[name]) for event, name in HANDLERS]
    for event, function in wstate.handlers:
        getattr(gdb.events, event).connect(function)
    # A breakpoint of the user may wait for code already.
    wait_for_code()


load_plugin()
