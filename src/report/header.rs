//! Text about the target as a whole, about what threads did, and about the files that are loaded. It holds names of the target
//! as they are: whoever prints it makes them safe for a terminal.

use super::facts::{Fits, NativeObject, SignalDetails, ThreadState, ThreadStateKind};
use super::{Target, TargetKind, Thread, counted};
use crate::limits;
use std::fmt::Write;

/// Signals that stop a process and do not end it.
const STOPPING: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Signals for which the kernel writes a core (signal(7)). A thread that has one did nothing else any more.
const FATAL: [i32; 10] = [
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGSYS,
];

/// The name of a signal, or its number if nix knows no name for it.
pub(super) fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(s) => s.as_str().to_string(),
        Err(_) => format!("signal {number}"),
    }
}

/// The signal that a core was written at: `signal SIGSEGV (address not mapped) at 0x0000000000000010`. Whether the process
/// ended then is not said, because the core does not tell: a debugger stops a process at each signal, and its gcore writes
/// that signal as the kernel writes the one of a death.
pub(super) fn signal_of(target: &Target) -> Option<String> {
    let signal = target.signal?;
    if STOPPING.contains(&signal) {
        return Some(format!("stopped by {}", signal_name(signal)));
    }
    let details = target.facts.signal_details.as_ref().map(|details| details_text(details, target.pid));
    let name = signal_name(signal);
    let noun = if name.starts_with("signal ") { "" } else { "signal " };
    Some(format!("{noun}{name}{}", details.unwrap_or_default()))
}

fn details_text(details: &SignalDetails, pid: Option<u32>) -> String {
    let mut reason = match (&details.meaning, details.code) {
        (Some(meaning), _) => meaning.clone(),
        (None, Some(code)) => format!("code {code}"),
        (None, None) => "reason not known".to_string(),
    };
    if let Some(name) = &details.system_call {
        let _ = write!(reason, ": {}", name);
    }
    match (details.sender_pid, details.sender_uid) {
        (Some(sender), _) if Some(sender) == pid => reason += " by itself",
        (Some(sender), Some(uid)) => {
            let _ = write!(reason, " by process {sender} of user {uid}");
        }
        (None, Some(_)) => reason += " by a process outside of its pid namespace",
        _ => {}
    }
    match details.address {
        Some(address) => format!(" ({reason}) at {:#018x}", address.0),
        None => format!(" ({reason})"),
    }
}

/// Lines below the first one of a report: who the process was, and which file its names come from.
pub(super) fn lines(target: &Target, verbose: bool) -> Vec<String> {
    let facts = &target.facts;
    let mut lines = Vec::new();
    let mut who = Vec::new();
    who.extend(facts.uid.map(|uid| match facts.gid {
        Some(gid) if gid != uid => format!("user {uid}, group {gid}"),
        _ => format!("user {uid}"),
    }));
    who.extend(facts.command_line.as_ref().map(|line| {
        let cut = if facts.command_line_cut { " (may be longer)" } else { "" };
        format!("command line {}{cut}", shortened(line))
    }));
    if !who.is_empty() {
        lines.push(who.join(", "));
    }
    let core = target.kind == TargetKind::Core;
    if let Some(object) = facts.executable_file.as_ref().filter(|_| core || verbose) {
        lines.extend(names_from(object, core));
    }
    if let Some(written) = facts.written.as_ref().filter(|_| verbose) {
        lines.push(format!("the core file was last changed at {}", written));
    }
    lines
}

/// The line about the file that the names of the executable come from. That there is none is said by a note.
fn names_from(object: &NativeObject, core: bool) -> Option<String> {
    let mut line = format!("names from {}", object.file.as_ref()?);
    if let Some(id) = &object.build_id {
        let _ = write!(line, ", build id {}", id);
    }
    line += match object.fits? {
        Fits::BuildId if core => " as in the core",
        Fits::BuildId => " as in memory",
        Fits::Code => ", compared with the code in memory",
        Fits::Kernel => "",
        Fits::NotCompared => ", which cannot be compared with what ran",
        Fits::NotKnown => return None,
    };
    if let Some(debug) = &object.debug_file {
        let _ = write!(line, ", and {}", debug);
    }
    Some(line)
}

/// What a thread did, for the line that begins it. Of a thread with a signal for which the
/// kernel writes cores, that signal is told instead.
pub(super) fn state_of(thread: &Thread) -> Option<String> {
    let state = thread.state.as_ref()?;
    let is_fatal = thread.signal.is_some_and(|s| FATAL.contains(&s));
    (!is_fatal && state.kind != ThreadStateKind::NotKnown).then(|| state_text(state))
}

fn state_text(state: &ThreadState) -> String {
    match (state.kind, &state.system_call) {
        (ThreadStateKind::Idle, Some(call)) if call.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("idle in system call {}", call)
        }
        // The kernel's name for a call that goes on says nothing of what the thread waits for.
        (ThreadStateKind::Idle, Some(call)) if call == "restart_syscall" => {
            format!("idle in a call that was interrupted before ({call})")
        }
        (ThreadStateKind::Idle, Some(call)) => format!("idle in {}", call),
        (ThreadStateKind::Idle, None) => "idle in a system call".to_string(),
        (kind, _) => kind.to_string(),
    }
}

/// The list of files that a target of this kind has loaded, as `wstate modules --native` prints it.
pub(super) fn objects_lines(objects: &[NativeObject], kind: TargetKind) -> Vec<String> {
    let mut out = vec![format!("{} (executables and libraries)", counted(objects.len() as u64, "native object"))];
    let range = |o: &NativeObject| match (o.start, o.end) {
        (Some(start), Some(end)) => format!("{start}-{end}"),
        _ => "?".to_string(),
    };
    let width = objects.iter().map(|o| range(o).len()).max().unwrap_or(0);
    for object in objects {
        let deleted = if object.deleted { ", deleted or replaced since" } else { "" };
        out.push(format!("  {:<width$}  {}{deleted}", range(object), object.path));
        let mut facts = vec![match &object.build_id {
            Some(id) => format!("build id {}", id),
            None => "no build id".to_string(),
        }];
        let found = match (&object.file, object.from_memory) {
            (Some(file), _) if *file == object.path => Some("found".to_string()),
            (Some(file), _) => Some(format!("found as {}", file)),
            (None, true) if object.path.starts_with('[') => None,
            (None, true) => Some("no file, read from memory".to_string()),
            (None, false) => Some("no file".to_string()),
        };
        let fits = object.fits.map(|fits| match fits {
            Fits::BuildId => "same build id",
            Fits::Code => "same code",
            Fits::Kernel => "the file that is mapped",
            Fits::NotCompared => "not compared",
            Fits::NotKnown => "not known whether it fits",
        });
        facts.extend(found.map(|found| fits.map_or(found.clone(), |fits| format!("{found} ({fits})"))));
        facts.push(
            match (object.symbols, object.debug_info) {
                (_, Some(true)) => "debug information",
                (Some(true), _) => "symbols, no debug information",
                (Some(false), _) => "exported symbols only",
                (None, _) => "no names",
            }
            .to_string(),
        );
        facts.extend(object.debug_file.as_ref().map(|file| format!("debug file {}", file)));
        out.push(format!("    {}", facts.join(", ")));
        if let Some(problem) = &object.problem {
            let fetch = match kind {
                _ if object.build_id.is_none() || object.file.is_some() => "",
                // The sandbox in which cores are read has no network.
                TargetKind::Core => ", or, if you trust the core, fetch it with --debuginfod --no-sandbox",
                _ => ", or fetch it with --debuginfod",
            };
            out.push(format!("    {}{fetch}", problem));
        }
    }
    out
}

/// The start of a command line. JSON has the whole one.
fn shortened(line: &str) -> String {
    match line.char_indices().nth(limits::MAX_TEXT_NAME) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_string(),
    }
}
