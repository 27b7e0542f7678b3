//! Which Wasm frames are at an address of the code, and at which operators they are (`guest_debug`).
//!
//! The frame table has points, and what it says of a point depends on where the compiler put the point:
//!
//! - In front of each operator, behind code that does nothing and can become the call of a breakpoint (before version
//!   41: without such code). All locals and operands are in the frame's slot there, and the position is the
//!   operator's own.
//! - At each machine instruction of a call, and behind the call. The position is the operator *behind* the call from
//!   version 44 on (`code_translator.rs: next_srcloc`). The last instruction of a call that passes arguments or
//!   results on the stack does more than call: it takes the stack back, loads results or jumps. So its point is
//!   behind the return address, and the return address has no point of its own.
//! - At instructions that trap, and behind the calls that report traps where signals do not. The position is the
//!   operator's own.
//!
//! Where functions are inlined, a point has the frames of all of them, and each but the innermost is at its call. The
//! address map has no positions for such code at all, because the compiler copies none
//! (`cranelift/codegen/src/inline.rs`). So code that has a position there is the function's own.
//!
//! The runtime takes the last point at or before a return address. That is right if nothing but the beginning of the
//! same operator lies between the two. The address map shows that here, or the code does: each operator that can be
//! reached begins with a point, so code that is reached from a point without a jump and without another point is of
//! the point's operator.

use super::code::Code;
use super::frame_table::{FrameTable, InstPos, ProgramFrame, ProgramPoint};
use crate::arch::CodeAddress;
use crate::limits::MAX_FLOW_BYTES;
use crate::runtime::Why;
use crate::runtime::wasmtime::image::info::FuncKind;
use crate::runtime::wasmtime::image::{Function, FunctionKind};
use crate::wasm::OperatorKind;
use iced_x86::{Decoder, DecoderOptions, FlowControl};

/// What the frame table records for an address.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The frames at the address, innermost first. There is at least one.
    pub frames: Vec<FrameAt>,
    /// Whether the operand stacks are those of this address. If not, the frames are those of the last point before
    /// it.
    pub exact: bool,
}

/// A recorded frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameAt {
    /// The frame as the table has it.
    pub program: ProgramFrame,
    /// Offset of the operator that the frame is at, in the file that was compiled. `None` if it is not known.
    pub place: Option<u32>,
    /// Whether the frame's slot is filled.
    pub filled: bool,
}

/// Says that nothing is recorded for an address.
#[derive(Clone, Debug)]
pub struct Unrecorded {
    /// Why nothing is known.
    pub why: Why,
    /// Whether functions may be inlined there.
    pub inlined: bool,
}

impl Unrecorded {
    fn because(why: Why) -> Unrecorded {
        Unrecorded { why, inlined: false }
    }
}

/// Reads machine code from one code offset to another.
pub type ReadCode<'a> = &'a dyn Fn(u32, u32) -> Option<Vec<u8>>;

/// The points of one function.
pub struct Points<'a> {
    code: &'a Code,
    table: FrameTable<'a>,
    function: &'a Function,
    own: (u32, u32),
    read: ReadCode<'a>,
}

/// Where in its function a frame of a point is.
enum At {
    /// The frame is at the operator with this position, counted as the table counts.
    Operator(u32),
    /// The frame is in front of the first operator, at this position. Its slot is not filled there yet.
    Header(u32),
    Unknown,
}

impl<'a> Points<'a> {
    /// The points of `function`.
    ///
    /// # Errors
    /// If the table cannot be read, or `function` is no Wasm function.
    pub fn of(code: &'a Code, function: &'a Function, read: ReadCode<'a>) -> Result<Points<'a>, Why> {
        let FunctionKind::Wasm { module, function: index, .. } = &function.kind else {
            return Err(Why::NotWasm);
        };
        Ok(Points { code, table: code.frame_table()?, function, own: (*module, *index), read })
    }

    /// What is recorded at an address, whose code offset is `raw`.
    pub fn at(&self, address: CodeAddress, raw: u32) -> Result<Recorded, Unrecorded> {
        if address.is_return() { self.behind_call(raw) } else { self.before_instruction(raw) }
    }

    /// What is recorded at the return address with code offset `raw`, for a frame that waits for a call.
    pub fn behind_call(&self, raw: u32) -> Result<Recorded, Unrecorded> {
        let (index, point) = self.last_point(raw, InstPos::Post)?;
        let place = raw.checked_sub(1).and_then(|call| self.own_place(call));
        let recorded = |frames| Ok(Recorded { frames, exact: true });
        let point_is_own = self.is_own(&point);
        if point.text_offset == raw {
            return recorded(self.frames(index, &point, place.filter(|_| point_is_own)));
        }
        if let Some(place) = place {
            // The operator is the function's own, and there is only one copy of its code.
            let of_operator = match point_is_own && self.place_of(&point) == Some(place) {
                true => Some((index, point.clone())),
                false => self.point_of_operator(place),
            };
            if let Some((index, point)) = of_operator {
                return recorded(self.frames(index, &point, Some(place)));
            }
        }
        if self.is_straight(point.text_offset, raw) {
            return recorded(self.frames(index, &point, place.filter(|_| point_is_own)));
        }
        Err(Unrecorded { inlined: place.is_none() && self.inlines(), ..Unrecorded::because(Why::NoStateAtCall) })
    }

    /// What is recorded in front of the instruction at code offset `raw`, for a frame that was interrupted.
    fn before_instruction(&self, raw: u32) -> Result<Recorded, Unrecorded> {
        let (index, point) = self.last_point(raw, InstPos::Pre)?;
        let place = self.own_place(raw);
        // A point behind a call describes the moment when the call returns. By then its results have taken the place
        // of its arguments.
        let is_call = point.position == InstPos::Post && !self.is_breakpoint(&point);
        let here = point.text_offset == raw;
        if let Some(place) = place {
            let Some(own) = point.frames.last().filter(|frame| self.is_of_function(frame)) else {
                return Err(Unrecorded::because(Why::NotRecordedHere));
            };
            if here && self.is_own(&point) && (!is_call || self.place_of(&point) == Some(place)) {
                let of_call = self.behind_calls() && (is_call || point.position == InstPos::Pre);
                return Ok(Recorded { frames: self.frames(index, &point, of_call.then_some(place)), exact: true });
            }
            let frames = vec![FrameAt { program: *own, place: Some(place), filled: true }];
            return Ok(Recorded { frames, exact: false });
        }
        let inlined = || Unrecorded { inlined: true, ..Unrecorded::because(Why::BetweenInlinedOperators) };
        if here && !is_call {
            return Ok(Recorded { frames: self.frames(index, &point, None), exact: true });
        }
        if self.has_foreign_place(raw) {
            return Err(inlined());
        }
        if self.inlines() && (!self.is_straight(point.text_offset, raw) || self.leaves(&point)) {
            return Err(inlined());
        }
        Ok(Recorded { frames: self.frames(index, &point, None), exact: false })
    }

    /// The operators that the frames of a point are at. This needs no more than the table, which the symbol files of
    /// whole modules are made from.
    pub fn settle(&self, index: usize, point: &ProgramPoint) -> Vec<FrameAt> {
        let place = self.place_of(point).filter(|_| self.is_own(point));
        self.frames(index, point, place)
    }

    fn last_point(&self, raw: u32, position: InstPos) -> Result<(usize, ProgramPoint), Unrecorded> {
        let broken = |e: super::frame_table::FrameTableError| Unrecorded::because(Why::Other(e.to_string()));
        let before = || Unrecorded::because(Why::BeforeFirstRecord);
        let index = self.table.index_before(raw, position).ok_or_else(before)?;
        let point = self.table.point(index).map_err(broken)?.ok_or_else(before)?;
        if !self.contains(&point) {
            return Err(before());
        }
        if !self.table.is_filled(self.function.start, &point) {
            return Err(Unrecorded::because(Why::NotStoredYet));
        }
        Ok((index, point))
    }

    fn contains(&self, point: &ProgramPoint) -> bool {
        (self.function.start..=self.function.end()).contains(&point.text_offset)
    }

    /// Whether a frame is of the function that the code belongs to.
    fn is_of_function(&self, frame: &ProgramFrame) -> bool {
        let Some(key) = self.table.function_of(frame.descriptor) else { return false };
        let (module, function) = self.own;
        key.kind == FuncKind::Wasm
            && key.namespace == module
            && self.code.imports(module as usize).is_some_and(|n| n.checked_add(key.index) == Some(function))
    }

    /// Whether nothing is inlined at a point: its only frame is of the function itself.
    fn is_own(&self, point: &ProgramPoint) -> bool {
        matches!(point.frames.as_slice(), [one] if self.is_of_function(one))
    }

    /// Whether anything is inlined in this function. If so, it has points with several frames.
    fn inlines(&self) -> bool {
        self.indices().any(|index| self.table.has_several_frames(index))
    }

    fn indices(&self) -> std::ops::Range<usize> {
        let first = self.table.first_at(self.function.start);
        first..self.table.index_before(self.function.end(), InstPos::Pre).map_or(first, |last| last + 1)
    }

    /// The position in the Wasm file of the code at an offset, if it is in the function itself.
    fn own_place(&self, offset: u32) -> Option<u32> {
        let place = self.code.place(offset)?;
        (self.code.owners_of(place, Some(self.own)) == [self.own]).then_some(place.0)
    }

    fn has_foreign_place(&self, offset: u32) -> bool {
        let place = self.code.place(offset);
        place.is_some_and(|place| self.code.owners_of(place, Some(self.own)).iter().any(|owner| *owner != self.own))
    }

    /// The position of the instruction that a point belongs to, if it is in the function itself.
    fn place_of(&self, point: &ProgramPoint) -> Option<u32> {
        self.own_place(match point.position {
            InstPos::Post => point.text_offset.checked_sub(1)?,
            InstPos::Pre => point.text_offset,
        })
    }

    fn is_breakpoint(&self, point: &ProgramPoint) -> bool {
        let innermost = point.frames.first();
        point.position == InstPos::Post
            && innermost.is_some_and(|f| self.table.is_breakpoint(point.text_offset, f.wasm_pc))
    }

    /// Whether the position that is recorded for a call is the operator behind the call. An unknown version counts as
    /// a new one.
    fn behind_calls(&self) -> bool {
        self.code.version.is_none_or(FrameTable::behind_calls)
    }

    /// The point in front of the operator at `place`, which is one of the function's own.
    fn point_of_operator(&self, place: u32) -> Option<(usize, ProgramPoint)> {
        let relative = self.code.version.is_none_or(FrameTable::module_relative);
        let start = if relative { self.code.module_start(self.own.0)? } else { 0 };
        let position = place.checked_sub(start)?;
        for index in self.indices() {
            if self.table.has_several_frames(index) {
                continue;
            }
            let Ok(Some(point)) = self.table.point(index) else { continue };
            if point.frames.first().is_none_or(|frame| frame.wasm_pc != position) || !self.is_own(&point) {
                continue;
            }
            // The point of a call would have the operator behind the call as its position.
            let own = !self.behind_calls() || self.is_breakpoint(&point) || self.place_of(&point) == Some(place);
            if own && self.table.is_filled(self.function.start, &point) {
                return Some((index, point));
            }
        }
        None
    }

    /// Converts a position of a frame into an offset in the file that was compiled.
    fn in_file(&self, frame: &ProgramFrame, position: u32) -> Option<u32> {
        if !self.code.version.is_none_or(FrameTable::module_relative) {
            return Some(position);
        }
        let module = self.table.function_of(frame.descriptor)?.namespace;
        position.checked_add(self.code.module_start(module)?)
    }

    /// The operators of a frame's function, counted as the table counts, where the image carries the Wasm.
    fn operators(&self, frame: &ProgramFrame) -> Option<std::sync::Arc<[u64]>> {
        let key = self.table.function_of(frame.descriptor)?;
        self.code.wasm.get(key.namespace as usize)?.as_ref()?.operators(key.index)
    }

    /// The frames of a point. `own` is the position of the innermost frame, if it is known.
    fn frames(&self, index: usize, point: &ProgramPoint, own: Option<u32>) -> Vec<FrameAt> {
        let located = |(depth, frame): (usize, &ProgramFrame)| {
            let at = match (depth, own) {
                (0, Some(place)) => {
                    return FrameAt { program: *frame, place: Some(place), filled: self.is_in_body(frame) };
                }
                (0, None) => self.innermost(index, point, frame),
                _ if self.behind_calls() => self.call_before(frame, frame.wasm_pc),
                _ => At::Operator(frame.wasm_pc),
            };
            let (position, filled) = match at {
                At::Operator(position) => (Some(position), true),
                At::Header(position) => (Some(position), false),
                At::Unknown => (None, true),
            };
            FrameAt { program: *frame, place: position.and_then(|p| self.in_file(frame, p)), filled }
        };
        point.frames.iter().enumerate().map(located).collect()
    }

    /// Whether the position of a frame is in the function's body. In front of the first operator a function reports
    /// that there is no room for it on the stack.
    fn is_in_body(&self, frame: &ProgramFrame) -> bool {
        !matches!(self.operator(frame, frame.wasm_pc), At::Header(_))
    }

    fn operator(&self, frame: &ProgramFrame, position: u32) -> At {
        let first = self.operators(frame).and_then(|operators| operators.first().copied());
        match first {
            Some(first) if u64::from(position) < first => At::Header(position),
            _ => At::Operator(position),
        }
    }

    fn innermost(&self, index: usize, point: &ProgramPoint, frame: &ProgramFrame) -> At {
        let position = frame.wasm_pc;
        if !self.behind_calls() || self.is_breakpoint(point) {
            return self.operator(frame, position);
        }
        if point.position == InstPos::Post {
            return match self.reports_trap(point.text_offset) {
                true => self.operator(frame, position),
                false => self.call_before(frame, position),
            };
        }
        // The point is at an argument of a call, or at an instruction that traps.
        if let Some(operator) = self.operator_begun(index, point) {
            return At::Operator(operator);
        }
        let operators = self.operators(frame);
        let is_call = |position: u32| -> Option<bool> {
            let at = operators.as_deref()?.binary_search(&u64::from(position)).ok()?;
            Some(self.kind(frame, at)? == OperatorKind::Call)
        };
        match (is_call(position), self.call_before(frame, position)) {
            (Some(false), At::Operator(before)) if is_call(before) == Some(true) => At::Unknown,
            (Some(false), _) => At::Operator(position),
            (Some(true), At::Operator(before)) if is_call(before) == Some(false) => At::Operator(position),
            _ => At::Unknown,
        }
    }

    fn kind(&self, frame: &ProgramFrame, operator: usize) -> Option<OperatorKind> {
        let key = self.table.function_of(frame.descriptor)?;
        let wasm = self.code.wasm.get(key.namespace as usize)?.as_ref()?;
        wasm.operator(key.index, operator as u64).map(|operator| operator.kind)
    }

    /// The call that has `behind`, the operator behind it, as its recorded position.
    fn call_before(&self, frame: &ProgramFrame, behind: u32) -> At {
        let Some(operators) = self.operators(frame) else { return At::Unknown };
        let before = match operators.binary_search(&u64::from(behind)) {
            Ok(at) => at.checked_sub(1),
            // This is the call that reports that there is no room on the stack.
            Err(0) => return At::Header(behind),
            Err(_) => None,
        };
        let before = before.and_then(|at| operators.get(at)).and_then(|at| u32::try_from(*at).ok());
        before.map_or(At::Unknown, At::Operator)
    }

    /// The operator whose code a point is in, told by the point in front of that operator.
    fn operator_begun(&self, index: usize, point: &ProgramPoint) -> Option<u32> {
        let chain = |p: &ProgramPoint| {
            let outer = p.frames.iter().skip(1).map(|f| (f.wasm_pc, f.descriptor)).collect::<Vec<_>>();
            (p.frames.first().map(|f| f.descriptor), outer)
        };
        for index in (0..index).rev() {
            let earlier = self.table.point(index).ok().flatten().filter(|p| self.contains(p))?;
            if chain(&earlier) != chain(point) {
                return None;
            }
            if self.is_breakpoint(&earlier) {
                let begun = earlier.frames.first().map(|f| f.wasm_pc);
                return begun.filter(|_| self.is_straight(earlier.text_offset, point.text_offset));
            }
            if earlier.position == InstPos::Post {
                return None;
            }
        }
        None
    }

    /// Whether the operator of a point may leave its inlined function, so that the code that follows may be of the
    /// function's caller.
    fn leaves(&self, point: &ProgramPoint) -> bool {
        let Some(frame) = point.frames.first().filter(|_| point.frames.len() > 1) else { return false };
        let Some(operators) = self.operators(frame) else { return true };
        let Ok(at) = operators.binary_search(&u64::from(frame.wasm_pc)) else { return true };
        // An operator that cannot be read may do anything.
        self.kind(frame, at).is_none_or(|kind| kind == OperatorKind::MayLeave)
    }

    /// Whether a direct call of one of the runtime's routines ends at the offset `end`.
    fn reports_trap(&self, end: u32) -> bool {
        const CALL: usize = 5;
        let Some(start) = end.checked_sub(CALL as u32) else { return false };
        let Some(bytes) = (self.read)(start, end) else { return false };
        let Ok([0xe8, a, b, c, d]) = <[u8; CALL]>::try_from(bytes) else { return false };
        let target = end.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]));
        let called = self.code.functions.at(target);
        called.is_some_and(|f| f.start == target && matches!(f.kind, FunctionKind::Builtin(_)))
    }

    /// Whether the code at `from` goes on to `to` if no jump is taken.
    fn is_straight(&self, from: u32, to: u32) -> bool {
        let Some(len) = to.checked_sub(from).filter(|len| *len as usize <= MAX_FLOW_BYTES) else { return false };
        if len == 0 {
            return true;
        }
        let Some(bytes) = (self.read)(from, to) else { return false };
        let mut decoder = Decoder::with_ip(64, &bytes, u64::from(from), DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let goes_on = matches!(
                instruction.flow_control(),
                FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::Call | FlowControl::IndirectCall
            );
            if instruction.is_invalid() || !goes_on {
                return false;
            }
        }
        decoder.ip() == u64::from(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::wasmtime::image::{Image, SliceMemory};
    use crate::runtime::wasmtime::testing::{fixture, fixtures};

    struct Loaded {
        code: Code,
        text: Vec<u8>,
    }

    fn load(name: &str) -> Loaded {
        let bytes = fixture(name);
        let code = Code::load(Image::from_bytes(&bytes).unwrap(), None, &SliceMemory::new(0, &bytes));
        let range = code.image.text();
        Loaded { text: bytes[range.start as usize..range.end as usize].to_vec(), code }
    }

    impl Loaded {
        fn of_each_function(&self, mut tell: impl FnMut(&Function, Points<'_>, &FrameTable<'_>)) {
            let read = |from: u32, to: u32| self.text.get(from as usize..to as usize).map(<[u8]>::to_vec);
            for function in self.code.functions.iter().filter(|f| f.kind.is_wasm()) {
                tell(&function, Points::of(&self.code, &function, &read).unwrap(), &self.code.frame_table().unwrap());
            }
        }

        /// The calls that are reached from a point without a jump: the offset where each ends, and the target of a
        /// direct call.
        fn calls(&self, function: &Function, table: &FrameTable<'_>) -> Vec<(u32, Option<u32>)> {
            let mut out = std::collections::BTreeMap::new();
            for index in table.first_at(function.start)..table.points() {
                let from = table.point(index).unwrap().unwrap().text_offset;
                if from >= function.end() {
                    break;
                }
                let code = &self.text[from as usize..function.end() as usize];
                let mut decoder = Decoder::with_ip(64, code, u64::from(from), DecoderOptions::NONE);
                while decoder.can_decode() {
                    let i = decoder.decode();
                    match i.flow_control() {
                        FlowControl::Next | FlowControl::ConditionalBranch => {}
                        FlowControl::Call => _ = out.insert(i.next_ip() as u32, Some(i.near_branch_target() as u32)),
                        FlowControl::IndirectCall => _ = out.insert(i.next_ip() as u32, None),
                        _ => break,
                    }
                }
            }
            out.into_iter().collect()
        }

        /// The function of a frame, and the text of the operator that the frame is at. `None` in front of the first
        /// operator.
        fn name(&self, frame: &FrameAt) -> Option<(u32, String)> {
            let key = self.code.frame_table().unwrap().function_of(frame.program.descriptor).unwrap();
            let wasm = self.code.wasm[0].as_ref().unwrap();
            let operators = wasm.operators(key.index).unwrap();
            let place = u64::from(frame.place.unwrap());
            let at = operators.binary_search(&place).ok().or_else(|| {
                assert!(place < operators[0], "{place:#x}");
                None
            })?;
            Some((key.index + wasm.imported_functions(), wasm.operator(key.index, at as u64).unwrap().text))
        }
    }

    fn images() -> Vec<String> {
        let is_one = |n: &String| ["-guest-debug", "-inline"].iter().any(|mode| n.ends_with(mode));
        let mut names: Vec<_> = fixtures().into_iter().filter(is_one).collect();
        names.push("more/48-stack-args".into());
        names
    }

    /// At each call all frames are known, and each is at the call of the function that is inlined into it. The
    /// innermost is at the call that the machine makes.
    #[test]
    fn every_call_has_its_frames() {
        let (mut inlined, mut direct, mut without_own) = (0, 0, 0);
        for name in images() {
            let loaded = load(&name);
            loaded.of_each_function(|function, points, table| {
                for (end, target) in loaded.calls(function, table) {
                    let called = target.and_then(|t| loaded.code.functions.at(t)).map(|f| f.kind);
                    if matches!(called, Some(FunctionKind::Builtin(_))) {
                        continue;
                    }
                    let recorded = points.behind_call(end).unwrap_or_else(|e| panic!("{name} {end:#x}: {e:?}"));
                    assert!(recorded.exact && recorded.frames.iter().all(|f| f.filled), "{name} {end:#x}");
                    let frames: Vec<_> = recorded.frames.iter().map(|f| loaded.name(f).unwrap()).collect();
                    for pair in frames.windows(2) {
                        assert_eq!(pair[1].1, format!("call {}", pair[0].0), "{name} {end:#x}: {frames:?}");
                        inlined += 1;
                    }
                    match called {
                        Some(FunctionKind::Wasm { function, .. }) => {
                            assert_eq!(frames[0].1, format!("call {function}"), "{name} {end:#x}: {frames:?}");
                            direct += 1;
                        }
                        _ => assert!(frames[0].1.starts_with("call"), "{name} {end:#x}: {frames:?}"),
                    }
                    let own = table.point(table.index_before(end, InstPos::Post).unwrap()).unwrap().unwrap();
                    without_own += usize::from(own.text_offset != end);
                }
            });
        }
        assert!(inlined > 5 && direct > 5 && without_own > 4, "{inlined} {direct} {without_own}");
    }

    /// Wherever a thread is interrupted, the inlined frames that are known form a chain of calls.
    #[test]
    fn every_instruction_has_its_frames_or_none() {
        let (mut chains, mut refused) = (0, 0);
        for name in images() {
            let loaded = load(&name);
            loaded.of_each_function(|function, points, _| {
                for at in function.start..function.end() {
                    match points.before_instruction(at) {
                        Ok(recorded) => {
                            let known: Vec<_> = recorded.frames.iter().take_while(|f| f.place.is_some()).collect();
                            let frames: Vec<_> =
                                known.iter().filter(|f| f.filled).filter_map(|f| loaded.name(f)).collect();
                            for pair in frames.windows(2) {
                                assert_eq!(pair[1].1, format!("call {}", pair[0].0), "{name} {at:#x}: {frames:?}");
                                chains += 1;
                            }
                        }
                        Err(e) => refused += usize::from(e.inlined),
                    }
                }
            });
        }
        assert!(chains > 100 && refused > 0, "{chains} {refused}");
    }
}
