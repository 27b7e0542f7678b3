//! What the Linux kernel writes about threads, and for them, on any machine.

use super::registers::Reg;

/// How the kernel writes the registers of a thread, in cores and for tracers.
#[derive(Debug)]
#[non_exhaustive]
pub struct KernelLayout {
    /// Size of the record of a thread in a core (`struct elf_prstatus`), in bytes.
    pub prstatus_size: usize,
    /// Offset of the general registers in that record, in bytes.
    pub prstatus_registers: usize,
    /// Number of 64-bit words of the general registers (`struct user_regs_struct`).
    pub general_words: usize,
    /// The word of the general registers that holds the thread pointer, if it is among them.
    pub thread_pointer: Option<usize>,
    /// The word of the general registers that holds the number of the system call that the thread is in. It is
    /// negative if the thread is in none.
    pub system_call: usize,
    /// The word of the general registers that holds the result of a system call.
    pub result: usize,
    /// The word of the general registers in which the system call instruction leaves the address behind itself, on
    /// processors that do so.
    pub return_address: usize,
    /// The name of the system call with this number.
    pub system_call_name: fn(u64) -> Option<&'static str>,
    /// Bytes at the start of the floating point state (NT_FPREGSET) that hold all vector registers which have a slot.
    pub vectors_size: usize,
    /// Type of the note with the extended floating point state, which begins like NT_FPREGSET.
    pub extended_note: u32,
    /// What the kernel leaves on the stack for a signal handler.
    pub signal: SignalFrame,
}

/// What the general registers of a thread that does not run tell about what it did before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// The thread was in no system call.
    Outside,
    /// It waited in a system call, which had no result yet.
    Waiting {
        /// Number of the call.
        number: u64,
        /// Address of the next instruction.
        pc: u64,
        /// Whether the registers tell that the call was made by the machine's own system call instruction. Other
        /// instructions count the calls in another way.
        by_instruction: bool,
    },
    /// It was on its way out of a system call, which had a result. It may have waited in it until it was stopped: a
    /// write that is interrupted returns the number of bytes that are written so far.
    Leaving,
}

/// Results of system calls that were interrupted and that the kernel will make anew: ERESTARTSYS, ERESTARTNOINTR,
/// ERESTARTNOHAND and ERESTART_RESTARTBLOCK. Only tracers and cores see them.
const RESTARTS: [i64; 4] = [-512, -513, -514, -516];

/// The result of a system call that was interrupted and that the kernel does not make anew (epoll_wait, semop).
const EINTR: i64 = -4;

impl KernelLayout {
    /// What the general registers of a thread tell about what it did. `pc` is the word of the address of the next
    /// instruction. `None` if `words` are too few.
    pub fn interrupted(&self, words: &[u8], pc: usize) -> Option<Interrupted> {
        let word = |i: usize| words.get(i * 8..i * 8 + 8)?.try_into().ok().map(u64::from_le_bytes);
        let (number, result) = (word(self.system_call)?, word(self.result)? as i64);
        let (pc, return_address) = (word(pc)?, word(self.return_address)?);
        Some(match (number as i64) < 0 {
            true => Interrupted::Outside,
            false if RESTARTS.contains(&result) || result == EINTR => {
                Interrupted::Waiting { number, pc, by_instruction: return_address == pc }
            }
            false => Interrupted::Leaving,
        })
    }

    /// The number of the system call in which a thread waits. `None` if it is not certain how the call was made, and
    /// therefore what the number means. `read` reads the target's memory.
    pub fn number_of(&self, waiting: Interrupted, read: impl FnOnce(u64, &mut [u8]) -> bool) -> Option<u64> {
        let Interrupted::Waiting { number, pc, by_instruction } = waiting else { return None };
        if by_instruction {
            return Some(number);
        }
        // The processor may leave its registers as they are (FRED), and then the code tells.
        let mut code = vec![0; self.signal.system_call.len()];
        let at = pc.checked_sub(code.len() as u64)?;
        (read(at, &mut code) && code == self.signal.system_call).then_some(number)
    }
}

/// The frame that the kernel makes below a signal handler.
#[derive(Debug)]
#[non_exhaustive]
pub struct SignalFrame {
    /// The code that a handler returns to makes the system call `rt_sigreturn`. These are its forms, each with its
    /// system call instruction at the end.
    pub returns: &'static [&'static [u8]],
    /// The system call instruction.
    pub system_call: &'static [u8],
    /// Byte offsets of registers in `struct ucontext`. The stack pointer points to that struct when a handler has
    /// returned.
    pub registers: &'static [(Reg, u64)],
    /// Offset of the pointer to the floating point state in `struct ucontext`. The pointer is null if that state was not
    /// saved.
    pub vectors: u64,
    /// Offset of a word in `struct ucontext` whose bits tell such a struct from other memory, and whether they do.
    pub mark: (u64, fn(u64) -> bool),
}

impl SignalFrame {
    /// The length of the longest code that a handler returns to, in bytes.
    pub fn longest_return(&self) -> usize {
        self.returns.iter().map(|code| code.len()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Machine;

    /// General registers with these words: number of the system call, result, address that the instruction left, pc.
    fn words(call: i64, result: i64, return_address: u64, pc: u64) -> Vec<u8> {
        let description = Machine::X64.description();
        let kernel = description.kernel;
        let mut words = vec![0; kernel.general_words];
        words[kernel.system_call] = call as u64;
        words[kernel.result] = result as u64;
        words[kernel.return_address] = return_address;
        words[description.pc.word().unwrap()] = pc;
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn interrupted(words: &[u8]) -> Option<Interrupted> {
        let description = Machine::X64.description();
        description.kernel.interrupted(words, description.pc.word().unwrap())
    }

    #[test]
    fn only_a_call_without_a_result_is_waited_in() {
        for result in [0, -38, -512, -4, 202] {
            assert_eq!(interrupted(&words(-1, result, 0x1000, 0x1000)), Some(Interrupted::Outside));
        }
        for result in [-4, -512, -513, -514, -516] {
            let waiting = Interrupted::Waiting { number: 202, pc: 0x1000, by_instruction: true };
            assert_eq!(interrupted(&words(202, result, 0x1000, 0x1000)), Some(waiting));
        }
        // A part that was written, an error, the number itself before a call is made anew, and no result yet.
        for result in [17, 0, -11, 202, -38, -515, -517, i64::MIN] {
            assert_eq!(interrupted(&words(202, result, 0x1000, 0x1000)), Some(Interrupted::Leaving));
        }
        // The last of the words that count is the pc.
        let all = words(202, -512, 0x1000, 0x1000);
        for len in 0..17 * 8 {
            assert_eq!(interrupted(&all[..len]), None, "{len}");
        }
        assert_eq!(interrupted(&all[..17 * 8]), interrupted(&all));
    }

    #[test]
    fn a_number_counts_only_where_the_machines_own_instruction_made_the_call() {
        let kernel = Machine::X64.description().kernel;
        let own = interrupted(&words(7, -512, 0x1000, 0x1000)).unwrap();
        assert_eq!(kernel.number_of(own, |_, _| panic!("the registers tell it")), Some(7));
        for (code, expected) in [(Some([0x0f, 0x05]), Some(7)), (Some([0xcd, 0x80]), None), (None, None)] {
            let read = |at: u64, buf: &mut [u8]| {
                assert_eq!(at, 0xffe);
                code.inspect(|code| buf.copy_from_slice(code)).is_some()
            };
            let other = interrupted(&words(7, -512, 0, 0x1000)).unwrap();
            assert_eq!(kernel.number_of(other, read), expected);
        }
        let at_zero = interrupted(&words(7, -512, 1, 0)).unwrap();
        assert_eq!(kernel.number_of(at_zero, |_, _| true), None);
        assert_eq!(kernel.number_of(Interrupted::Leaving, |_, _| true), None);
    }
}
