//! Checks that nobody else is in the middle of something in the instance that is replaced.

use crate::process::{Memory, Thread, ThreadId};
use crate::runtime::{GuestFrame, GuestInstance, GuestKind, InstanceParts, Runtime};
use crate::unwind::{Cursor, End, Stack, Trust};
use std::collections::BTreeSet;

/// What is replaced: the youngest `run` frames of a thread, and an instance.
pub(super) struct Own {
    pub thread: ThreadId,
    pub run: usize,
    pub instance: GuestInstance,
}

impl Own {
    /// Checks that nobody else is in the middle of something in the instance. A thread that cannot be looked at may
    /// be, so it is a reason to refuse.
    pub fn alone(
        &self,
        threads: &[&Thread],
        stacks: &[Option<Stack>],
        describe: &dyn Fn(&Cursor) -> Vec<GuestFrame>,
    ) -> Result<(), String> {
        for (thread, stack) in threads.iter().zip(stacks) {
            let tid = thread.id.0;
            let may_be = |why: &str| format!("{why}, so thread {tid} may be in the same instance");
            if let Some(why) = &thread.problem {
                return Err(may_be(why));
            }
            let Some(stack) = stack else { return Err(may_be("its registers are not known")) };
            let replaced = if thread.id == self.thread { self.run } else { 0 };
            for frame in stack.frames.iter().skip(replaced) {
                let guests = describe(&frame.cursor);
                if guests.iter().filter(|g| g.kind == GuestKind::Wasm).any(|g| self.is_in(g)) {
                    return Err(match thread.id == self.thread {
                        true => "an older Wasm frame of the thread, whose call into the host has called back, is in the same \
                                 instance; it would go on with what the image's frames have made of it"
                            .to_string(),
                        false => format!(
                            "thread {tid} is in the same instance; it would go on with a memory and globals that are not its own"
                        ),
                    });
                }
                if matches!(frame.trust, Trust::FramePointer | Trust::Scan) {
                    return Err(may_be("frames before native code without unwind information may be missing"));
                }
            }
            match &stack.end {
                End::Bottom => {}
                End::Lost(why) => return Err(may_be(&format!("its stack cannot be followed to its end ({why})"))),
                End::Cycle | End::Limit(_) => return Err(may_be("its stack has no end that can be found")),
            }
        }
        Ok(())
    }

    fn is_in(&self, frame: &GuestFrame) -> bool {
        match frame.instance {
            Some(address) => address == self.instance.address,
            None => frame.module == self.instance.module,
        }
    }

    /// Checks that no other known instance has the same memory. If one has, one of the two imports it.
    pub fn memory_alone(
        &self,
        runtime: &dyn Runtime,
        memory: &dyn Memory,
        stacks: &[Option<Stack>],
        parts: &InstanceParts,
    ) -> Result<(), String> {
        let Some((base, _)) = parts.memory else { return Ok(()) };
        let frames = stacks.iter().flatten().flat_map(|s| &s.frames).flat_map(|f| runtime.describe(&f.cursor, memory));
        let of_frames = frames.filter_map(|f| Some(GuestInstance { module: f.module, address: f.instance? }));
        let mut others: BTreeSet<GuestInstance> = of_frames.chain(runtime.instances(memory)).collect();
        others.retain(|i| i.address != self.instance.address && runtime.check_instance(*i, memory).is_ok());
        let has_it = |other: &&GuestInstance| {
            runtime.linear_memory(other.module, other.address, 0, memory).is_ok_and(|(theirs, _)| theirs == base)
        };
        match others.iter().find(has_it) {
            Some(other) => Err(format!("the instance at {:#x} has the same memory", other.address)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_in_the_instance_is_a_reason_to_refuse() {
        use crate::unwind::Frame;
        // The address of a frame says what it is: 1 is Wasm in the instance, 2 Wasm in another one, 3 Wasm in an
        // unknown instance of this module, 4 in an unknown instance of another module. All else is native code.
        let describe = |at: &Cursor| {
            let (module, instance) = match at.address.raw() {
                1 => (7, Some(0x1000)),
                2 => (7, Some(0x2000)),
                3 => (7, None),
                4 => (8, None),
                _ => return Vec::new(),
            };
            vec![GuestFrame { instance, ..GuestFrame::unknown(GuestKind::Wasm, module) }]
        };
        let stack = |frames: &[(u64, Trust)], end: End| {
            let frame = |&(pc, trust): &(u64, Trust)| Frame { cursor: crate::unwind::testing::cursor(pc, &[]), trust };
            Some(Stack { frames: frames.iter().map(frame).collect(), end })
        };
        let thread = |id, problem: Option<&str>| Thread {
            id: ThreadId(id),
            name: None,
            registers: crate::arch::Registers::unknown(crate::arch::Machine::X64),
            fs_base: None,
            signal: None,
            problem: problem.map(str::to_string),
        };
        let own = Own { thread: ThreadId(5), run: 2, instance: GuestInstance { module: 7, address: 0x1000 } };
        let alone = |mine: &[u64], other: Option<Stack>, problem: Option<&str>| {
            let mine: Vec<_> = mine.iter().map(|&pc| (pc, Trust::Runtime)).collect();
            let (me, them) = (thread(5, None), thread(6, problem));
            own.alone(&[&me, &them], &[stack(&mine, End::Bottom), other], &describe)
        };
        use Trust::{Cfi, FramePointer, Scan};
        assert_eq!(alone(&[3, 1, 9, 2, 4], stack(&[(9, Cfi), (2, Cfi), (4, Cfi)], End::Bottom), None), Ok(()));
        for mine in [[1, 1, 9, 1], [1, 1, 9, 3]] {
            assert!(alone(&mine, stack(&[], End::Bottom), None).unwrap_err().starts_with("an older Wasm frame"));
        }
        let lost = || End::Lost(crate::unwind::UnwindError::NoCode { address: 9 });
        let rows = [
            (stack(&[(9, Cfi), (1, Cfi)], End::Bottom), None, "thread 6 is in the same instance"),
            (stack(&[(9, Cfi), (3, Cfi)], End::Bottom), None, "thread 6 is in the same instance"),
            (stack(&[], End::Bottom), Some("it sleeps"), "it sleeps, so thread 6 may be"),
            (None, None, "its registers are not known, so thread 6 may be"),
            (stack(&[(9, FramePointer)], End::Bottom), None, "frames before native code"),
            (stack(&[(9, Scan)], End::Bottom), None, "frames before native code"),
            (
                stack(&[(9, Cfi)], lost()),
                None,
                "its stack cannot be followed to its end (no executable memory is mapped at 0x9",
            ),
            (stack(&[(9, Cfi)], End::Cycle), None, "its stack has no end"),
            (stack(&[(9, Cfi)], End::Limit(1)), None, "its stack has no end"),
        ];
        for (other, problem, why) in rows {
            let said = alone(&[1, 1], other, problem).unwrap_err();
            assert!(said.starts_with(why), "{said}");
        }
    }
}
