"""Run inside of gdb: prints the frames of all threads as one line of JSON behind FRAMES.

The file named by `$WSTATE_GUIDE` says what gdb cannot unwind, and by thread id with which registers to go on:
  ranges      [[start, end]..]: addresses of Wasm code and its glue
  boundaries  {tid: [registers..]}: of the native frames that called such code
  stubs       {tid: [{"pc", "rsp", "caller": registers}..]}: frames of native code without call frame information
Each thread is walked twice: "alone" by gdb itself, up to where it cannot go, and "led" over that.
"""

import json
import os

import gdb
from gdb.unwinder import Unwinder, register_unwinder

REGISTERS = ["rip", "rsp", "rbp", "rbx", "r12", "r13", "r14", "r15"]
MASK = (1 << 64) - 1

with open(os.environ["WSTATE_GUIDE"]) as file:
    guide = json.load(file)


def in_guest(pc):
    return any(start <= pc < end for start, end in guide["ranges"])


def stub(pc, sp):
    for one in guide["stubs"].get(tid(), []):
        if int(one["pc"], 16) == pc and int(one["rsp"], 16) == sp:
            return one["caller"]
    return None


def tid():
    thread = gdb.selected_thread()
    return str(thread.ptid[1] or thread.ptid[0])


class Id:
    def __init__(self, sp, pc):
        self.sp = sp
        self.pc = pc


class OverGuestCode(Unwinder):
    """From a frame of the guest to the native frame that called it, with the registers in the guide."""

    def __init__(self):
        super().__init__("over guest code")

    def __call__(self, pending):
        pc = int(pending.read_register("rip")) & MASK
        sp = int(pending.read_register("rsp")) & MASK
        if in_guest(pc):
            older = [b for b in guide["boundaries"].get(tid(), []) if int(b["rsp"], 16) > sp]
            if not older:
                return None
            registers = min(older, key=lambda b: int(b["rsp"], 16))
        else:
            registers = stub(pc, sp)
            if registers is None:
                return None
        info = pending.create_unwind_info(Id(gdb.Value(sp), gdb.Value(pc)))
        for name, value in registers.items():
            # Of the type that gdb gives the register.
            kind = pending.read_register(name).type
            signed = int(value, 16)
            signed -= (signed >> 63) << 64
            info.add_saved_register(name, gdb.Value(signed).cast(gdb.lookup_type("long")).cast(kind))
        return info


def walk(alone):
    frames = []
    frame = gdb.newest_frame()
    while frame is not None and len(frames) < 2000:
        pc = frame.pc() & MASK
        guest = in_guest(pc)
        if guest and alone:
            return frames
        kind = frame.type()
        registers = {}
        for name in REGISTERS:
            try:
                registers[name] = hex(int(frame.read_register(name)) & MASK)
            except (gdb.error, ValueError):  # <not saved>
                pass
        frames.append(
            {
                "name": "<signal handler called>" if kind == gdb.SIGTRAMP_FRAME else frame.name(),
                "inlined": kind == gdb.INLINE_FRAME,
                # Not on the stack: gdb infers from call sites in the debug info that there was such a call.
                "tail_call": kind == gdb.TAILCALL_FRAME,
                "guest": guest,
                "pc": hex(pc),
                "registers": registers,
            }
        )
        if alone and stub(pc, int(frame.read_register("rsp")) & MASK) is not None:
            return frames
        try:
            frame = frame.older()
        except gdb.error:
            break
    return frames


def all_threads(alone):
    result = {}
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        result[tid()] = walk(alone)
    return result


alone = all_threads(True)
register_unwinder(None, OverGuestCode(), replace=True)
gdb.invalidate_cached_frames()
print("FRAMES " + json.dumps({"alone": alone, "led": all_threads(False)}))
