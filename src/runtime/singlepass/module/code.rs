//! The shape of a compiled function: what its prologue and epilogue have already done at each instruction.
//!
//! singlepass lays every function out alike (`codegen_x64.rs: begin_body`, `machine.rs:
//! init_locals/finalize_locals`):
//!
//! ```text
//!  +0   jmp +37                     patch point: 32 nops, or a jump to a newer tier
//!  +37  push rbp
//!       mov  rbp, rsp
//!       [cmp [rdi+stack_lower_bound], rsp; trap if above]      only with enforce_stack_check
//!       [sub rsp, 8 * memory locals]
//!       push r12 / r13 / r14 / rbx  as many as there are locals, at most four
//!       push r15
//!       mov  home, argument         parameter by parameter
//!       mov  r15, rdi               vmctx
//!       mov  home, 0                the declared locals
//!       sub  rsp, 32
//!  body ...
//!       lea  rsp, [rbp - save area]; pop r15; pop rbx ...; mov rsp, rbp; pop rbp; [movq xmm0, rax]; ret
//!       ud2
//! ```
//!
//! State maps say nothing about prologue and epilogue, yet a sampled pc can lie in them. Then locals are not in their
//! homes yet, or not any more, and not all of the caller's registers are saved. The instructions themselves tell what
//! holds, so they are decoded. A function that does not decode to this shape is refused, and nothing is guessed about
//! it.

use crate::arch::{Reg, x64};
use crate::limits::MAX_PROLOGUE_BYTES;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Size of the patch point in bytes: a jump of 5 bytes over 32 nops of one byte (`begin_body`).
pub const PATCH_POINT: u64 = 37;
/// Homes of the first four locals, whether integer or float (`machine.rs: get_local_location`).
pub const REGISTER_HOMES: [Reg; 4] = [x64::R12, x64::R13, x64::R14, x64::RBX];

/// Where a local is kept in the body of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// The local is in this callee-saved register.
    Register(Reg),
    /// The local is at this (negative) byte offset from `rbp`.
    Frame(i64),
}

/// The home of local `index`, which is the same in all functions.
pub fn home(index: usize) -> Home {
    match REGISTER_HOMES.get(index) {
        Some(&r) => Home::Register(r),
        None => Home::Frame(-(((index - 3) * 8) as i64)),
    }
}

/// Where the value of a local is before the prologue has moved it home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialPlace {
    /// The value is in this argument register.
    Register(Reg),
    /// The value is an argument on the stack, at this byte offset from the CFA.
    Argument(i64),
    /// The local is no parameter but a declared one, whose value is zero by definition.
    Zero,
}

/// How the canonical frame address (CFA) is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cfa {
    /// The CFA is `rsp` plus this number.
    Rsp(i64),
    /// The CFA is `rbp` plus 16.
    Rbp,
}

/// What is known of the frame of a function whose pc is at a certain instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// How the frame address is computed here.
    pub cfa: Cfa,
    /// Whether the caller's `rbp` is saved at CFA-16. Otherwise it is still, or again, in the register.
    pub rbp_saved: bool,
    /// The stretch that the instruction belongs to.
    pub stretch: Stretch,
}

/// Which stretch of a function a pc is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// The prologue: moves of locals to their homes and the move of vmctx may be still to come.
    Prologue,
    /// The body: every local is in its home, and every preserved register is in its slot.
    Body,
    /// The epilogue, from the instruction behind the reset of `rsp` on.
    Epilogue,
}

/// A function whose prologue and epilogue were decoded. Offsets are bytes from the start of the function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Offset behind `push rbp`.
    pushed: u64,
    /// Offset behind `mov rbp, rsp`.
    framed: u64,
    /// For each local: the offset behind the instruction that brings it home, and where it comes from.
    moves: Vec<(u64, InitialPlace)>,
    /// Offset behind `mov r15, rdi`.
    vmctx: u64,
    /// Offset of the first instruction of the body.
    body: u64,
    /// Offsets behind `lea rsp, [rbp - save area]`, behind `pop rbp` and behind `ret`. `None` if there is no epilogue
    /// (a function that ends in an endless loop still has one; a cut-off function may not).
    epilogue: Option<(u64, u64, u64)>,
    /// Preserved registers in the order in which they are pushed, each with the byte offset of its slot from `rbp`.
    preserved: Vec<(Reg, i64)>,
    /// Offsets behind these pushes, in the same order.
    pushes: Vec<u64>,
}

fn gpr(r: Register) -> Option<Reg> {
    Some(match r {
        Register::RAX => x64::RAX,
        Register::RCX => x64::RCX,
        Register::RDX => x64::RDX,
        Register::RBX => x64::RBX,
        Register::RSP => x64::RSP,
        Register::RBP => x64::RBP,
        Register::RSI => x64::RSI,
        Register::RDI => x64::RDI,
        Register::R8 => x64::R8,
        Register::R9 => x64::R9,
        Register::R12 => x64::R12,
        Register::R13 => x64::R13,
        Register::R14 => x64::R14,
        Register::R15 => x64::R15,
        _ => return None,
    })
}

fn is_push(i: &Instruction, r: Register) -> bool {
    i.mnemonic() == Mnemonic::Push && i.op0_kind() == OpKind::Register && i.op0_register() == r
}

fn is_pop(i: &Instruction, r: Register) -> bool {
    i.mnemonic() == Mnemonic::Pop && i.op0_kind() == OpKind::Register && i.op0_register() == r
}

fn is_mov_rr(i: &Instruction, to: Register, from: Register) -> bool {
    i.mnemonic() == Mnemonic::Mov
        && i.op0_kind() == OpKind::Register
        && i.op1_kind() == OpKind::Register
        && i.op0_register() == to
        && i.op1_register() == from
}

/// The displacement `d` of a memory operand `[rbp + d]` without an index register.
fn rbp_memory(i: &Instruction) -> Option<i64> {
    (i.memory_base() == Register::RBP && i.memory_index() == Register::None).then(|| i.memory_displacement64() as i64)
}

fn is_home(i: &Instruction, home: Home) -> bool {
    match home {
        Home::Register(r) => i.op0_kind() == OpKind::Register && gpr(i.op0_register()) == Some(r),
        Home::Frame(d) => i.op0_kind() == OpKind::Memory && rbp_memory(i) == Some(d),
    }
}

fn immediate(i: &Instruction, operand: u32) -> Option<i64> {
    i.try_immediate(operand).ok().map(|v| v as i64)
}

/// The number `n` of an instruction `sub rsp, n`.
fn sub_rsp(i: &Instruction) -> Option<i64> {
    (i.mnemonic() == Mnemonic::Sub && i.op0_kind() == OpKind::Register && i.op0_register() == Register::RSP)
        .then(|| immediate(i, 1))
        .flatten()
}

impl Shape {
    /// Decodes a function from its bytes, which go from its start to the next function's start or the end of the
    /// code. `locals` is the number of locals that its state map lists.
    ///
    /// Errors say which instruction is not the expected one.
    pub fn decode(code: &[u8], locals: usize) -> Result<Shape, String> {
        let limit = code.len().min(MAX_PROLOGUE_BYTES);
        let start = PATCH_POINT as usize;
        if limit <= start {
            return Err(format!("the function has only {} bytes", code.len()));
        }
        let mut decoder = Decoder::with_ip(64, &code[start..limit], PATCH_POINT, DecoderOptions::NONE);
        let mut next = move || -> Result<Instruction, String> {
            let i = decoder.decode();
            if i.is_invalid() { Err(format!("no instruction at +{:#x}", i.ip())) } else { Ok(i) }
        };
        let unexpected =
            |i: &Instruction, wanted: &str| Err(format!("+{:#x} is `{:?}`, expected {wanted}", i.ip(), i.code()));

        let i = next()?;
        if !is_push(&i, Register::RBP) {
            return unexpected(&i, "push rbp");
        }
        let pushed = i.next_ip();
        let i = next()?;
        if !is_mov_rr(&i, Register::RBP, Register::RSP) {
            return unexpected(&i, "mov rbp, rsp");
        }
        let framed = i.next_ip();

        // The stack check is a compare, a jump to or around a trap, and the trap. Its length depends on how the
        // condition is encoded.
        let mut i = next()?;
        if i.mnemonic() == Mnemonic::Cmp {
            loop {
                i = next()?;
                if i.ip() > framed + 40 {
                    return unexpected(&i, "the end of the stack check");
                }
                if i.code() == Code::Ud2 {
                    i = next()?;
                    break;
                }
            }
        }

        let memory_locals = locals.saturating_sub(REGISTER_HOMES.len()) as i64;
        if memory_locals > 0 {
            if sub_rsp(&i) != Some(memory_locals * 8) {
                return unexpected(&i, "room for the locals in memory");
            }
            i = next()?;
        }
        let mut preserved = Vec::new();
        let mut pushes = Vec::new();
        let mut slot = -memory_locals * 8;
        for reg in REGISTER_HOMES.iter().take(locals).chain([&x64::R15]) {
            let pushed = i.mnemonic() == Mnemonic::Push
                && i.op0_kind() == OpKind::Register
                && gpr(i.op0_register()) == Some(*reg);
            if !pushed {
                return unexpected(&i, &format!("push {reg}"));
            }
            slot -= 8;
            preserved.push((*reg, slot));
            pushes.push(i.next_ip());
            i = next()?;
        }

        // Parameters are moved first, then vmctx, then the declared locals are set to zero.
        let mut moves = Vec::with_capacity(locals);
        let mut vmctx = None;
        while moves.len() < locals || vmctx.is_none() {
            if vmctx.is_none() && is_mov_rr(&i, Register::R15, Register::RDI) {
                vmctx = Some(i.next_ip());
            } else if moves.len() < locals && i.mnemonic() == Mnemonic::Mov {
                let index = moves.len();
                let argument = argument(index);
                let home = home(index);
                let source = if vmctx.is_some() {
                    (is_home(&i, home) && immediate(&i, 1) == Some(0)).then_some(InitialPlace::Zero)
                } else {
                    match argument {
                        InitialPlace::Register(r) => {
                            (is_home(&i, home) && i.op1_kind() == OpKind::Register && gpr(i.op1_register()) == Some(r))
                                .then_some(argument)
                        }
                        InitialPlace::Argument(d) => {
                            // The argument passes through rax if its home is in memory too.
                            let from_stack =
                                |i: &Instruction| i.op1_kind() == OpKind::Memory && rbp_memory(i) == Some(d + 16);
                            if is_home(&i, home) && from_stack(&i) {
                                Some(argument)
                            } else if i.op0_kind() == OpKind::Register
                                && i.op0_register() == Register::RAX
                                && from_stack(&i)
                            {
                                i = next()?;
                                (is_home(&i, home)
                                    && i.op1_kind() == OpKind::Register
                                    && i.op1_register() == Register::RAX)
                                    .then_some(argument)
                            } else {
                                None
                            }
                        }
                        InitialPlace::Zero => None,
                    }
                };
                match source {
                    Some(s) => moves.push((i.next_ip(), s)),
                    None => return unexpected(&i, &format!("the move of local {index} to its home")),
                }
            } else {
                return unexpected(&i, "a move of an argument, of vmctx or of zero");
            }
            i = next()?;
        }
        if sub_rsp(&i) != Some(32) {
            return unexpected(&i, "sub rsp, 32");
        }
        let body = i.next_ip();
        let epilogue = find_epilogue(code, &preserved);
        Ok(Shape { pushed, framed, moves, vmctx: vmctx.unwrap_or(body), body, epilogue, preserved, pushes })
    }

    /// What is known of the frame when the pc is `offset` bytes behind the function's start.
    pub fn at(&self, offset: u64) -> Here {
        if offset < self.pushed {
            return Here { cfa: Cfa::Rsp(8), rbp_saved: false, stretch: Stretch::Prologue };
        }
        if offset < self.framed {
            return Here { cfa: Cfa::Rsp(16), rbp_saved: true, stretch: Stretch::Prologue };
        }
        if offset < self.body {
            return Here { cfa: Cfa::Rbp, rbp_saved: true, stretch: Stretch::Prologue };
        }
        match self.epilogue {
            Some((_, popped, end)) if (popped..end).contains(&offset) => {
                Here { cfa: Cfa::Rsp(8), rbp_saved: false, stretch: Stretch::Epilogue }
            }
            Some((reset, popped, _)) if (reset..popped).contains(&offset) => {
                Here { cfa: Cfa::Rbp, rbp_saved: true, stretch: Stretch::Epilogue }
            }
            _ => Here { cfa: Cfa::Rbp, rbp_saved: true, stretch: Stretch::Body },
        }
    }

    /// Where local `index` is if the pc is in the prologue, before the instruction that moves it home. `None` if it
    /// is home.
    pub fn pending(&self, index: usize, offset: u64) -> Option<InitialPlace> {
        self.moves.get(index).filter(|(end, _)| offset < *end).map(|&(_, source)| source)
    }

    /// The register that holds vmctx at `offset`: `rdi` until the prologue has moved it to `r15`.
    pub fn vmctx(&self, offset: u64) -> Reg {
        if offset < self.vmctx { x64::RDI } else { x64::R15 }
    }

    /// Preserved registers in the order in which they are pushed, each with the byte offset of its slot from `rbp`.
    pub fn preserved(&self) -> &[(Reg, i64)] {
        &self.preserved
    }

    /// Offsets behind `push rbp` and behind `mov rbp, rsp`.
    pub fn entry(&self) -> (u64, u64) {
        (self.pushed, self.framed)
    }

    /// Offsets behind the pushes of [`Shape::preserved`], in the same order.
    pub fn pushes(&self) -> &[u64] {
        &self.pushes
    }

    /// For each local: the offset behind the instruction that brings it home, and where it comes from.
    pub fn moves(&self) -> &[(u64, InitialPlace)] {
        &self.moves
    }

    /// Offsets behind `lea rsp, [rbp - save area]`, behind `pop rbp` and behind `ret`; `None` if there is no
    /// epilogue.
    pub fn epilogue(&self) -> Option<(u64, u64, u64)> {
        self.epilogue
    }

    /// Offset of the first instruction of the body.
    pub fn body(&self) -> u64 {
        self.body
    }
}

/// Where argument `index` arrives (0-based, vmctx not counted; `machine.rs: get_param_location`). vmctx itself is in
/// rdi.
fn argument(index: usize) -> InitialPlace {
    const REGISTERS: [Reg; 5] = [x64::RSI, x64::RDX, x64::RCX, x64::R8, x64::R9];
    match REGISTERS.get(index) {
        Some(&r) => InitialPlace::Register(r),
        // [rbp + 16 + n] is [CFA + n].
        None => InitialPlace::Argument(((index - REGISTERS.len()) * 8) as i64),
    }
}

/// The only epilogue stands at the function's end, before a `ud2`. Returns the offsets behind `lea rsp`, behind `pop
/// rbp` and behind `ret`.
fn find_epilogue(code: &[u8], preserved: &[(Reg, i64)]) -> Option<(u64, u64, u64)> {
    // 64 bytes are enough: lea 8 + pops 2 * 5 + mov 3 + pop 2 + movq 5 + ret 1 + ud2 2, and alignment that a later
    // backend might add.
    let from = code.len().saturating_sub(64).max(PATCH_POINT as usize);
    (from..code.len()).find_map(|at| {
        let mut decoder = Decoder::with_ip(64, code.get(at..)?, at as u64, DecoderOptions::NONE);
        let lea = decoder.decode();
        let resets = lea.mnemonic() == Mnemonic::Lea
            && lea.op0_register() == Register::RSP
            && rbp_memory(&lea) == preserved.last().map(|&(_, d)| d);
        if !resets {
            return None;
        }
        for (reg, _) in preserved.iter().rev() {
            let i = decoder.decode();
            if i.mnemonic() != Mnemonic::Pop || gpr(i.op0_register()) != Some(*reg) {
                return None;
            }
        }
        if !is_mov_rr(&decoder.decode(), Register::RSP, Register::RBP) {
            return None;
        }
        let pop = decoder.decode();
        if !is_pop(&pop, Register::RBP) {
            return None;
        }
        let mut last = decoder.decode();
        if last.mnemonic() == Mnemonic::Movq {
            last = decoder.decode();
        }
        (last.mnemonic() == Mnemonic::Ret).then(|| (lea.next_ip(), pop.next_ip(), last.next_ip()))
    })
}

#[cfg(test)]
pub(in crate::runtime::singlepass) mod tests {
    use super::*;
    use crate::limits::MAX_SLOTS;

    /// A function with seven parameters and two declared locals, which needs every kind of move. The bytes are as the
    /// backend emits them.
    pub(in crate::runtime::singlepass) fn nine_locals() -> (Vec<u8>, Vec<u64>) {
        let instructions: &[&[u8]] = &[
            &[0x40, 0x55],                         // push rbp
            &[0x48, 0x89, 0xe5],                   // mov rbp, rsp
            &[0x48, 0x81, 0xec, 0x28, 0, 0, 0],    // sub rsp, 40
            &[0x41, 0x54],                         // push r12
            &[0x41, 0x55],                         // push r13
            &[0x41, 0x56],                         // push r14
            &[0x40, 0x53],                         // push rbx
            &[0x41, 0x57],                         // push r15
            &[0x49, 0x89, 0xf4],                   // mov r12, rsi
            &[0x49, 0x89, 0xd5],                   // mov r13, rdx
            &[0x49, 0x89, 0xce],                   // mov r14, rcx
            &[0x4c, 0x89, 0xc3],                   // mov rbx, r8
            &[0x4c, 0x89, 0x4d, 0xf8],             // mov [rbp-8], r9
            &[0x48, 0x8b, 0x45, 0x10],             // mov rax, [rbp+16]
            &[0x48, 0x89, 0x45, 0xf0],             // mov [rbp-16], rax
            &[0x48, 0x8b, 0x45, 0x18],             // mov rax, [rbp+24]
            &[0x48, 0x89, 0x45, 0xe8],             // mov [rbp-24], rax
            &[0x49, 0x89, 0xff],                   // mov r15, rdi
            &[0x48, 0xc7, 0x45, 0xe0, 0, 0, 0, 0], // mov qword [rbp-32], 0
            &[0x48, 0xc7, 0x45, 0xd8, 0, 0, 0, 0], // mov qword [rbp-40], 0
            &[0x48, 0x81, 0xec, 0x20, 0, 0, 0],    // sub rsp, 32
            &[0x90],                               // body
            &[0x48, 0x8d, 0x65, 0xb0],             // lea rsp, [rbp-80]
            &[0x41, 0x5f],                         // pop r15
            &[0x40, 0x5b],                         // pop rbx
            &[0x41, 0x5e],                         // pop r14
            &[0x41, 0x5d],                         // pop r13
            &[0x41, 0x5c],                         // pop r12
            &[0x48, 0x89, 0xec],                   // mov rsp, rbp
            &[0x40, 0x5d],                         // pop rbp
            &[0x66, 0x48, 0x0f, 0x6e, 0xc0],       // movq xmm0, rax
            &[0xc3],                               // ret
            &[0x0f, 0x0b],                         // ud2
        ];
        let mut code = vec![0xe9, 0x20, 0, 0, 0];
        code.resize(37, 0x90);
        let mut at = Vec::new();
        for i in instructions {
            at.push(code.len() as u64);
            code.extend_from_slice(i);
        }
        (code, at)
    }

    #[test]
    fn every_instruction_of_prologue_and_epilogue_is_known() {
        let (code, at) = nine_locals();
        let s = Shape::decode(&code, 9).unwrap();
        assert_eq!(s.body(), at[21]);
        assert_eq!(
            s.preserved(),
            [(x64::R12, -48), (x64::R13, -56), (x64::R14, -64), (x64::RBX, -72), (x64::R15, -80)]
        );
        let row = |o: u64| (s.at(o).cfa, s.at(o).rbp_saved, s.at(o).stretch);
        assert_eq!(row(0), (Cfa::Rsp(8), false, Stretch::Prologue));
        assert_eq!(row(at[0]), (Cfa::Rsp(8), false, Stretch::Prologue));
        assert_eq!(row(at[1]), (Cfa::Rsp(16), true, Stretch::Prologue));
        assert_eq!(row(at[2]), (Cfa::Rbp, true, Stretch::Prologue));
        assert_eq!(row(at[20]), (Cfa::Rbp, true, Stretch::Prologue));
        assert_eq!(row(at[21]), (Cfa::Rbp, true, Stretch::Body));
        assert_eq!(row(at[22]), (Cfa::Rbp, true, Stretch::Body));
        for &pop in &at[23..=29] {
            assert_eq!(row(pop), (Cfa::Rbp, true, Stretch::Epilogue), "at {pop:#x}");
        }
        assert_eq!(row(at[30]), (Cfa::Rsp(8), false, Stretch::Epilogue));
        assert_eq!(row(at[31]), (Cfa::Rsp(8), false, Stretch::Epilogue));
        assert_eq!(row(at[32]), (Cfa::Rbp, true, Stretch::Body), "ud2 behind ret is never reached by falling through");
    }

    #[test]
    fn a_local_is_at_its_source_until_its_move_has_been_executed() {
        let (code, at) = nine_locals();
        let s = Shape::decode(&code, 9).unwrap();
        assert_eq!(s.pending(0, 0), Some(InitialPlace::Register(x64::RSI)));
        assert_eq!(s.pending(0, at[8]), Some(InitialPlace::Register(x64::RSI)));
        assert_eq!(s.pending(0, at[9]), None);
        assert_eq!(s.pending(4, at[12]), Some(InitialPlace::Register(x64::R9)));
        // Local 5 passes through rax: it is home only after the second move.
        assert_eq!(s.pending(5, at[14]), Some(InitialPlace::Argument(0)));
        assert_eq!(s.pending(5, at[15]), None);
        assert_eq!(s.pending(6, at[16]), Some(InitialPlace::Argument(8)));
        assert_eq!(s.pending(8, at[19]), Some(InitialPlace::Zero));
        assert_eq!(s.pending(8, at[20]), None);
        assert_eq!((s.vmctx(at[17]), s.vmctx(at[18])), (x64::RDI, x64::R15));
    }

    #[test]
    fn another_shape_is_refused_with_the_instruction() {
        let (code, at) = nine_locals();
        assert!(Shape::decode(&code, 8).unwrap_err().contains("room for the locals"));
        let mut broken = code.clone();
        broken[at[8] as usize..at[9] as usize].copy_from_slice(&[0x49, 0x89, 0xd4]); // mov r12, rdx
        assert!(Shape::decode(&broken, 9).unwrap_err().contains("local 0"));
        for len in 0..code.len() {
            let _ = Shape::decode(&code[..len], 9);
        }
        assert!(Shape::decode(&code[..at[15] as usize], 9).is_err());
    }

    #[test]
    fn homes_are_fixed() {
        assert_eq!(
            (0..6).map(home).collect::<Vec<_>>(),
            [
                Home::Register(x64::R12),
                Home::Register(x64::R13),
                Home::Register(x64::R14),
                Home::Register(x64::RBX),
                Home::Frame(-8),
                Home::Frame(-16),
            ]
        );
    }

    #[test]
    fn a_prologue_has_an_end() {
        // All locals are declared ones: as many as a function may have, and more than fit into the limit.
        for (locals, whole) in [(MAX_SLOTS, true), (MAX_PROLOGUE_BYTES / 11, false)] {
            let mut code = vec![0x90; PATCH_POINT as usize];
            // push rbp; mov rbp, rsp; sub rsp, n
            code.extend([0x40, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x81, 0xec]);
            code.extend(((locals as i32 - 4) * 8).to_le_bytes());
            // push r12, r13, r14, rbx, r15; mov r15, rdi
            code.extend([0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x40, 0x53, 0x41, 0x57, 0x49, 0x89, 0xff]);
            for register in [[0x49, 0xc7, 0xc4], [0x49, 0xc7, 0xc5], [0x49, 0xc7, 0xc6], [0x48, 0xc7, 0xc3]] {
                code.extend([&register[..], &[0; 4]].concat());
            }
            for local in 4..locals as i32 {
                code.extend([0x48, 0xc7, 0x85]);
                code.extend([(3 - local) * 8, 0].map(i32::to_le_bytes).concat());
            }
            code.extend([0x48, 0x81, 0xec, 0x20, 0, 0, 0, 0x90]);
            match Shape::decode(&code, locals) {
                Ok(shape) => assert!(whole && shape.moves.len() == locals),
                Err(why) => assert!(!whole && why.contains("no instruction"), "{why}"),
            }
        }
    }
}
