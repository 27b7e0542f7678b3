//! Reads single pieces of code: calls, linkers' stubs, and entry points of programs.

use super::registers::{GENERAL, RBP, RDI};
use crate::arch::{CodeAddress, Reg};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpAccess, OpKind, Register};

/// Bytes of the longest call.
pub const LONGEST_CALL: usize = 8;

/// Where a piece of code leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The code goes on at this address.
    Address(u64),
    /// The code goes on at the address that is in the word at this address.
    Word(u64),
    /// Somewhere: the address is in a register or a table.
    Unknown,
}

/// The general register that `register` is, or is a part of.
pub(super) fn general(register: Register) -> Option<Reg> {
    let full = register.full_register();
    full.is_gpr64().then(|| GENERAL.get(full.number()).copied()).flatten()
}

/// Whether an access may change what is accessed.
pub(super) fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// The near calls that end right before `pc`, where `before` is the code that ends at `pc`. There can be several, because
/// the bytes before an address can be read in several ways. Calls are two to seven bytes long, eight with a prefix for
/// an extended index.
pub fn calls_before(pc: u64, before: &[u8]) -> impl Iterator<Item = Goal> {
    (2..=before.len().min(LONGEST_CALL)).filter_map(move |len| {
        let (start, bytes) = (pc.checked_sub(len as u64)?, before.get(before.len() - len..)?);
        let instruction = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE).decode();
        let is_call = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
        let is_near = is_call && !instruction.is_call_far_indirect();
        (is_near && instruction.next_ip() == pc).then(|| goal(&instruction))
    })
}

/// Where a call or a jump leads to.
fn goal(i: &Instruction) -> Goal {
    match i.op0_kind() {
        OpKind::NearBranch64 => Goal::Address(i.near_branch_target()),
        OpKind::Memory if i.is_ip_rel_memory_operand() => Goal::Word(i.ip_rel_memory_address()),
        _ => Goal::Unknown,
    }
}

/// The address of the word that says where the linker's stub at `start` leads to (`endbr64; bnd jmp [rip + x]`). `None` if
/// the code there is no stub.
pub fn stub(start: u64, code: &[u8]) -> Option<u64> {
    for i in Decoder::with_ip(64, code, start, DecoderOptions::NONE).into_iter().take(2) {
        match (i.mnemonic(), goal(&i)) {
            (Mnemonic::Endbr64, _) => {}
            (Mnemonic::Jmp, Goal::Word(address)) => return Some(address),
            _ => break,
        }
    }
    None
}

/// The `main` that the program's entry point at `entry` hands to the C library: the last address that it puts into rdi
/// before its call.
pub fn main(entry: u64, code: &[u8]) -> Option<Goal> {
    let mut main = None;
    for i in Decoder::with_ip(64, code, entry, DecoderOptions::NONE) {
        match i.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => break,
            FlowControl::Next => {}
            _ => return None,
        }
        if i.is_invalid() {
            return None;
        }
        if i.op_count() > 0 && i.op0_kind() == OpKind::Register && general(i.op0_register()) == Some(RDI) {
            main = match i.mnemonic() {
                Mnemonic::Lea if i.is_ip_rel_memory_operand() => Some(Goal::Address(i.ip_rel_memory_address())),
                Mnemonic::Mov if i.op1_kind() == OpKind::Memory && i.is_ip_rel_memory_operand() => {
                    Some(Goal::Word(i.ip_rel_memory_address()))
                }
                Mnemonic::Mov if !matches!(i.op1_kind(), OpKind::Register | OpKind::Memory) => {
                    Some(Goal::Address(i.immediate(1)))
                }
                _ => None,
            };
        }
    }
    main
}

/// Whether `at` is in the program's entry point at `entry`, which nobody called. An entry point first clears rbp, as the
/// ABI demands for the outermost frame, and its only call does not return.
pub fn is_entry(entry: u64, code: &[u8], at: CodeAddress) -> bool {
    let mut clears = false;
    for i in Decoder::with_ip(64, code, entry, DecoderOptions::NONE) {
        if i.is_invalid() {
            return false;
        }
        if at == CodeAddress::Exact(i.ip()) {
            return true;
        }
        clears |= i.mnemonic() == Mnemonic::Xor
            && general(i.op0_register()) == Some(RBP)
            && i.op1_register() == i.op0_register();
        match i.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => return clears && at == CodeAddress::Return(i.next_ip()),
            FlowControl::Next => {}
            _ => return false,
        }
    }
    false
}
