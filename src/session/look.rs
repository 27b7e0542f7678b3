//! One look at a target: the target as it is at one moment, and what is asked about it.

use super::Options;
use super::image::image_of;
use super::outcome::Outcome;
use super::proof;
use super::stepping::Stepping;
use super::view::View;
use super::waiting;
use super::walking::{Native, walk_all};
use crate::error::Error;
use crate::limits;
use crate::process::file_kind::{self, Door};
use crate::process::files::{self, FileLocation};
use crate::process::objects::Objects;
use crate::process::{Target, Thread, unpack};
use crate::progress::Progress;
use crate::report::timing::{Timing, milliseconds};
use crate::runtime::all::Runtimes;
use crate::runtime::{Provider, Scene, Why};
use crate::symbolize::native::NativeSymbolizer;
use crate::unwind::Stack;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

/// A target whose files are loaded, and a question about it.
///
/// A [`Session`](super::Session) makes one for each of its questions. Whoever keeps a target and its loaded files from
/// one question to the next, as a debugger does while the target stands, makes its own.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    /// The target. Of [`Options::source`] only the name is used, which the report calls the target.
    pub target: &'a dyn Target,
    /// The loaded files of the target.
    pub objects: &'a Objects,
    /// What is asked.
    pub options: &'a Options,
    /// Hears of the progress of work that may take long.
    pub progress: &'a dyn Progress,
}

impl<'a> Look<'a> {
    /// Makes a report of the target. What `provider` found before is not looked for again.
    ///
    /// # Errors
    /// There is no such thread, there is no image where one is wanted, or what was read is not of one instant.
    pub fn outcome(&self, provider: &mut Runtimes) -> Result<Outcome, Error> {
        self.outcome_of_one_instant(provider)?.ok_or_else(proof::gone)
    }

    pub(super) fn scene(&self) -> Scene<'a> {
        Scene { target: self.target, objects: self.objects, progress: self.progress }
    }

    /// The threads that are asked about.
    pub(super) fn threads(&self) -> Result<Vec<&'a Thread>, Error> {
        let (target, options) = (self.target, self.options);
        let wanted = |t: &&Thread| options.threads.is_empty() || options.threads.contains(&t.id.0);
        let mut threads: Vec<&Thread> = target.threads().iter().filter(wanted).take(limits::MAX_THREADS).collect();
        if let Some(missing) = options.threads.iter().find(|id| !threads.iter().any(|t| t.id.0 == **id)) {
            let ids: Vec<String> = target.threads().iter().take(20).map(|t| t.id.0.to_string()).collect();
            let what = format!("{} has no thread {missing}; its threads: {}", target.description(), ids.join(", "));
            return Err(Error::NoSuchThread { tid: *missing, what });
        }
        if options.first_thread_only {
            threads.truncate(1);
        }
        Ok(threads)
    }

    /// Walks threads as far as their stacks go.
    pub(super) fn walk(&self, threads: &[&Thread], native: &Native<'_>, provider: &mut Runtimes) -> Vec<Option<Stack>> {
        walk_all(&self.scene(), threads, native, provider, limits::MAX_FRAMES)
    }

    /// The same as `outcome`, but returns `None` if what was read of the target is not of one instant and the target
    /// can be looked at again.
    pub(super) fn outcome_of_one_instant(&self, provider: &mut Runtimes) -> Result<Option<Outcome>, Error> {
        let (target, objects, options) = (self.target, self.objects, self.options);
        let began = Instant::now();
        let native = Native::naming(target, objects, options.lines);
        let threads = self.threads()?;
        let (limit, walked) = frames_of(options.limit);
        let stacks = walk_all(&self.scene(), &threads, &native, provider, walked);
        let mut refused = !provider.match_files(target);
        self.progress.finish();
        let walked = began.elapsed();

        let runtime = provider.runtime();
        let symbolizer = &*native.symbols;
        let view = View { target, objects, native: &native, runtime, symbolizer, options, limit };
        // What the report needs of the target is read before the proof. The names of native frames take longer, and come
        // from files.
        let guests: Vec<_> = stacks.iter().map(|stack| view.guests(stack.as_ref())).collect();
        if !target.prove() {
            return Ok(None);
        }
        let mut report = view.head();
        for ((thread, stack), guests) in threads.iter().zip(&stacks).zip(&guests) {
            report.threads.push(view.thread(thread, stack.as_ref(), guests));
        }
        report.notes.extend(waiting::notes(target, &native, runtime, &threads, &stacks));
        let (classic, image) = if options.image { image_of(&view, &threads, &stacks)? } else { (None, None) };
        let (notes, left_out) = self.notes_on_files(symbolizer, &stacks);
        refused |= left_out;
        report.notes.extend(notes);
        report.timing = options.timing.then(|| Timing {
            walking_ms: milliseconds(walked),
            symbolizing_ms: milliseconds(began.elapsed() - walked),
            ..Timing::default()
        });
        // Stepping helps where the youngest frame of a thread is between two points, not where an older frame is.
        let youngest = report.threads.iter().filter_map(|t| t.frames.first());
        let between = youngest.filter_map(|f| f.stack_why.as_ref()).any(|why| *why == Why::BetweenPoints);
        let hint = (between && Stepping::of(target, options) == Stepping::Possible)
            .then_some("--settle steps a thread on to where its operand stack is known");
        Ok(Some(Outcome { report, classic, image, refused, gone: false, hint }))
    }

    /// Notes about files that were not used or may be the wrong ones, and whether the answer is not whole because of
    /// them.
    fn notes_on_files(&self, symbolizer: &NativeSymbolizer<'_>, stacks: &[Option<Stack>]) -> (Vec<String>, bool) {
        let mut notes = Vec::new();
        let executable = self.options.executable().and_then(|path| executable_refused(path, self.objects));
        let mut refused = executable.is_some();
        notes.extend(executable.flatten());
        let mut left_out = symbolizer.notes();
        left_out.extend(unpack::notes());
        refused |= !left_out.is_empty();
        notes.extend(left_out);
        notes.extend(self.objects.notes().iter().cloned());
        refused |= self.objects.is_unasked();
        let silent = files::helper::notes();
        refused |= !silent.is_empty();
        notes.extend(silent);
        let addresses = stacks.iter().flatten().flat_map(|s| &s.frames).map(|f| f.cursor.address.lookup());
        let doubts: BTreeSet<_> = addresses.filter_map(|a| self.objects.doubt(a)).map(|doubt| &doubt.note).collect();
        refused |= !doubts.is_empty();
        notes.extend(doubts.into_iter().flatten().cloned());
        (notes, refused)
    }
}

/// `Some` if the executable that the user named is not used. The note inside says why; it is `None` if a problem in
/// `objects` says so already.
fn executable_refused(path: &Path, objects: &Objects) -> Option<Option<String>> {
    if objects.iter().any(|o| o.opened.as_deref() == Some(path)) {
        return None;
    }
    let what = format!("the executable {}", path.display());
    Some(match files::open(&FileLocation::user(path)) {
        Err(e) => Some(format!("{what} is not used, because it cannot be read: {e}; name another file, or none")),
        Ok(_) => {
            let told = objects.iter().filter_map(|o| o.problem.as_ref()).any(|p| p.file == path);
            let why = || match file_kind::refusal_of_file(path, Door::Executable) {
                Ok(Some(why)) => format!("{what} is not used: {why}"),
                _ => format!("{what} does not fit and is not used: it is not the file that was loaded"),
            };
            (!told).then(why)
        }
    })
}

/// How many frames of one thread are shown, and how many are walked. Modules are found along stacks, so a short list
/// still takes a long walk.
pub(super) fn frames_of(limit: Option<usize>) -> (usize, usize) {
    let shown = limit.unwrap_or(limits::MAX_FRAMES).min(limits::MAX_FRAMES);
    (shown, shown.max(limits::MIN_WALK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::objects::{LoadedObject, Problem};

    /// That the name of another file begins with that of the executable says nothing of the executable.
    #[test]
    fn a_problem_of_another_file_is_none_of_the_executable() {
        let directory = tempfile::tempdir().unwrap();
        let executable = directory.path().join("app");
        std::fs::write(&executable, [0xff; 8]).unwrap();
        let objects = |file: &Path| {
            let problem = Problem { file: file.to_path_buf(), what: format!("{} cannot be opened", file.display()) };
            Objects::from_parts(vec![LoadedObject {
                path: file.to_path_buf(),
                opened: None,
                bias: 0,
                range: (0, 0),
                build_id: None,
                data: None,
                fits: None,
                debug: None,
                unpacked: Default::default(),
                excerpts: Default::default(),
                problem: Some(problem),
            }])
        };
        let beside = directory.path().join("app-libs/libx.so");
        let refused = executable_refused(&executable, &objects(&beside)).flatten().expect("a note");
        assert!(refused.contains("does not fit and is not used"), "{refused}");
        std::fs::write(&executable, "no program").unwrap();
        let refused = executable_refused(&executable, &objects(&beside)).flatten().expect("a note");
        assert!(
            refused.ends_with(
                "app is not used: it is text, not an executable; name the executable that wrote the core, or none"
            ),
            "{refused}"
        );
        assert_eq!(executable_refused(&executable, &objects(&executable)), Some(None));
    }
}
