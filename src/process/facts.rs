//! What a target says of itself as a whole, and of what its threads did.

use crate::arch::{Interrupted, Machine};
use crate::phrases::shell_word;

/// What is known of a target besides its memory, its threads and its files. What is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// The signal that ended the process, or with which it was stopped for the core.
    pub signal: Option<SignalDetails>,
    /// Real user id of the process.
    pub uid: Option<u32>,
    /// Real group id of the process.
    pub gid: Option<u32>,
    /// The command line that the process was started with, as far as it is known.
    pub command_line: Option<CommandLine>,
    /// When the core was written, in seconds since 1970.
    pub written: Option<i64>,
}

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandLine {
    /// The arguments, of which the first is the name of the program. The last one may be cut.
    Arguments {
        /// The arguments.
        list: Vec<String>,
        /// Whether there are more than these, or the last one is longer.
        cut: bool,
    },
    /// The start of the arguments with spaces between them, so that it is not known where each of them begins.
    Text {
        /// The text.
        text: String,
        /// Whether the text fills the place that the core has for it.
        cut: bool,
    },
}

/// What the kernel says about a signal (`siginfo_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignalDetails {
    /// Number of the signal.
    pub number: i32,
    /// Why it was sent (`si_code`).
    pub code: i32,
    /// The address that it is about, for faults of the process of which the kernel knows the address.
    pub address: Option<u64>,
    /// Process id and real user id of the sender, if a process has sent it.
    pub sender: Option<(u32, u32)>,
    /// Number of the system call that was not allowed (SIGSYS).
    pub system_call: Option<u32>,
}

/// What a thread did at the instant of its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activity {
    /// It executed code outside of system calls, or waited for a processor to do so.
    Running,
    /// It waited in a system call.
    Waiting {
        /// Number of the system call, if that is certain.
        system_call: Option<u64>,
    },
    /// It was stopped before, by SIGSTOP or a signal like it.
    Stopped,
}

impl Activity {
    /// What a thread did. `told` is what its registers tell. `ran` says whether it ran or waited for a processor shortly
    /// before; in a core this is not known. `read` reads the target's memory.
    pub(super) fn of(
        machine: Machine,
        told: Interrupted,
        ran: Option<bool>,
        read: impl FnOnce(u64, &mut [u8]) -> bool,
    ) -> Option<Activity> {
        match told {
            // A thread that slept shortly before may have woken up, or it waits for a page of its memory.
            Interrupted::Outside => (ran != Some(false)).then_some(Activity::Running),
            Interrupted::Waiting { .. } => {
                Some(Activity::Waiting { system_call: machine.description().kernel.number_of(told, read) })
            }
            Interrupted::Leaving => (ran == Some(true)).then_some(Activity::Running),
        }
    }
}

/// What the general registers that the kernel writes tell about a thread. `None` if there are too few of them.
pub(super) fn interrupted(machine: Machine, words: &[u8]) -> Option<Interrupted> {
    let description = machine.description();
    description.kernel.interrupted(words, description.pc.word()?)
}

/// Values of `si_code` (asm-generic/siginfo.h).
mod code {
    pub const USER: i32 = 0;
    pub const QUEUE: i32 = -1;
    pub const TKILL: i32 = -6;
    /// `SYS_SECCOMP`, of SIGSYS.
    pub const SECCOMP: i32 = 1;
}

impl SignalDetails {
    /// Reads a `siginfo_t`. `None` if it is too short, or if it is about no signal.
    pub fn parse(info: &[u8]) -> Option<SignalDetails> {
        let word = |at: usize| info.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (number, code) = (word(0)? as i32, word(8)? as i32);
        if number == 0 {
            return None;
        }
        let mut details = SignalDetails { number, code, address: None, sender: None, system_call: None };
        match (number, code) {
            (_, code::USER | code::QUEUE | code::TKILL) => details.sender = word(16).zip(word(20)),
            (libc::SIGSYS, code::SECCOMP) => details.system_call = word(24),
            // The kernel gives no address with other codes, such as that for a general protection fault (SI_KERNEL),
            // and then the bytes are zero.
            _ if details.is_fault() => {
                details.address = word(16).zip(word(20)).map(|(low, high)| u64::from(high) << 32 | u64::from(low));
            }
            _ => {}
        }
        Some(details)
    }

    /// Whether it is about a fault that the kernel gives the address of.
    fn is_fault(&self) -> bool {
        self.fault_in_words().is_some()
    }

    fn fault_in_words(&self) -> Option<&'static str> {
        let list: &[&'static str] = match self.number {
            libc::SIGSEGV => &[
                "address not mapped",
                "access not allowed",
                "bounds check failed",
                "access not allowed by a protection key",
            ],
            libc::SIGBUS => &[
                "address not aligned",
                "no memory behind the address, as beyond the end of a mapped file",
                "hardware error at the address",
                "memory error",
                "memory error found in advance",
            ],
            libc::SIGILL => &[
                "illegal instruction",
                "illegal operand",
                "illegal addressing mode",
                "illegal trap",
                "privileged instruction",
                "privileged register",
                "coprocessor error",
                "internal stack error",
            ],
            libc::SIGFPE => &[
                "integer division by zero",
                "integer overflow",
                "floating point division by zero",
                "floating point overflow",
                "floating point underflow",
                "inexact floating point result",
                "invalid floating point operation",
                "subscript out of range",
            ],
            libc::SIGTRAP => &["breakpoint", "single step", "branch", "hardware breakpoint"],
            _ => &[],
        };
        list.get(usize::try_from(self.code.checked_sub(1)?).ok()?).copied()
    }

    /// Why the signal was sent, in words. `None` if the code is not known.
    pub fn in_words(&self) -> Option<&'static str> {
        match (self.number, self.code) {
            (libc::SIGSYS, code::SECCOMP) => Some("system call not allowed by a seccomp filter"),
            // What the processor calls a general protection fault; the most common reason is an address that no
            // program can have.
            (libc::SIGSEGV, 0x80) => Some("general protection fault, the kernel tells no address"),
            (_, code::USER) => Some("sent by kill"),
            (_, code::QUEUE) => Some("sent by sigqueue"),
            (_, code::TKILL) => Some("sent by tgkill"),
            (_, 0x80) => Some("sent by the kernel"),
            (_, -2) => Some("sent by a timer"),
            (_, -3) => Some("sent by a message queue"),
            (_, -4) => Some("sent by asynchronous I/O"),
            (_, -5) => Some("sent by I/O that is ready"),
            _ => self.fault_in_words(),
        }
    }
}

/// The most bytes of a command line that a core has in NT_PRPSINFO, with the zero byte at the end.
pub(super) const COMMAND_LINE_BYTES: usize = 80;

impl CommandLine {
    /// The arguments in `bytes`, each with a zero byte at its end. `cut` says whether there are more bytes than these.
    pub(super) fn of_arguments(bytes: &[u8], cut: bool) -> Option<CommandLine> {
        let whole = bytes.strip_suffix(&[0]);
        let list = whole.unwrap_or(bytes).split(|&c| c == 0).map(|one| String::from_utf8_lossy(one).into_owned());
        (!bytes.is_empty()).then(|| CommandLine::Arguments { list: list.collect(), cut })
    }

    /// The text of NT_PRPSINFO, up to its zero byte.
    pub(super) fn of_note(field: &[u8]) -> Option<CommandLine> {
        let len = field.iter().position(|&c| c == 0).unwrap_or(field.len());
        let text = String::from_utf8_lossy(&field[..len]).trim_end().to_string();
        (!text.is_empty()).then_some(CommandLine::Text { text, cut: len + 1 >= COMMAND_LINE_BYTES })
    }

    /// Whether there is more of the command line than is known.
    pub fn is_cut(&self) -> bool {
        match self {
            CommandLine::Arguments { cut, .. } | CommandLine::Text { cut, .. } => *cut,
        }
    }

    /// The command line as one line. Arguments that a shell would not read as they are stand in quotes.
    pub fn text(&self) -> String {
        match self {
            CommandLine::Arguments { list, .. } => {
                list.iter().map(|argument| shell_word(argument)).collect::<Vec<_>>().join(" ")
            }
            CommandLine::Text { text, .. } => text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn siginfo(number: i32, code: i32, words: [u32; 3]) -> Vec<u8> {
        let head = [number as u32, 0, code as u32, 0].into_iter().chain(words);
        let mut info: Vec<u8> = head.flat_map(u32::to_le_bytes).collect();
        info.resize(128, 0);
        info
    }

    #[test]
    fn only_a_fault_has_an_address_and_only_a_process_sends() {
        let parse = |number, code| SignalDetails::parse(&siginfo(number, code, [0x10, 1, 59])).unwrap();
        for number in 1..32 {
            for code in (-70..70).chain([0x80, i32::MAX, i32::MIN]) {
                let details = parse(number, code);
                let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
                let has_address = faults.contains(&number) && (1..=8).contains(&code) && details.in_words().is_some();
                assert_eq!(details.address, has_address.then_some(0x1_0000_0010), "{number} {code}");
                assert_eq!(details.sender, [0, -1, -6].contains(&code).then_some((16, 1)), "{number} {code}");
                assert_eq!(details.system_call.is_some(), number == libc::SIGSYS && code == 1);
            }
        }
        assert_eq!(parse(libc::SIGSEGV, 1).in_words(), Some("address not mapped"));
        assert_eq!(parse(libc::SIGSEGV, 0x80).address, None);
        assert_eq!(parse(libc::SIGABRT, -6).in_words(), Some("sent by tgkill"));
    }

    #[test]
    fn a_short_siginfo_tells_what_is_there() {
        let whole = siginfo(libc::SIGSEGV, 1, [0x10, 0, 0]);
        for len in 0..whole.len() {
            let details = SignalDetails::parse(&whole[..len]);
            assert_eq!(details.is_some(), len >= 12);
            assert_eq!(details.and_then(|d| d.address).is_some(), len >= 24, "{len}");
        }
        assert_eq!(SignalDetails::parse(&siginfo(0, 0, [0; 3])), None);
    }

    #[test]
    fn command_lines() {
        let of = |bytes: &[u8]| CommandLine::of_arguments(bytes, false).map(|line| line.text());
        assert_eq!(of(b"app\0--flag\0"), Some("app --flag".to_string()));
        assert_eq!(of(b"app\0\0a b\0it's\0"), Some("app '' 'a b' 'it'\\''s'".to_string()));
        assert_eq!(of(b"changed by itself"), Some("'changed by itself'".to_string()));
        assert_eq!(of(b""), None);
        let note = |text: &[u8]| {
            let mut field = [0; COMMAND_LINE_BYTES];
            field[..text.len()].copy_from_slice(text);
            CommandLine::of_note(&field).map(|line| (line.text(), line.is_cut()))
        };
        assert_eq!(note(b"app --flag "), Some(("app --flag".to_string(), false)));
        assert_eq!(note(&[b'x'; 78]), Some(("x".repeat(78), false)));
        assert_eq!(note(&[b'x'; 79]), Some(("x".repeat(79), true)));
        // No zero byte at all.
        assert_eq!(note(&[b'x'; 80]), Some(("x".repeat(80), true)));
        assert_eq!(note(b"  "), None);
    }
}
