//! `--settle`: steps one thread to a place where more is known of it.

use super::Session;
use super::look::Look;
use super::outcome::Outcome;
use super::walking::Native;
use crate::error::Error;
use crate::limits;
use crate::process::live::{CaptureOptions, LiveTarget, ReadSet, Refusal, SettleReport, Settled, Verdict};
use crate::process::objects::Objects;
use crate::process::{Memory, Target, Thread, ThreadId};
use crate::report::counted;
use crate::runtime::all::{FindOptions, Runtimes};
use crate::runtime::{Provider, Reach, Runtime, Why};
use crate::unwind::{Frame, Stack};
use std::time::Instant;

/// Whether stepping can bring one of these frames to a point. The error has the reason for the youngest frame.
pub(super) fn settles(runtime: &dyn Runtime, frames: &[Frame]) -> Result<(), Why> {
    let modules = frames.iter().filter_map(|f| runtime.module_of(f.cursor.address.lookup()));
    let mut answers = modules.map(|module| runtime.settles(module));
    // A function without points returns to its caller, which may have points.
    match answers.next() {
        Some(Err(why)) => answers.find(Result::is_ok).unwrap_or(Err(why)),
        _ => Ok(()),
    }
}

impl Session<'_> {
    /// Steps the chosen thread to the next point at which its operand stack is known, then looks again.
    pub(super) fn settle(
        &self,
        first: LiveTarget,
        objects: &Objects,
        found: &FindOptions,
        set: &mut ReadSet,
    ) -> Result<(Option<Result<Outcome, Error>>, LiveTarget), Error> {
        let began = Instant::now();
        let look = self.look(&first, objects);
        let provider = &mut Runtimes::new(found);
        let tid = match thread_to_settle(&look, provider)? {
            Ok(tid) => tid,
            Err(note) => {
                let mut outcome = look.outcome_of_one_instant(provider);
                if let Ok(Some(outcome)) = &mut outcome {
                    outcome.report.notes.push(note);
                }
                return Ok((outcome.transpose(), first));
            }
        };
        let pid = first.pid().unwrap_or_default();
        let reach = provider.runtime().reach(&first);
        let mut verdict = move |pc: u64, _: &dyn Memory| match reach(pc) {
            Reach::Point | Reach::Returned { .. } | Reach::Shown => Verdict::Point,
            Reach::Inside => Verdict::Step,
            Reach::Outside => Verdict::Outside,
        };
        set.add_reads_of(&first);
        let (most, capture) = (limits::MAX_SETTLE_STEPS, CaptureOptions::default());
        let (target, settled) = LiveTarget::settle_again(pid, tid, most, &capture, set, &mut verdict)?;
        let target = target.stood_also(first.pause());
        let stepped = began.elapsed();
        let note = attach_note(tid, settled);
        let same = first.is_same_code(&target);
        let fresh = &mut Runtimes::new(&found.for_a_question());
        // If the process may have loaded code in between, the modules that it has now are looked for anew.
        let provider = if same { provider } else { fresh };
        let outcome = match target.mappings() == first.mappings() {
            true => self.look(&target, objects).outcome_of_one_instant(provider),
            false => {
                let objects = Objects::load(&target, &self.options.search_paths());
                self.look(&target, &objects).outcome_of_one_instant(provider)
            }
        };
        let outcome = outcome.map_err(|e| if settled.reached() { e } else { e.with_note(&note) });
        let told = |mut outcome: Outcome| {
            outcome.report.notes.push(note);
            outcome.read_within(stepped)
        };
        Ok((outcome.map(|outcome| outcome.map(told)).transpose(), target))
    }
}

/// The thread to step. The inner error is the note that says why no thread is stepped.
fn thread_to_settle(look: &Look<'_>, provider: &mut Runtimes) -> Result<Result<ThreadId, String>, Error> {
    // The modules must be known before stepping, because the points belong to them.
    let native = Native::new(look.target, look.objects);
    let threads = look.threads()?;
    // The stacks are walked whole, although only their first frames are needed here: without the Wasm frames below an
    // import, the modules are found by a lesser route, without their names and signatures, and the report would then
    // show them like that.
    let stacks = look.walk(&threads, &native, provider);
    let runtime = provider.runtime();
    let is_in_wasm =
        |stack: &Stack| stack.frames.first().is_some_and(|f| runtime.module_of(f.cursor.address.raw()).is_some());
    let with_stack = threads.iter().zip(&stacks).filter_map(|(t, s)| Some((*t, s.as_ref()?)));
    let in_wasm: Vec<(&Thread, &Stack)> = with_stack.filter(|(_, stack)| is_in_wasm(stack)).collect();
    Ok(match in_wasm.as_slice() {
        [(thread, stack)] => match settles(runtime, &stack.frames) {
            Ok(()) => Ok(thread.id),
            Err(why) => Err(format!("--settle: thread {} was not stepped: {why}", thread.id.0)),
        },
        [] => {
            Err("no thread that was looked at is stopped in Wasm code: nothing to settle (where one is in native code \
                   that Wasm has called, its operand stack at the call is known without)"
                .to_string())
        }
        several => {
            let ids: Vec<String> = several.iter().take(20).map(|(t, _)| t.id.0.to_string()).collect();
            let (count, ids) = (several.len(), ids.join(", "));
            Err(format!("{count} threads are stopped in Wasm code ({ids}): choose the one to settle with --thread TID"))
        }
    })
}

/// What `attach --settle` did, and what to try if that was not enough.
fn attach_note(tid: ThreadId, settled: SettleReport) -> String {
    let done = stepped(tid, settled.steps);
    let what = match settled.outcome {
        Settled::Point => format!("{done} to a point where its operand stack is known"),
        Settled::Left if settled.steps == 0 => format!(
            "thread {} is in native code now: its operand stack is that at the call, if a state is recorded for it",
            tid.0
        ),
        Settled::Left => format!(
            "{done}; it then left the Wasm code for native code: its operand stack is that at the call, if a state is \
             recorded for it"
        ),
        Settled::Limit => format!(
            "{done}, which is the most that attach takes, and reached no point; try again, since it is somewhere else \
             every time (a loop without calls has no points unless it was compiled with full preemption)"
        ),
        Settled::Signal(number) => broken_off(&done, number),
        Settled::Refused(why) => not_stepped(tid, settled.steps, why),
    };
    format!("--settle: {what}")
}

/// What `snapshot --settle` did, and what to try if that was not enough. `behind_call` says that the point is behind
/// a call.
pub(super) fn snapshot_note(tid: ThreadId, settled: SettleReport, behind_call: bool) -> String {
    let done = stepped(tid, settled.steps);
    let what = match settled.outcome {
        Settled::Point if behind_call => format!(
            "{done} to the place behind a call: its module was not compiled with full preemption, so that there is none \
             in between from which it can go on"
        ),
        Settled::Point => format!("{done} to a point from which it can go on"),
        // This is not expected, since native code is stepped through.
        Settled::Left => format!("{done}; it then left the Wasm code"),
        Settled::Limit => format!(
            "{done}, which is the most that snapshot takes, and reached no point from which it can go on; try again, since \
             it is somewhere else every time (a loop without calls has no such point unless it was compiled with full \
             preemption, and native code that Wasm has called may take long)"
        ),
        Settled::Signal(number) => broken_off(&done, number),
        Settled::Refused(why) => not_stepped(tid, settled.steps, why),
    };
    format!("--settle: {what}")
}

fn stepped(tid: ThreadId, steps: usize) -> String {
    format!("thread {} was stepped {}", tid.0, counted(steps as u64, "instruction"))
}

fn broken_off(done: &str, signal: i32) -> String {
    format!("{done}; then signal {signal} came, which it must handle first: try again")
}

fn not_stepped(tid: ThreadId, steps: usize, why: Refusal) -> String {
    let next = match why {
        Refusal::SystemCall => "try again when that is over",
        Refusal::Stopped => "let it go on (SIGCONT) and try again",
        Refusal::Registers | Refusal::Kernel | Refusal::Gone | Refusal::NoEnd => "try again",
    };
    match steps {
        0 => format!("thread {} could not be stepped: {why}; {next}", tid.0),
        _ => format!("{}, then no further: {why}; {next}", stepped(tid, steps)),
    }
}
