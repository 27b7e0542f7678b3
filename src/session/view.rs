//! Turns stacks into a report.

use super::walking::Native;
use super::{Options, Source};
use crate::arch::CodeAddress;
use crate::process::objects::Objects;
use crate::process::{Target, Thread};
use crate::report::{self, Frame, FrameKind, Function, Hex, OpPosition, Report, WasmPosition};
use crate::runtime::{GuestFrame, GuestKind, Position, Runtime};
use crate::symbolize::native::NativeSymbolizer;
use crate::unwind::{self, End, Stack, Trust};
use crate::wasm::NameSource;

/// The note at a frame that was found by a search of the stack.
const BEFORE_SCAN: &str = "native frames before this one may be missing: they could not be unwound";

/// Turns stacks into the report.
pub(super) struct View<'a, 'n> {
    pub target: &'a dyn Target,
    pub objects: &'a Objects,
    pub native: &'a Native<'n>,
    pub runtime: &'a dyn Runtime,
    pub symbolizer: &'a NativeSymbolizer<'n>,
    pub options: &'a Options,
    pub limit: usize,
}

impl View<'_, '_> {
    pub fn head(&self) -> Report {
        let target = self.target;
        let path = match &self.options.source {
            Source::Core { core, .. } => Some(core.display().to_string()),
            Source::Pid(_) => None,
        };
        let mut report = Report::new(report::Target {
            kind: match &self.options.source {
                Source::Core { .. } => report::TargetKind::Core,
                Source::Pid(_) => report::TargetKind::Process,
            },
            pid: target.pid(),
            executable: target.executable().map(|p| p.display().to_string()),
            description: Some(target.description()),
            path,
            signal: target.threads().first().and_then(|t| t.signal),
        });
        for (i, module) in self.runtime.modules().iter().enumerate() {
            let row = report::Module::new(i as u32, module);
            match report.runtimes.iter_mut().find(|r| r.name == module.runtime) {
                Some(runtime) => runtime.modules.push(row),
                None => {
                    report.runtimes.push(report::Runtime { name: module.runtime, modules: vec![row] });
                }
            }
        }
        report.engines = self.runtime.engines().iter().map(report::EngineSeen::new).collect();
        report.objects_problems = self.objects.iter().filter_map(|o| Some(o.problem.as_ref()?.what.clone())).collect();
        report.notes = target.notes().to_vec();
        report.notes.extend(self.runtime.notes().iter().cloned());
        report
    }

    /// What the runtimes say about each frame of a stack.
    pub fn guests(&self, stack: Option<&Stack>) -> Vec<Vec<GuestFrame>> {
        let frames = stack.map_or(&[][..], |s| &s.frames);
        frames.iter().map(|frame| self.runtime.describe(&frame.cursor, self.target)).collect()
    }

    pub fn thread(&self, thread: &Thread, stack: Option<&Stack>, guests: &[Vec<GuestFrame>]) -> report::Thread {
        let mut out = report::Thread {
            tid: Some(thread.id.0),
            name: thread.name.clone(),
            frames: Vec::new(),
            end: Some(report::End::no_registers(thread.problem.as_deref())),
            signal: thread.signal,
            notes: thread.problem.clone().filter(|_| stack.is_some()).into_iter().collect(),
        };
        let Some(stack) = stack else { return out };
        if self.options.names {
            let addresses: Vec<CodeAddress> = stack.frames.iter().map(|f| f.cursor.address).collect();
            self.symbolizer.prepare(&addresses);
        }
        for (frame, guests) in stack.frames.iter().zip(guests) {
            self.frame(frame, guests, &mut out.frames);
        }
        out.end = Some(match stack.end {
            // If nobody asked for this limit, it is not the end "as many as were asked for".
            End::Limit(n) if n < self.limit || self.options.limit.is_none() => {
                report::End { kind: report::EndKind::Lost, why: Some(format!("wstate stops after {n} frames")) }
            }
            ref end => end.into(),
        });
        if out.frames.len() > self.limit {
            out.frames.truncate(self.limit);
            out.end = Some((&End::Limit(self.limit)).into());
        }
        out
    }

    /// Adds the frames that a reader sees for one machine frame: the functions that were inlined into it, and then
    /// the frame itself.
    fn frame(&self, frame: &unwind::Frame, guests: &[GuestFrame], out: &mut Vec<Frame>) {
        let at = &frame.cursor;
        let pc = at.address.raw();
        let mut base = Frame::new(out.len() as u32, pc, FrameKind::Unknown);
        base.trust = Some(frame.trust.into());
        base.unstopped = self.options.nonblocking;
        if self.options.verbose {
            base.registers = Some(report::values::registers(&at.registers));
        }
        if !guests.is_empty() {
            // In this case rbp still held the frame of the Wasm function that called the host, so that function was
            // passed over. This was seen in cores of hosts without frame pointers whose executable is missing.
            let after_native = out.last().is_some_and(|f| f.kind != FrameKind::Wasm);
            let trust = base.trust;
            for (i, guest) in guests.iter().enumerate() {
                let mut one = base.clone();
                one.index = Some(out.len() as u32);
                let mut frame = self.guest(one, guest);
                if i == 0 && frame.kind == FrameKind::Wasm && trust == Some(report::Trust::FramePointer) && after_native
                {
                    frame.notes.push(
                        "found past native code without unwind information: Wasm frames called from here may be missing"
                            .to_string(),
                    );
                }
                if i == 0 && trust == Some(report::Trust::Scan) {
                    frame.notes.push(BEFORE_SCAN.to_string());
                }
                out.push(frame);
            }
            return;
        }
        if let Some(object) = self.objects.find(at.address.lookup()) {
            base.kind = FrameKind::Native;
            base.module = Some(object.name());
            base.module_offset = Some(Hex(pc.wrapping_sub(object.range.0)));
        } else if let Some(mapping) = self.target.mapping_at(at.address.lookup()) {
            base.module = mapping.path.as_ref().map(|p| p.display().to_string());
            base.notes.push(if mapping.execute && self.target.is_gone() {
                super::proof::GONE.to_string()
            } else if mapping.execute {
                "executable memory that belongs to no file and to no runtime that wstate knows".to_string()
            } else if mapping.may_execute() {
                "this code is of a file of which the core says nothing but the name".to_string()
            } else {
                "not executable memory: the stack is damaged, or the frame before is wrong".to_string()
            });
        } else {
            base.notes.push("no memory is mapped here: the stack is damaged, or the frame before is wrong".to_string());
        }
        if let Some(stub) = self.native.recognised.stub_name(at.address, self.target) {
            base.kind = FrameKind::Trampoline;
            base.notes.clear();
            base.function = Some(Function {
                name: Some(stub.to_string()),
                name_source: Some(NameSource::RecognisedCode),
                ..Function::default()
            });
            out.push(base);
            return;
        }
        if frame.trust == Trust::Scan {
            base.notes.push(BEFORE_SCAN.to_string());
        }
        // A signal handler returns to the first byte of `__restore_rt`, so this address is not one behind a call in
        // the function before.
        let signal_frame = self.native.cfi.is_signal_frame(at, self.target);
        let address = if signal_frame { CodeAddress::Exact(pc) } else { at.address };
        let symbols = if self.options.names { self.symbolizer.symbolize(address) } else { Vec::new() };
        if signal_frame {
            base.notes.push("a signal handler was called here".to_string());
        }
        if symbols.is_empty() {
            if signal_frame {
                base.function = Some(Function {
                    name: Some("<signal handler called>".to_string()),
                    name_source: Some(NameSource::RecognisedCode),
                    ..Function::default()
                });
            }
            out.push(base);
            return;
        }
        for symbol in symbols {
            let mut one = base.clone();
            one.index = Some(out.len() as u32);
            let from_dwarf = symbol.line.is_some() || symbol.inlined;
            let source = if from_dwarf { NameSource::Dwarf } else { NameSource::Symbol };
            one.function = Some(Function {
                name_source: symbol.name.is_some().then_some(source),
                name: symbol.name,
                offset: symbol.offset.map(Hex),
                file: symbol.file,
                line: symbol.line,
                inlined: Some(symbol.inlined),
                ..Function::default()
            });
            out.push(one);
        }
    }

    fn guest(&self, mut base: Frame, guest: &GuestFrame) -> Frame {
        base.kind = match guest.kind {
            GuestKind::Wasm => FrameKind::Wasm,
            GuestKind::Trampoline => FrameKind::Trampoline,
            GuestKind::Unknown => FrameKind::Unknown,
        };
        base.module = self.runtime.modules().get(guest.module).map(|m| m.name.clone());
        base.module_offset = Some(Hex(guest.code_offset));
        let (name, name_source) = guest.name.clone().unzip();
        base.function = Some(Function {
            name,
            name_source,
            index: guest.function,
            local_index: guest.local_function,
            params: guest.params,
            offset: guest.function_offset.map(Hex),
            inlined: guest.inlined.then_some(true),
            ..Function::default()
        });
        base.instance = guest.instance.map(Hex);
        base.may_miss_inlined = guest.may_miss_inlined;
        base.notes.extend(guest.notes.iter().cloned());
        if guest.kind != GuestKind::Wasm {
            return base;
        }
        let (op_index, op_position) = OpPosition::of(guest.position);
        let mut place = WasmPosition {
            module_index: Some(guest.module as u32),
            op_index,
            op_position,
            offset: None,
            op: None,
            file: None,
            line: None,
        };
        if let Position::Offset(offset) = guest.position {
            place.offset = Some(Hex(offset));
        }
        if let Some(operator) = &guest.operator {
            place.offset = Some(Hex(operator.offset));
            // Behind a point the pc may be at any later operator.
            let exact = matches!(guest.position, Position::Operator(_) | Position::Offset(_));
            place.op = operator.text.clone().filter(|_| exact);
            place.file = operator.file.clone();
            place.line = operator.line;
        }
        base.wasm = Some(place);
        if self.options.values {
            (base.locals, base.locals_why) = report::Value::list(&guest.locals);
            (base.stack, base.stack_why) = report::Value::list(&guest.stack);
            base.variables = guest.variables.iter().map(report::Variable::new).collect();
        }
        base
    }
}
