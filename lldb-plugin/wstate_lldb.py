"""The Wasm commands in lldb: `wasm bt` and its family.

Load it with `command script import wstate_lldb.py`, or let `wstate plugin install lldb` do that. What it shares with
the gdb plugin is in wstate_client.py, beside this file or, in the repository, in the folder gdb-plugin. Here is what
only lldb can do: it reads memory and registers, loads symbol files, and runs at stops. It needs lldb 16 or newer.
"""

from __future__ import annotations

import os
import re
import sys
import time
import types
from typing import Any, Callable, Dict, List, Optional, Tuple

import lldb

# The global names of this module before this load. If it fails, they are put back, so that an earlier load serves on.
names_before_wstate = {name: value for name, value in globals().items() if name != "names_before_wstate"}

# The version of wstate that this file belongs to. Only the wstate_client.py of the same version fits.
VERSION = "0.1.0"


def file_of(module: Any) -> str:
    """The file of a module, or an empty text. A module that is loaded when it is first used may raise anything."""
    try:
        return module.__file__ or ""
    except Exception:
        return ""


# Each module with its file, and whether it is a load of the plugin. lldb runs a script as a module that is named as its
# file. So all loads are one module, unless some of them were through a link of another name.
modules = [(module, file_of(module)) for module in list(sys.modules.values())]
loads = [(module, path) for module, path in modules if os.path.basename(os.path.realpath(path)) == "wstate_lldb.py"]

# lldb puts the directory of a script into sys.path, unless it is in there, and then loads the script by its name. If
# the directory stayed there, its file could be loaded when the user names one in another directory. It stays if other
# scripts were loaded from it, since these may import more.
here = os.path.dirname(__file__)
if not any(os.path.dirname(path) == here for module, path in modules if (module, path) not in loads):
    sys.path[:] = [path for path in sys.path if path != here]

# What earlier loads, perhaps of other versions, have left, and all of their stop hooks.
earlier = [vars(module).copy() for module, path in loads]
earlier_hooks = [hook for names in earlier for hook in [*names.get("earlier_hooks", []), names.get("AutoLoad")] if hook]
# wstate_client.py as a module, and the `Plugin` that it made. `__lldb_init_module` replaces what an earlier load left.
wstate_client: Any = globals().get("wstate_client")
wstate: Any = globals().get("wstate")


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
        raise ImportError(f"{paths[0]} is missing; run: wstate plugin install, or load wstate_lldb.py by its full path")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    found = re.search(r'^VERSION = "(.*)"$', text, re.MULTILINE)
    if found is None or found.group(1) != VERSION:
        theirs = found.group(1) if found is not None else "an unknown version"
        raise ImportError(f"{path} belongs to wstate {theirs}, wstate_lldb.py to {VERSION}; run: wstate plugin install")
    module = types.ModuleType("wstate_client")
    exec(compile(text, path, "exec"), module.__dict__)
    return module


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
    for name in wstate_client.GENERAL + wstate_client.VECTORS:
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


class Program:
    """One process: what the shared part asks about it."""

    errors = ()

    def __init__(self, debugger: lldb.SBDebugger, process: lldb.SBProcess) -> None:
        self.lldb = debugger
        self.process = process
        # The paths of the symbol files that are loaded.
        self.loaded: List[str] = []

    def debugger(self) -> str:
        return self.lldb.GetVersionString().splitlines()[0]

    def identity(self) -> int:
        return self.process.GetUniqueID()

    def moment(self) -> int:
        # This number counts stops, including those after expressions.
        return self.process.GetStopID(True)

    def interrupted(self) -> bool:
        return hasattr(self.lldb, "InterruptRequested") and bool(self.lldb.InterruptRequested())

    def color(self) -> bool:
        return self.lldb.GetUseColor() and os.isatty(1)

    def chosen_executable(self) -> Optional[str]:
        return executable(self.process.GetTarget()) if core_path(self.process) else None

    def describe(self) -> Dict[str, Any]:
        process = self.process
        core, pid = core_path(process), process.GetProcessID()
        threads = [process.GetThreadAtIndex(i) for i in range(process.GetNumThreads())]
        return {
            "pid": pid,
            # The engine makes sure that the process with this number is the same one.
            "local": "core" not in process.GetPluginName() and wstate_client.local_process(pid),
            "core": core,
            "executable": executable(process.GetTarget()),
            "maps": None if core else patiently(lambda: mappings_text(process)),
            "threads": [{"tid": thread.GetThreadID(), "name": thread.GetName()} for thread in threads],
        }

    def registers(self, threads: List[int]) -> List[Optional[Dict[str, str]]]:
        return [patiently(lambda t=t: registers_of(thread_by_id(self.process, t))) for t in threads]

    def memory(self, address: int, length: int) -> Optional[str]:
        error = lldb.SBError()
        data = self.process.ReadMemory(address, length, error)
        return data.hex() if error.Success() and data is not None and len(data) == length else None

    def selected(self) -> Tuple[int, int, int]:
        thread = current_thread(self.process)
        frame = thread.GetSelectedFrame()
        return (thread.GetThreadID(), frame.idx, frame.pc) if frame.IsValid() else (thread.GetThreadID(), 0, 0)

    def select(self, number: int, pc: int) -> None:
        thread = current_thread(self.process)
        frame = thread.GetFrameAtIndex(number)
        if frame.IsValid() and frame.pc == pc:
            thread.SetSelectedFrame(number)

    def code(self) -> Optional[int]:
        process = self.process
        if "core" in process.GetPluginName():
            return process.GetUniqueID()
        code = wstate_client.code_signature(process.GetProcessID())
        return None if code is None else hash((code, tuple(described_by_runtime(process.GetTarget()))))

    def load_symbols(self, target: Any, everything: bool) -> int:
        program = self.process.GetTarget()
        known = [[hex(start), hex(end)] for start, end in described_by_runtime(program)]
        answer = target.symbols(everything, known=known)
        wanted = [str(f["path"]) for f in answer.get("files") or []]
        self.drop_symbols([path for path in self.loaded if path not in wanted])
        for path in wanted:
            if path in self.loaded:
                continue
            module = program.AddModule(path, None, None)
            if not module.IsValid():
                raise wstate_client.WstateError(f"lldb does not take {path}")
            error = program.SetModuleLoadAddress(module, 0)
            if error.Fail():
                raise wstate_client.WstateError(f"lldb does not load {path}: {error.GetCString()}")
            self.loaded.append(path)
        return len(wanted)

    def drop_symbols(self, paths: List[str]) -> None:
        program = self.process.GetTarget()
        for path in paths:
            module = program.FindModule(lldb.SBFileSpec(path))
            if module.IsValid():
                program.RemoveModule(module)
            self.loaded.remove(path)


def current_target(debugger: lldb.SBDebugger) -> Any:
    process = debugger.GetSelectedTarget().GetProcess()
    state = process.GetState() if process.IsValid() else lldb.eStateInvalid
    if state in (lldb.eStateRunning, lldb.eStateStepping):
        raise wstate_client.WstateError("the process is running: process interrupt first")
    if state not in (lldb.eStateStopped, lldb.eStateCrashed, lldb.eStateSuspended):
        raise wstate_client.WstateError("there is no process and no core: run, attach or target create --core first")
    # For a moment lldb says that a process is stopped although it has just let it go. Then no thread has frames.
    if not any(process.GetThreadAtIndex(i).GetFrameAtIndex(0).IsValid() for i in range(process.GetNumThreads())):
        raise wstate_client.WstateError("no thread can be looked at: the process is running (process interrupt first)")
    for key in [key for key, target in wstate.targets.items() if is_gone(target.program.process)]:
        wstate.forget(key)
    return target_of(debugger, process)


def target_of(debugger: lldb.SBDebugger, process: lldb.SBProcess) -> Any:
    return wstate.target((debugger.GetID(), process.GetUniqueID()), lambda: Program(debugger, process))


def is_gone(process: lldb.SBProcess) -> bool:
    gone = (lldb.eStateExited, lldb.eStateDetached, lldb.eStateUnloaded, lldb.eStateInvalid)
    return not process.IsValid() or process.GetState() in gone


def current_thread(process: lldb.SBProcess) -> lldb.SBThread:
    thread = process.GetSelectedThread()
    if not thread.IsValid():
        raise wstate_client.WstateError("no thread can be looked at: the process is running (process interrupt first)")
    return thread


def close_all(gone: Callable[[lldb.SBProcess], bool] = is_gone) -> None:
    """Leaves lldb as if the plugin was not there, for a plugin that is loaded after this one. That one has replaced the
    global names by then."""
    if wstate is None:
        return
    for target in wstate.targets.values():
        if not gone(target.program.process):
            target.program.drop_symbols(list(target.program.loaded))
    wstate.close()


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


def look_for_code(target: Any) -> None:
    """Loads symbols if code that belongs to no file came or went."""
    if wstate.settings.auto_load:
        target.load_new_symbols()


class AutoLoad:
    """Loads symbols at stops. lldb before 21 runs no stop hook when it attaches or opens a core; there the first of
    the plugin's commands loads them (see `on_target`)."""

    def __init__(self, target: lldb.SBTarget, extra: lldb.SBStructuredData, internal: Dict[str, Any]) -> None:
        self.debugger = target.GetDebugger()

    def handle_stop(self, context: lldb.SBExecutionContext, stream: lldb.SBStream) -> bool:
        process = context.GetProcess()
        try:
            if wstate.settings.auto_load and lends(process):
                look_for_code(target_of(self.debugger, process))
        except (wstate_client.WstateError, KeyboardInterrupt) as e:
            stream.Print(wstate.not_loaded(e))
        return True


def lends(process: lldb.SBProcess) -> bool:
    """Whether lldb gives registers now. A hook that runs while lldb still counts the process as running gets none,
    and what the engine then made of the process would be wrong for the whole stop."""
    thread = process.GetSelectedThread()
    return thread.IsValid() and registers_of(thread) is not None


def change(debugger: lldb.SBDebugger, argument: str) -> str:
    """`wasm set NAME [VALUE...]`."""
    given = wstate_client.words(argument)
    name, values = (given[0], given[1:]) if given else ("", [])
    settings = wstate.settings
    if name not in wstate_client.SETTINGS:
        raise wstate_client.WstateError(f"wasm set takes one of {', '.join(sorted(wstate_client.SETTINGS))}")
    before = settings.get(name)
    if isinstance(before, list):
        settings.set(name, values)
        return ""
    if len(values) > 1:
        raise wstate_client.WstateError(f"{name} takes one value")
    value = values[0] if values else ""
    if isinstance(before, bool):
        if value not in ("on", "off", "true", "false"):
            raise wstate_client.WstateError(f"{name} is on or off")
        settings.set(name, value in ("on", "true"))
    elif isinstance(before, int):
        settings.set(name, wstate_client.integer(value or "0", name))
    else:
        settings.set(name, value)
    return ""


def show(debugger: lldb.SBDebugger, argument: str) -> str:
    values = [(name, wstate.settings.get(name)) for name in sorted(wstate_client.SETTINGS)]
    return "".join(f"{name:<12} {value if value != '' else 'not set'}\n" for name, value in values)


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
            except wstate_client.WstateError as e:
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


def on_target(name: str) -> Callable[[lldb.SBDebugger, str], str]:
    run = wstate_client.COMMANDS[name].run

    def command(debugger: lldb.SBDebugger, argument: str) -> str:
        target = current_target(debugger)
        target.stale = True
        text = run(target, argument)
        if name == "load":
            # It has loaded what the user asked for, and to look now could replace that by less.
            return text
        try:
            look_for_code(target)
        except wstate_client.WstateError:
            # The command has its answer. What is wrong with the symbols is told at a stop, or by wasm load.
            pass
        return text

    return command


def version(debugger: lldb.SBDebugger) -> int:
    found = re.search(r"\d+", debugger.GetVersionString())
    return int(found.group()) if found else 0


def commands() -> Dict[str, Tuple[Callable[[lldb.SBDebugger, str], str], str, str]]:
    """Each command with what it runs, the first sentence of its help, and the rest of it."""
    every = {
        name: (on_target(name), wstate.short(name), wstate.usage(name, wstate.command(name)))
        for name in wstate_client.COMMANDS
    }
    settings = "".join(f"{name:<12} {doc}\n" for name, doc in wstate_client.SETTINGS.items())
    usage = f"Usage: wasm set NAME [VALUE...]\n\n{settings}".rstrip()
    every["set"] = (change, "Set what the Wasm commands use.", usage)
    every["show"] = (show, "Show what the Wasm commands use.", "Usage: wasm show")
    short = {name: command[1] for name, command in every.items()}
    short["help"] = "List the Wasm commands."
    listed = "".join(f"wasm {name:<8} {sentence}\n" for name, sentence in sorted(short.items()))
    every["help"] = (lambda debugger, argument: listed, short["help"], "Usage: wasm help")
    return every


def put_back_names() -> None:
    names = names_before_wstate
    globals().clear()
    globals().update(names)


def __lldb_init_module(debugger: lldb.SBDebugger, internal: Dict[str, Any]) -> None:
    global wstate_client, wstate
    if version(debugger) < 16:
        older = f"the Wasm commands need lldb 16 or newer, this is {debugger.GetVersionString().splitlines()[0]}"
        print(f"wstate: {older}; wstate attach and wstate core work without lldb")
        put_back_names()
        return
    try:
        loaded = load_client()
    except Exception as e:  # Whatever is wrong with that file, the earlier load serves on.
        print(f"wstate: the Wasm commands are not there: {e}")
        put_back_names()
        return
    for names in earlier:
        # Versions that were a single file have their targets in a global name, and leave symbol files behind.
        for target in names.get("targets", {}).values():
            if not is_gone(target.process):
                Program.drop_symbols(target, list(target.loaded))
        if "close_all" in names:
            names["close_all"]()
    earlier.clear()
    names_before_wstate.clear()
    for hook in earlier_hooks:
        # Its objects stay where they are, at the targets that lldb has.
        hook.handle_stop = AutoLoad.handle_stop
    wstate_client = loaded
    wstate = wstate_client.Plugin("lldb", command="wasm ", setting="wasm set", native="bt and frame variable")
    interpreter = debugger.GetCommandInterpreter()

    def run(line: str) -> None:
        result = lldb.SBCommandReturnObject()
        interpreter.HandleCommand(line, result)
        if not result.Succeeded():
            print(f"wstate: {line}: {(result.GetError() or '').strip()}")

    run('command container add -o -h "Wasm frames, values and memories (wstate)." wasm')
    for name, (function, short, long) in commands().items():
        kind = f"Wasm{name.capitalize()}"
        globals()[kind] = command_class(kind, short, long, function)
        run(f"command script add -o -c {__name__}.{kind} wasm {name}")
    run(f"command script add -o -c {__name__}.WasmBt wasm-bt")
    run(f"target stop-hook add -P {__name__}.AutoLoad")
