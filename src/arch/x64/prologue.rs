//! How far the stack pointer is from the frame pointer, as the code of a function tells it.
//!
//! The kernel does not tell the rbp of a thread that was not stopped. Where a function's table counts from rbp, and
//! the function's callees had no reason to save rbp, the function's code still says how far rsp is from rbp: by the
//! pushes and subtractions behind `push rbp; mov rbp, rsp`, followed along the branches to the place where the
//! function stands.

use super::code::writes;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use std::collections::HashMap;

/// Bytes from rsp up to rbp after the last instruction of `code`. `code` is the beginning of the function at `start`.
pub fn distance(code: &[u8], start: u64) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut next = || {
        decoder.can_decode().then(|| {
            decoder.decode_out(&mut instruction);
            instruction
        })
    };
    let mut first = next()?;
    if first.mnemonic() == Mnemonic::Endbr64 {
        first = next()?;
    }
    let is = |i: &Instruction, mnemonic, register| i.mnemonic() == mnemonic && i.op0_register() == register;
    if !is(&first, Mnemonic::Push, Register::RBP) {
        return None;
    }
    let set = next()?;
    if !is(&set, Mnemonic::Mov, Register::RBP) || set.op1_register() != Register::RSP {
        return None;
    }
    let mut flow =
        Flow { depth: Some(0), body: None, at: HashMap::new(), broken: false, info: InstructionInfoFactory::new() };
    while let Some(instruction) = next() {
        flow.follow(&instruction)?;
    }
    u64::try_from(flow.depth?).ok()
}

/// How many bytes rsp is below rbp, followed along the code.
struct Flow {
    // The depth before the next instruction. `None` behind an epilogue, where rbp is the caller's again.
    depth: Option<i64>,
    // The depth at the first branch or call, which is the depth in the function's body.
    body: Option<i64>,
    // The depths at the addresses that were passed, and at those that branches lead to.
    at: HashMap<u64, Option<i64>>,
    // Whether the instruction before never goes on to the next one.
    broken: bool,
    info: InstructionInfoFactory,
}

impl Flow {
    /// Follows one instruction. `None` if the depth is not known any more.
    fn follow(&mut self, instruction: &Instruction) -> Option<()> {
        if instruction.is_invalid() {
            return None;
        }
        if std::mem::take(&mut self.broken) {
            self.depth = self.at.get(&instruction.ip()).copied().unwrap_or(self.body);
        }
        // Two ways lead to this place with different depths: a loop that moves rsp.
        if *self.at.entry(instruction.ip()).or_insert(self.depth) != self.depth {
            return None;
        }
        let control = instruction.flow_control();
        if !matches!(control, FlowControl::Call | FlowControl::IndirectCall) {
            self.depth = self.after(instruction)?;
        }
        if control != FlowControl::Next {
            self.body = self.body.or(self.depth);
        }
        if matches!(control, FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
            && *self.at.entry(instruction.near_branch_target()).or_insert(self.depth) != self.depth
        {
            return None;
        }
        self.broken = matches!(
            control,
            FlowControl::UnconditionalBranch
                | FlowControl::IndirectBranch
                | FlowControl::Return
                | FlowControl::Exception
        );
        Some(())
    }

    /// The depth after an instruction that is no call. The outer `None` says that the instruction moves rsp or rbp in a way
    /// that is not understood. The inner `None` says that rbp is the caller's again.
    fn after(&mut self, instruction: &Instruction) -> Option<Option<i64>> {
        let written = |register: Register| {
            move |used: &[iced_x86::UsedRegister]| {
                used.iter().any(|u| u.register().full_register() == register && writes(u.access()))
            }
        };
        let used = self.info.info(instruction).used_registers();
        let (stack, frame) = (written(Register::RSP)(used), written(Register::RBP)(used));
        let Some(depth) = self.depth else { return Some(None) };
        let mnemonic = instruction.mnemonic();
        if frame {
            return matches!(mnemonic, Mnemonic::Leave | Mnemonic::Pop).then_some(None);
        }
        if !stack || instruction.flow_control() == FlowControl::Return {
            return Some(Some(depth));
        }
        let by_number = instruction.op0_register() == Register::RSP
            && instruction.op_count() == 2
            && !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory);
        match mnemonic {
            Mnemonic::Push | Mnemonic::Pop => {
                depth.checked_sub(i64::from(instruction.stack_pointer_increment())).map(Some)
            }
            Mnemonic::Sub if by_number => depth.checked_add(instruction.immediate(1) as i64).map(Some),
            Mnemonic::Add if by_number => depth.checked_sub(instruction.immediate(1) as i64).map(Some),
            Mnemonic::Lea
                if instruction.memory_base() == Register::RBP && instruction.memory_index() == Register::None =>
            {
                (instruction.memory_displacement64() as i64).checked_neg().map(Some)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x40_1000;
    /// push rbp; mov rbp, rsp; push r15; push rbx; sub rsp, 0x20; test rdi, rdi
    const BEGIN: &[u8] = &[0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0x53, 0x48, 0x83, 0xec, 0x20, 0x48, 0x85, 0xff];
    const CALL: &[u8] = &[0xe8, 0, 1, 0, 0];
    /// add rsp, 0x20; pop rbx; pop r15; pop rbp; ret
    const END: &[u8] = &[0x48, 0x83, 0xc4, 0x20, 0x5b, 0x41, 0x5f, 0x5d, 0xc3];

    fn behind(parts: &[&[u8]]) -> Option<u64> {
        distance(&parts.concat(), START)
    }

    #[test]
    fn pushes_and_subtractions_count() {
        assert_eq!(behind(&[BEGIN, CALL]), Some(0x30));
        assert_eq!(behind(&[&[0xf3, 0x0f, 0x1e, 0xfa], BEGIN, CALL]), Some(0x30), "endbr64");
        // push 1; push 2; call; add rsp, 16; call
        assert_eq!(behind(&[BEGIN, &[0x6a, 1, 0x6a, 2], CALL]), Some(0x40));
        assert_eq!(behind(&[BEGIN, &[0x6a, 1, 0x6a, 2], CALL, &[0x48, 0x83, 0xc4, 16], CALL]), Some(0x30));
        // lea rsp, [rbp-0x10]
        assert_eq!(behind(&[BEGIN, CALL, &[0x48, 0x8d, 0x65, 0xf0]]), Some(0x10));
    }

    #[test]
    fn code_behind_an_end_has_what_leads_to_it() {
        assert_eq!(behind(&[BEGIN, CALL, END, CALL]), Some(0x30));
        // push 1; jne to the place behind the end, where the 1 is still pushed
        let jump = [0x6a, 1, 0x75, 4 + END.len() as u8];
        assert_eq!(behind(&[BEGIN, &jump, &[0x48, 0x83, 0xc4, 8], END, CALL]), Some(0x38));
        // Between pop rbp and ret, rbp is the caller's.
        assert_eq!(behind(&[BEGIN, CALL, &END[..END.len() - 1]]), None);
    }

    #[test]
    fn what_moves_by_an_unknown_amount_is_not_known() {
        assert_eq!(behind(&[BEGIN, &[0x48, 0x29, 0xc4], CALL]), None, "sub rsp, rax");
        assert_eq!(behind(&[BEGIN, &[0x48, 0x83, 0xe4, 0xe0], CALL]), None, "and rsp, -32");
        assert_eq!(behind(&[BEGIN, &[0x48, 0x83, 0xec, 8, 0x75, 0xfa], CALL]), None, "a loop that moves rsp");
        assert_eq!(behind(&[BEGIN, &[0x48, 0x89, 0xc5], CALL]), None, "mov rbp, rax");
        assert_eq!(behind(&[&BEGIN[4..], CALL]), None, "no frame pointer");
        assert_eq!(behind(&[BEGIN, &CALL[..4]]), None, "the middle of an instruction");
        assert_eq!(behind(&[]), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end_without_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = behind(&[&BEGIN[..4], &bytes]);
        }
    }
}
