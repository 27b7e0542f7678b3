//! What a report says of its target as a whole, of its files, and of what threads did.

use super::{Hex, json};
use crate::arch::Machine;
pub use crate::process::objects::Fits;
use crate::process::{self, elf, objects::LoadedObject};
use serde::{Deserialize, Serialize};

/// What is known of a process besides its threads and modules. What is not known is missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct TargetFacts {
    /// Why the process got the signal that is in `signal` (cores).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal_details: Option<SignalDetails>,
    /// Real user id of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Real group id of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The command line as one line. Arguments with spaces are in quotes, unless it is not known where an argument begins:
    /// many cores have only the start of the line, with a space after each argument.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
    /// Whether the command line may be longer. Missing where it is not so.
    #[serde(default, deserialize_with = "json::or_default", skip_serializing_if = "std::ops::Not::not")]
    pub command_line_cut: bool,
    /// When the core file was last changed: date and time in UTC (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<String>,
    /// The main executable, and the file that is used for its names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable_file: Option<NativeObject>,
}

/// What the kernel said about a signal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct SignalDetails {
    /// Why it was sent, as a number (`si_code`).
    pub code: Option<i32>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// The address that a fault is about, if the kernel knew it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Hex>,
    /// Process id of the sender, if a process has sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_pid: Option<u32>,
    /// Real user id of the sender.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_uid: Option<u32>,
    /// Name of the system call that was not allowed, or its number if it has no name here (SIGSYS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_call: Option<String>,
}

words! {
    /// Whether a thread ran.
    ThreadStateKind {
        /// It executed code outside of system calls, or waited for a processor.
        Running = "running",
        /// It waited in a system call.
        Idle = "idle",
        /// It was stopped before, by SIGSTOP or a signal like it.
        Stopped = "stopped",
    }
}

/// What a thread did at the instant of its registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ThreadState {
    /// Whether it ran.
    pub kind: ThreadStateKind,
    /// Name of the system call in which it was idle, or its number if it has no name here. `restart_syscall` goes on with a
    /// call that was interrupted, and does not say with which one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_call: Option<String>,
}

/// An executable or library that the target has loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NativeObject {
    /// Path of the file as the target names it.
    #[serde(default, deserialize_with = "json::or_default")]
    pub path: String,
    /// First address of it in the target.
    pub start: Option<Hex>,
    /// Address one past its last.
    pub end: Option<Hex>,
    /// Build id, in hexadecimal.
    pub build_id: Option<String>,
    /// Path at which the file was opened; null if it was not found, or is another one than was loaded.
    pub file: Option<String>,
    /// What tells that this file is the one that was loaded.
    pub fits: Option<Fits>,
    /// Whether a part of it was put together from the target's memory, because there is no such file.
    #[serde(default, deserialize_with = "json::or_default", skip_serializing_if = "std::ops::Not::not")]
    pub from_memory: bool,
    /// Whether the file was deleted or replaced while it was loaded. Missing where it was not, or where that is not known.
    #[serde(default, deserialize_with = "json::or_default", skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// Whether there is a symbol table, in this file or in its debug file; null if there is neither.
    pub symbols: Option<bool>,
    /// Whether there is debug information, in this file or in its debug file; null if there is neither.
    pub debug_info: Option<bool>,
    /// Path of the separate debug file that was found.
    pub debug_file: Option<String>,
    /// What is missing or wrong, and what to try.
    pub problem: Option<String>,
}

/// The name of a system call, or its number.
fn system_call(machine: Machine, number: u64) -> String {
    let name = machine.description().kernel.system_call_name;
    name(number).map_or_else(|| number.to_string(), str::to_string)
}

impl TargetFacts {
    /// The report's form of what is known of a target.
    pub(crate) fn new(
        facts: process::facts::Facts,
        machine: Machine,
        executable: Option<&LoadedObject>,
    ) -> TargetFacts {
        TargetFacts {
            signal_details: facts.signal.map(|signal| SignalDetails::new(&signal, machine)),
            uid: facts.uid,
            gid: facts.gid,
            command_line_cut: facts.command_line.as_ref().is_some_and(|line| line.is_cut()),
            command_line: facts.command_line.map(|line| line.text()),
            written: facts.written.and_then(utc),
            executable_file: executable.map(NativeObject::new),
        }
    }
}

impl SignalDetails {
    fn new(signal: &process::facts::SignalDetails, machine: Machine) -> SignalDetails {
        SignalDetails {
            code: Some(signal.code),
            meaning: signal.in_words().map(str::to_string),
            address: signal.address.map(Hex),
            // A sender outside of the process's pid namespace has no id there.
            sender_pid: signal.sender.map(|(pid, _)| pid).filter(|pid| *pid != 0),
            sender_uid: signal.sender.map(|(_, uid)| uid),
            system_call: signal.system_call.map(|number| system_call(machine, number.into())),
        }
    }
}

impl ThreadState {
    /// The report's form of what a thread did.
    pub(crate) fn new(activity: process::facts::Activity, machine: Machine) -> ThreadState {
        use process::facts::Activity;
        let of = |kind| ThreadState { kind, system_call: None };
        match activity {
            Activity::Running => of(ThreadStateKind::Running),
            Activity::Stopped => of(ThreadStateKind::Stopped),
            Activity::Waiting { system_call: number } => ThreadState {
                kind: ThreadStateKind::Idle,
                system_call: number.map(|number| system_call(machine, number)),
            },
        }
    }
}

impl NativeObject {
    /// The report's form of a loaded file.
    pub(crate) fn new(object: &LoadedObject) -> NativeObject {
        use crate::process::objects::ObjectData;
        let names = object.names();
        let path = object.path.display().to_string();
        let (path, deleted) = match path.strip_suffix(" (deleted)") {
            Some(path) => (path.to_string(), true),
            None => (path, false),
        };
        NativeObject {
            path,
            start: Some(Hex(object.range.0)),
            end: Some(Hex(object.range.1)),
            build_id: object.build_id.as_deref().map(elf::hex),
            file: object.opened.as_ref().map(|p| p.display().to_string()),
            fits: object.fits,
            from_memory: matches!(object.data, Some(ObjectData::Memory(_))),
            deleted,
            symbols: names.map(|n| n.symbols),
            debug_info: names.map(|n| n.debug_info),
            debug_file: object.debug.as_ref().map(|(path, _)| path.display().to_string()),
            problem: object.problem.as_ref().map(|p| p.what.clone()),
        }
    }
}

/// Seconds since 1970 as a date and time in UTC. `None` if the year has not four digits.
fn utc(seconds: i64) -> Option<String> {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's `civil_from_days`: years begin with March, so that the leap day is the last one.
    let days = days.checked_add(719_468)?;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era.checked_add(era.checked_mul(400)?)? + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    (0..10_000).contains(&year).then(|| format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, Some("1970-01-01T00:00:00Z")),
            (951_782_399, Some("2000-02-28T23:59:59Z")),
            (951_782_400, Some("2000-02-29T00:00:00Z")),
            (1_709_251_199, Some("2024-02-29T23:59:59Z")),
            (4_107_542_400, Some("2100-03-01T00:00:00Z")),
            (-1, Some("1969-12-31T23:59:59Z")),
            (253_402_300_799, Some("9999-12-31T23:59:59Z")),
            (253_402_300_800, None),
            (i64::MAX, None),
            (i64::MIN, None),
        ] {
            assert_eq!(utc(seconds).as_deref(), expected, "{seconds}");
        }
    }
}
