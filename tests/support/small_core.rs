//! A real core of the few pages that an analysis reads, so that thousands of cases fit into seconds.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use wstate::process::core::CoreTarget;
use wstate::process::testing::CoreBuilder;
use wstate::process::{Mapping, Memory, MemoryError, Target, Thread};
use wstate::report::{FrameKind, Report};
use wstate::session::{Options, Route, Session, Source};

/// Bytes of a page.
pub const PAGE: u64 = 0x1000;

/// The plain question about a core that is in memory already.
pub fn question() -> Options {
    Options::new(Source::Core { core: "core.test".into(), executable: None })
}

/// Number of Wasm frames in all threads.
pub fn wasm_frames(report: &Report) -> usize {
    report.threads.iter().flat_map(|t| &t.frames).filter(|f| f.kind == FrameKind::Wasm).count()
}

/// A core whose readings somebody else hears of first, and may refuse.
pub struct Overheard<'a> {
    /// What is read.
    pub core: &'a CoreTarget,
    /// Threads that it lists.
    pub threads: &'a [Thread],
    /// Asked with address, length and whether all of it is needed; `false`: the reading fails.
    pub allows: &'a dyn Fn(u64, usize, bool) -> bool,
}

impl Memory for Overheard<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        if !(self.allows)(address, buf.len(), true) {
            return Err(MemoryError::Os { address, len: buf.len(), errno: "Input/output error".into() });
        }
        self.core.read(address, buf)
    }

    fn read_some(&self, address: u64, buf: &mut [u8]) -> usize {
        if (self.allows)(address, buf.len(), false) { self.core.read_some(address, buf) } else { 0 }
    }
}

impl Target for Overheard<'_> {
    fn machine(&self) -> wstate::arch::Machine {
        self.core.machine()
    }
    fn description(&self) -> String {
        self.core.description()
    }
    fn threads(&self) -> &[Thread] {
        self.threads
    }
    fn mappings(&self) -> &[Mapping] {
        self.core.mappings()
    }
    fn executable(&self) -> Option<&Path> {
        self.core.executable()
    }
    fn pid(&self) -> Option<u32> {
        self.core.pid()
    }
    fn auxv(&self, key: u64) -> Option<u64> {
        self.core.auxv(key)
    }
    fn file_candidates(&self, mapping: &Mapping) -> Vec<wstate::process::files::FileLocation> {
        // Without the files their images would be put together from memory.
        self.core.file_candidates(mapping)
    }
    fn notes(&self) -> &[String] {
        self.core.notes()
    }
    fn is_live(&self) -> bool {
        false
    }
}

/// What an answer has cost: how often memory was read, and how many bytes were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub reads: usize,
    pub bytes: usize,
}

/// Answers a question about a core, and what that has cost. No clock decides whether it was too much.
pub fn counted(core: &CoreTarget, options: &Options) -> (Report, Work) {
    let work = Cell::new(Work::default());
    let count = |_, len: usize, _| {
        let Work { reads, bytes } = work.get();
        work.set(Work { reads: reads + 1, bytes: bytes.saturating_add(len) });
        true
    };
    let counting = Overheard { core, threads: core.threads(), allows: &count };
    let report = Session::on(&counting, options).stacks().unwrap_or_else(|e| panic!("{e}")).report;
    (report, work.get())
}

/// What an analysis reads of a core, and nothing else: no native code, no names of files, no environment.
#[derive(Clone)]
pub struct SmallCore {
    /// The thread in the trap.
    pub threads: Vec<Thread>,
    /// Address, `p_flags`, bytes; an error is a hole of that many bytes.
    pub segments: Vec<(u64, u32, Result<Vec<u8>, u64>)>,
    /// Start, end, offset, name.
    files: Vec<(u64, u64, u64, String)>,
}

impl SmallCore {
    /// The pages of `core` that an analysis by these routes reads; none: all of them. `name`: what its list of files calls
    /// each. Native code can be unwound only if the files are to be had.
    pub fn of(core: &CoreTarget, routes: &[Route], name: &dyn Fn(&Path) -> String) -> SmallCore {
        let pages = RefCell::new(BTreeSet::new());
        let record = |address: u64, len: usize, all: bool| {
            let len = if all { len } else { len.min(16 << 10) };
            let last = address.saturating_add(len.max(1) as u64 - 1) / PAGE;
            pages.borrow_mut().extend((address / PAGE..=last).take(1 << 16));
            true
        };
        // The thread in the trap; the others only wait for it.
        let recorder = Overheard { core, threads: &core.threads()[..1], allows: &record };
        let mut options = question();
        options.routes = routes.to_vec();
        Session::on(&recorder, &options).stacks().unwrap();
        let pages = pages.into_inner();
        let mut cut = SmallCore { threads: core.threads()[..1].to_vec(), segments: Vec::new(), files: Vec::new() };
        cut.threads[0].name = None;
        // The vdso is code, too, and the kernel's build is in it.
        for m in core.mappings().iter().filter(|m| m.path.as_deref() != Some(Path::new("[vdso]"))) {
            let of_file = !m.is_anonymous();
            let wanted: Vec<u64> = pages.range(m.start / PAGE..m.end.div_ceil(PAGE)).copied().collect();
            if wanted.is_empty() {
                continue;
            }
            let flags = u32::from(m.execute) | u32::from(m.write) << 1 | u32::from(m.read) << 2;
            let mut at = m.start;
            let mut run: Vec<u8> = Vec::new();
            let mut runs = Vec::new();
            for page in wanted.iter().map(|p| p * PAGE) {
                if page != at {
                    if !run.is_empty() {
                        runs.push((at - run.len() as u64, flags, Ok(std::mem::take(&mut run))));
                    }
                    runs.push((at, flags, Err(page - at)));
                    at = page;
                }
                let mut bytes = vec![0; PAGE as usize];
                // Native code is not needed: no frame of it can be explained without its file.
                if !(of_file && m.execute) && core.read(page, &mut bytes).is_ok() {
                    run.extend(bytes);
                    at += PAGE;
                }
            }
            if !run.is_empty() {
                runs.push((at - run.len() as u64, flags, Ok(run)));
            }
            if at < m.end {
                runs.push((at, flags, Err(m.end - at)));
            }
            cut.segments.extend(runs.into_iter().filter(|r| !matches!(r.2, Err(0))));
            if let Some(path) = m.path.as_ref().filter(|_| of_file) {
                cut.files.push((m.start, m.end, m.offset, name(path)));
            }
        }
        cut
    }

    /// A core of these pages.
    pub fn builder(&self) -> CoreBuilder {
        let mut builder = CoreBuilder::new();
        for t in &self.threads {
            builder = builder.thread(t.id.0, 8, &t.registers, t.fs_base.unwrap_or(0));
        }
        for (address, flags, content) in &self.segments {
            builder = match content {
                Ok(bytes) => builder.memory(*address, *flags, bytes),
                Err(size) => builder.segment(*address, *size, *flags, &[]),
            };
        }
        for (start, end, offset, path) in &self.files {
            builder = builder.file(*start, *end, *offset, path);
        }
        builder
    }

    /// Number of the segment with the stack of the thread in the trap, from its red zone on.
    pub fn stack(&self) -> usize {
        let sp = self.threads[0].registers.sp().unwrap();
        let here = |(start, _, content): &(u64, u32, Result<Vec<u8>, u64>)| {
            content.as_ref().is_ok_and(|bytes| (*start..*start + bytes.len() as u64).contains(&sp))
        };
        self.segments.iter().position(here).unwrap()
    }
}
