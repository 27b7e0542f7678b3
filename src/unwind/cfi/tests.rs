//! Tests with tables that are made here, and with broken ones.

use super::*;
use crate::arch::x64;
use crate::process::MemoryError;
use crate::unwind::Trust;
use crate::unwind::testing::{Pieces, Section, cursor, eh_frame, elf, object};
use gimli::write::{Address, CallFrameInstruction as Cfi, CommonInformationEntry, Expression, FrameTable};
use gimli::{Encoding, Format, LittleEndian, X86_64};

const BIAS: u64 = 0x7000_0000_0000;
const FUNCTION: u64 = 0x1000;
const PC: u64 = BIAS + FUNCTION + 4;
const SP: u64 = 0x7fff_0000;
const CFA: u64 = SP + 16;

/// `.eh_frame` and `.debug_frame` of one function at [`FUNCTION`], with the usual CIE and these instructions.
fn tables(signal: bool, instructions: Vec<Cfi>) -> (Vec<u8>, Vec<u8>) {
    let encoding = Encoding { format: Format::Dwarf32, version: 1, address_size: 8 };
    let mut cie = CommonInformationEntry::new(encoding, 1, -8, X86_64::RA);
    cie.signal_trampoline = signal;
    cie.add_instruction(Cfi::Cfa(X86_64::RSP, 8));
    cie.add_instruction(Cfi::Offset(X86_64::RA, -8));
    let mut table = FrameTable::default();
    let cie = table.add_cie(cie);
    let mut fde = gimli::write::FrameDescriptionEntry::new(Address::Constant(FUNCTION), 0x100);
    fde.add_instruction(0, Cfi::CfaOffset(16));
    for instruction in instructions {
        fde.add_instruction(0, instruction);
    }
    table.add_fde(cie, fde);
    let mut eh = gimli::write::EhFrame::from(gimli::write::EndianVec::new(LittleEndian));
    table.write_eh_frame(&mut eh).unwrap();
    let mut debug = gimli::write::DebugFrame::from(gimli::write::EndianVec::new(LittleEndian));
    table.write_debug_frame(&mut debug).unwrap();
    (eh.0.into_vec(), debug.0.into_vec())
}

fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
    elf(&[Section { name, flags: 2, address: 0x3000, bytes }])
}

fn objects(file: Vec<u8>) -> Objects {
    Objects::from_parts(vec![object("/lib/made.so", BIAS, (BIAS, BIAS + 0x10_0000), file)])
}

fn step(instructions: Vec<Cfi>, at: &Cursor, memory: &Pieces) -> Option<Next> {
    let objects = objects(file(".eh_frame", &tables(false, instructions).0));
    CfiUnwinder::new(&objects).step(at, memory)
}

fn caller(next: Option<Next>) -> Cursor {
    match next {
        Some(Next::Caller(cursor, Trust::Cfi)) => cursor,
        other => panic!("{other:?}"),
    }
}

fn at() -> Cursor {
    use x64 as r;
    cursor(PC, &[(r::RSP, SP), (r::RBX, 3), (r::RBP, 6), (r::R12, 12), (r::RAX, 100), (r::XMM6, 206)])
}

fn expression(f: impl FnOnce(&mut Expression)) -> Expression {
    let mut e = Expression::new();
    f(&mut e);
    e
}

#[test]
fn every_rule_gives_value_and_provenance() {
    let memory = Pieces::default().words(SP, &[0x11, 0x2222, 0x33, 0x44, 0x55]).word(0x5000, 0x66);
    let mut at = at();
    at.registers.restore(x64::R12, 12, 0x9000);
    let deref = expression(|e| {
        e.op_breg(X86_64::RSP, 32);
    });
    let value = expression(|e| {
        e.op_breg(X86_64::RBX, 0);
        e.op_plus_uconst(7);
    });
    let next = step(
        vec![
            Cfi::Offset(X86_64::RBX, -16),
            Cfi::ValOffset(X86_64::R13, 24),
            Cfi::Register(X86_64::R14, X86_64::RAX),
            Cfi::Expression(X86_64::R15, deref),
            Cfi::ValExpression(X86_64::RDI, value),
            Cfi::SameValue(X86_64::RAX),
            Cfi::Undefined(X86_64::RBP),
            Cfi::Offset(X86_64::XMM6, 0),
        ],
        &at,
        &memory,
    );
    let caller = caller(next);
    assert_eq!(caller.address, CodeAddress::Return(0x2222));
    let r = &caller.registers;
    let all = |reg| (r.get(reg), r.saved_at(reg));
    assert_eq!(all(x64::RBX), (Some(0x11), Some(SP)));
    assert_eq!(all(x64::R13), (Some(CFA + 24), None));
    assert_eq!(all(x64::R14), (Some(100), None));
    assert_eq!(all(x64::R15), (Some(0x55), Some(SP + 32)));
    assert_eq!(all(x64::RDI), (Some(10), None));
    assert_eq!(all(x64::RAX), (Some(100), None));
    assert_eq!(all(x64::RBP), (None, None));
    assert_eq!(all(x64::XMM6), (Some(0x33), Some(CFA)));
    // Registers without a rule: callee-saved ones keep value and provenance, others are lost.
    assert_eq!(all(x64::R12), (Some(12), Some(0x9000)));
    assert_eq!(all(x64::RCX), (None, None));
    assert_eq!(all(x64::RSP), (Some(CFA), None));
    assert_eq!(all(x64::RIP), (Some(0x2222), Some(SP + 8)));
}

#[test]
fn cfa_expressions_may_begin_with_a_register_location() {
    // This is the expression of wasmtime's fibers: DW_OP_reg7; DW_OP_deref; DW_OP_plus_uconst 16.
    let fiber = Expression::raw(vec![0x57, 0x06, 0x23, 0x10]);
    let memory = Pieces::default().word(SP, 0x8000).word(0x8008, 0x2222);
    let caller = caller(step(vec![Cfi::CfaExpression(fiber)], &at(), &memory));
    assert_eq!((caller.registers.sp(), caller.registers.pc()), (Some(0x8010), Some(0x2222)));
}

#[test]
fn debug_frame_is_read_from_the_file_and_from_its_debug_file() {
    let memory = Pieces::default().words(SP, &[0x11, 0x2222]);
    let debug_frame = file(".debug_frame", &tables(false, vec![Cfi::Offset(X86_64::RBX, -16)]).1);
    let of_file = objects(debug_frame.clone());
    let next = CfiUnwinder::new(&of_file).step(&at(), &memory);
    assert_eq!(caller(next).registers.get(x64::RBX), Some(0x11));
    let mut stripped = object("/lib/made.so", BIAS, (BIAS, BIAS + 0x10_0000), file(".text", &[0x90]));
    stripped.debug = Some(("/debug/made".into(), crate::process::objects::ObjectData::Memory(debug_frame)));
    let of_debug_file = Objects::from_parts(vec![stripped]);
    let next = CfiUnwinder::new(&of_debug_file).step(&at(), &memory);
    assert_eq!(caller(next).registers.get(x64::RBX), Some(0x11));
}

#[test]
fn a_lying_search_table_is_not_believed() {
    let eh_frame = tables(false, vec![Cfi::Offset(X86_64::RBX, -16)]).0;
    let memory = Pieces::default().words(SP, &[0x11, 0x2222]);
    // The true entry stands behind the CIE. The other offsets point nowhere.
    let fde = 4 + u32::from_le_bytes(eh_frame[..4].try_into().unwrap());
    for offset in [0x1000 + fde, 0x1000 + fde + 1, 0x1000, 0, u32::MAX] {
        let mut header = vec![1, 0x1b, 0x03, 0x3b];
        for word in [0x1000u32 - 4, 1, (FUNCTION as u32).wrapping_sub(0x2000), offset] {
            header.extend(word.to_le_bytes());
        }
        let file = elf(&[
            Section { name: ".eh_frame_hdr", flags: 2, address: 0x2000, bytes: &header },
            Section { name: ".eh_frame", flags: 2, address: 0x3000, bytes: &eh_frame },
        ]);
        let objects = objects(file);
        let next = CfiUnwinder::new(&objects).step(&at(), &memory);
        assert_eq!(caller(next).registers.get(x64::RBX), Some(0x11), "{offset:#x}");
    }
}

#[test]
fn bottom_is_an_undefined_or_zero_return_address() {
    let memory = Pieces::default().words(SP, &[0x11, 0]);
    assert!(matches!(step(vec![], &at(), &memory), Some(Next::Bottom)));
    let undefined = vec![Cfi::Undefined(X86_64::RA)];
    assert!(matches!(step(undefined, &at(), &Pieces::default()), Some(Next::Bottom)));
}

#[test]
fn failures_are_told_apart() {
    let memory = Pieces::default().words(SP + 8, &[0x2222]);
    // The return address cannot be read.
    let lost = step(vec![], &at(), &Pieces::default());
    let Some(Next::Lost(UnwindError::Memory(e))) = lost else { panic!("{lost:?}") };
    assert_eq!(e, MemoryError::Unmapped { address: SP + 8, len: 1 });
    // One save slot cannot be read: that register is lost, the frame is not.
    let caller = caller(step(vec![Cfi::Offset(X86_64::RBX, -16)], &at(), &memory));
    assert_eq!((caller.registers.get(x64::RBX), caller.registers.get(x64::R12)), (None, Some(12)));
    // The CFA needs a register that is not known.
    let lost = step(vec![Cfi::Cfa(X86_64::R11, 8)], &at(), &memory);
    let Some(Next::Lost(e)) = lost else { panic!("{lost:?}") };
    assert_eq!(e, UnwindError::UnknownRegister { register: "r11" });
    // The expression never ends: DW_OP_skip -3.
    let endless = Expression::raw(vec![0x2f, 0xfd, 0xff]);
    let lost = step(vec![Cfi::CfaExpression(endless)], &at(), &memory);
    let Some(Next::Lost(UnwindError::BadCfi { address, object, .. })) = lost else { panic!("{lost:?}") };
    assert_eq!((address, object.as_str()), (PC, "made.so"));
    // The address is in no function.
    let outside = cursor(BIAS + 0x9000, &[(x64::RSP, SP)]);
    assert!(step(vec![], &outside, &memory).is_none());
}

#[test]
fn a_signal_frame_without_a_table_is_known_by_its_code() {
    let objects = Objects::from_parts(Vec::new());
    let unwinder = CfiUnwinder::new(&objects);
    let mut context: Vec<u64> = (0..40).map(|i| 0x100 + i).collect();
    context[28] = 0xa000;
    // The restorers of glibc and musl, and what an optimizing assembler makes of them.
    for code in x64::KERNEL.signal.returns {
        let memory = Pieces::default()
            .bytes(PC, code)
            .words(SP, &context)
            .words(0xa000 + 160, &(0..32).map(|i| 0x900 + i).collect::<Vec<u64>>());
        let syscall = PC + (code.len() - x64::SYSCALL.len()) as u64;
        for stop in [CodeAddress::Return(PC), CodeAddress::Exact(PC), CodeAddress::Exact(syscall)] {
            let mut at = cursor(stop.raw(), &[(x64::RSP, SP), (x64::RBX, 3)]);
            at.address = stop;
            let next = unwinder.step(&at, &memory);
            let Some(Next::Caller(caller, Trust::Recognised)) = next else { panic!("{stop:?} {next:?}") };
            assert!(unwinder.is_signal_frame(&at, &memory));
            assert!(!unwinder.is_signal_frame(&caller, &memory));
            assert_eq!(caller.address, CodeAddress::Exact(0x100 + 168 / 8));
            assert_eq!(caller.registers.get(x64::RAX), Some(0x100 + 144 / 8));
            assert_eq!(caller.registers.saved_at(x64::RAX), Some(SP + 144));
            assert_eq!(caller.registers.get(x64::XMM15), Some(0x900 + 30));
        }
    }
    // The first code makes system call 14, the second uses another instruction (int 0x80).
    for code in [&[0xb8, 0x0e, 0, 0, 0, 0x0f, 0x05][..], &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0xcd, 0x80]] {
        assert!(!is_sigreturn(Machine::X64, PC, &Pieces::default().bytes(PC, code)));
    }
    assert!(
        !is_sigreturn(Machine::X64, 0, &Pieces::default()) && !is_sigreturn(Machine::X64, u64::MAX, &Pieces::default())
    );
}

#[test]
fn entries_without_a_search_table_are_found_by_scanning() {
    // The functions are not in order, as after `ld -r`. The function at 0 was dropped by a linker.
    let functions = [(0x3000u64, 32), (0, 64), (FUNCTION, 16), (0x2000, 24)];
    let objects = objects(file(".eh_frame", &eh_frame(&functions.map(|(start, depth)| (start, 0x800, vec![depth])))));
    let unwinder = CfiUnwinder::new(&objects);
    let memory = Pieces::default().words(SP, &[1, 2, 3, 4]);
    let depth = |svma| match unwinder.step(&cursor(BIAS + svma, &[(x64::RSP, SP)]), &memory) {
        Some(Next::Caller(caller, _)) => caller.registers.sp().map(|sp| sp - SP),
        _ => None,
    };
    assert_eq!([0x1000, 0x17ff, 0x2000, 0x3001].map(depth), [Some(16), Some(16), Some(24), Some(32)]);
    assert_eq!([0x10, 0xfff, 0x1800, 0x3800].map(depth), [None; 4]);
}

#[test]
fn a_return_address_is_looked_up_before_it() {
    // The last instruction of the function is a call that does not return.
    let memory = Pieces::default().words(SP, &[0x11, 0x2222]);
    let objects = objects(file(".eh_frame", &tables(false, vec![]).0));
    let mut at = at();
    at.address = CodeAddress::Return(BIAS + FUNCTION + 0x100);
    at.registers.set(x64::RIP, at.address.raw());
    let unwinder = CfiUnwinder::new(&objects);
    assert_eq!(caller(unwinder.step(&at, &memory)).registers.pc(), Some(0x2222));
    at.address = CodeAddress::Exact(BIAS + FUNCTION + 0x100);
    assert!(unwinder.step(&at, &memory).is_none());
}

#[test]
fn a_table_that_marks_a_signal_frame_tells_where_its_caller_is_looked_up_and_no_more() {
    let objects = objects(file(".eh_frame", &tables(true, vec![]).0));
    let memory = Pieces::default().words(SP, &[0x11, 0x2222]);
    let unwinder = CfiUnwinder::new(&objects);
    let caller = caller(unwinder.step(&at(), &memory));
    assert_eq!(caller.address, CodeAddress::Exact(0x2222));
    // No kernel made that frame. corosensei marks the start of its coroutines in this way.
    assert!(!unwinder.is_signal_frame(&at(), &memory));
    assert!(unwinder.is_signal_frame(&at(), &Pieces::default().bytes(PC, x64::KERNEL.signal.returns[0])));
    // In a frame with such a mark no calling convention preserves registers: what the table does not name is not
    // known.
    assert_eq!((caller.registers.get(x64::RBX), caller.registers.sp()), (None, Some(CFA)));
}

#[test]
fn deep_recursion_parses_its_row_once() {
    let objects = objects(file(".eh_frame", &tables(false, vec![]).0));
    let depth = 20_000u64;
    let mut words: Vec<u64> = (0..2 * depth).map(|i| if i % 2 == 0 { i } else { PC }).collect();
    words.push(0);
    words.push(0);
    let memory = Pieces::default().words(SP, &words);
    let unwinder = CfiUnwinder::new(&objects);
    let stack = crate::unwind::walk(cursor(PC, &[(x64::RSP, SP)]), &[&unwinder], &memory, 100_000);
    assert_eq!((stack.frames.len() as u64, stack.end), (depth + 1, crate::unwind::End::Bottom));
    // There is one plan for the stop and one for the return address.
    assert_eq!(unwinder.plans.borrow().len(), 2);
}

#[test]
fn tables_expressions_and_what_is_kept_of_them_have_an_end() {
    let count = limits::MAX_UNWIND_ENTRIES as u64;
    let functions: Vec<_> = (1..=count + 1).map(|i| (i * 0x10, 0x10, vec![16])).collect();
    let objects =
        Objects::from_parts(vec![object("/lib/x", BIAS, (BIAS, BIAS << 1), file(".eh_frame", &eh_frame(&functions)))]);
    let unwinder = CfiUnwinder::new(&objects);
    let memory = Pieces::default().words(SP, &[0, 0x2222]);
    let step = |svma| unwinder.step(&cursor(BIAS + svma, &[(x64::RSP, SP)]), &memory).is_some();
    assert!(step(count * 0x10) && !step((count + 1) * 0x10));
    for i in 0..=limits::MAX_CACHED_ROWS as u64 {
        step(count * 0x20 + i);
        assert!(unwinder.plans.borrow().len() <= limits::MAX_CACHED_ROWS);
    }

    for (count, whole) in [(limits::MAX_FRAME_CHANGES, true), (limits::MAX_FRAME_CHANGES + 1, false)] {
        let depths = (0..count as i32).map(|i| 16 + i * 8).collect();
        let bytes = eh_frame(&[(FUNCTION, 0x10_0000, depths)]);
        let unwinder = CfiUnwinder::of_eh_frame("x".into(), (0, u64::MAX), bytes.into(), 0x3000);
        let changes = unwinder.changes(Machine::X64, FUNCTION);
        assert_eq!(changes.map(|c| c.len()), whole.then_some(count));
    }

    for (operations, found) in [(limits::MAX_EXPRESSION_STEPS, true), (limits::MAX_EXPRESSION_STEPS + 1, false)] {
        // The expression is a row of DW_OP_nop with DW_OP_breg7 16 at the end.
        let mut bytes = vec![0x96; operations as usize - 1];
        bytes.extend([0x77, 16]);
        let next = self::step(vec![Cfi::CfaExpression(Expression::raw(bytes))], &at(), &memory);
        assert_eq!(matches!(next, Some(Next::Caller(..))), found, "{operations}: {next:?}");
    }
}

proptest::proptest! {
    /// Whatever a file says, the answer is one of the possible answers and nothing panics.
    #[test]
    fn broken_tables_do_not_panic(
        flips in proptest::collection::vec((0usize..4096, 0u8..=255), 1..8),
        debug in proptest::bool::ANY,
        offset in 0u64..0x200,
    ) {
        let deref = expression(|e| {
            e.op_breg(X86_64::RSP, 32);
            e.op_deref();
        });
        let all = vec![
            Cfi::RememberState,
            Cfi::Offset(X86_64::RBX, -16),
            Cfi::CfaExpression(deref.clone()),
            Cfi::ValExpression(X86_64::RDI, deref),
            Cfi::RestoreState,
        ];
        let (eh_frame, debug_frame) = tables(false, all);
        let mut header = vec![1, 0x1b, 0x03, 0x3b];
        for word in [0x1000u32 - 4, 1, 0xffff_f000, 0x1018] {
            header.extend(word.to_le_bytes());
        }
        let table = if debug { (".debug_frame", debug_frame) } else { (".eh_frame", eh_frame) };
        let mut bytes = elf(&[
            Section { name: ".eh_frame_hdr", flags: 2, address: 0x2000, bytes: &header },
            Section { name: table.0, flags: 2, address: 0x3000, bytes: &table.1 },
        ]);
        let len = bytes.len();
        for (at, value) in flips {
            bytes[at % len] = value;
        }
        let objects = objects(bytes);
        let memory = Pieces::default().words(SP, &[0x11, 0x2222, 0x33, 0x44, SP]);
        let mut at = at();
        at.address = CodeAddress::Exact(BIAS + FUNCTION + offset);
        let _ = CfiUnwinder::new(&objects).step(&at, &memory);
        let _ = crate::symbolize::native::NativeSymbolizer::new(&objects).symbolize(at.address);
    }
}
