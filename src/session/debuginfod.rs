//! Fetches the files that an answer needs and that are missing here ([`Options::debuginfod`]).
//!
//! The target is looked at first, so that servers are asked for the files of frames alone. A process runs while they are
//! asked. What was fetched may show further frames, so this is repeated; only then comes the look that is the answer.

use super::look::Look;
use super::{Options, Session, Source};
use crate::error::Error;
use crate::process::Target;
use crate::process::core::CoreTarget;
use crate::process::debuginfod::{Debuginfod, Fetched, Missing, Wanted};
use crate::process::live::{CaptureOptions, LiveTarget};
use crate::process::objects::{LoadedObject, Objects, SearchPaths};
use crate::report::Report;
use crate::runtime::all::Runtimes;
use std::collections::BTreeSet;

impl Session<'_> {
    /// Where this session looks for files. With [`Options::debuginfod`], the first call fetches what is missing.
    pub(super) fn search_paths(&self) -> Result<SearchPaths, Error> {
        let search = self.options.search_paths();
        if !self.options.debuginfod {
            return Ok(search);
        }
        if let Some(fetched) = self.fetched.borrow().clone() {
            return Ok(SearchPaths { fetched, ..search });
        }
        let fetched = self.fetch(&search)?;
        *self.fetched.borrow_mut() = Some(fetched.clone());
        Ok(SearchPaths { fetched, ..search })
    }

    fn fetch(&self, search: &SearchPaths) -> Result<Fetched, Error> {
        let mut server = Debuginfod::of_this_environment();
        let missing = |fetched| self.missing(&SearchPaths { fetched, ..search.clone() });
        server.fetch_all(&*self.progress, missing)?;
        self.progress.finish();
        Ok(server.fetched())
    }

    /// The files that are missing for the frames of the threads that are asked about.
    fn missing(&self, search: &SearchPaths) -> Result<Vec<Missing>, Error> {
        match (self.given, &self.options.source) {
            (Some(target), _) => self.missing_of(target, search),
            (None, Source::Core { core, .. }) => self.missing_of(&CoreTarget::open(core, search)?, search),
            (None, Source::Pid(pid)) => {
                let capture = CaptureOptions::default();
                let target = match self.options.nonblocking {
                    true => LiveTarget::observe(*pid, &capture)?,
                    false => LiveTarget::capture(*pid, &capture)?,
                };
                self.missing_of(&target, search)
            }
        }
    }

    fn missing_of(&self, target: &dyn Target, search: &SearchPaths) -> Result<Vec<Missing>, Error> {
        let objects = Objects::load(target, search);
        let plain = Options { names: false, lines: false, values: false, image: false, ..self.options.clone() };
        let look = Look { options: &plain, ..self.look(target, &objects) };
        let report = match look.outcome(&mut Runtimes::new(&self.found.for_a_question())) {
            Ok(outcome) => outcome.report,
            // The process loads code right now. Nothing is known then of what is needed.
            Err(Error::Changed { .. }) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        Ok(missing_in(&objects, &report, self.options.names))
    }
}

/// The files that frames are in, or whose names are wanted, and that are not here.
fn missing_in(objects: &Objects, report: &Report, names: bool) -> Vec<Missing> {
    let frames = report.threads.iter().flat_map(|t| &t.frames).filter_map(|f| f.pc);
    let starts: BTreeSet<u64> = frames.filter_map(|pc| Some(objects.find(pc.0)?.range.0)).collect();
    let mut out = Vec::new();
    let is_used = |object: &&LoadedObject| {
        let main = objects.executable().is_some_and(|main| std::ptr::eq(main, *object));
        (main || starts.contains(&object.range.0)) && !object.path.starts_with("[vdso]")
    };
    for object in objects.iter().filter(is_used) {
        let Some(id) = &object.build_id else { continue };
        let missing = |wanted| Missing { wanted, id: id.clone(), name: object.name() };
        if object.opened.is_none() {
            out.push(missing(Wanted::Executable));
        }
        let named = object.names().is_some_and(|names| names.debug_info);
        if names && !named {
            out.push(missing(Wanted::Debug));
        }
    }
    out
}
