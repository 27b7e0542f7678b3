//! The constants in a function's machine code.

use crate::wasm::constants::{Constant, Use};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The constants in machine code, to compare it with the constants of the Wasm that it may have been made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Immediates {
    /// Immediates in the order of the code, sign-extended. Those of stack adjustments are left out.
    ordered: Vec<u64>,
    /// The values of `ordered`, the displacements of memory accesses other than to the stack, and the words of the
    /// constants behind the code.
    all: HashSet<u64>,
    /// Hash of the instructions, except for where the code lies and where jumps and calls lead to.
    pub fingerprint: u64,
}

impl Immediates {
    /// Finds the constants in the code of one function. Bytes that cannot be decoded are skipped.
    pub fn of(code: &[u8]) -> Immediates {
        let mut out = Immediates::default();
        let mut hash = DefaultHasher::new();
        let mut end = code.len();
        let mut tables = Tables::default();
        let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
        while decoder.can_decode() && decoder.position() < end {
            let at = decoder.position();
            let behind = tables.skip(code, at);
            if behind > at && decoder.set_position(behind).is_ok() {
                decoder.set_ip(behind as u64);
                continue;
            }
            let i = decoder.decode();
            if i.is_invalid() {
                continue;
            }
            tables.see(&i);
            i.code().hash(&mut hash);
            let on_stack = |r: Register| matches!(r.full_register(), Register::RSP | Register::RBP);
            let adjusts = matches!(i.mnemonic(), Mnemonic::Add | Mnemonic::Sub | Mnemonic::And)
                && i.op0_kind() == OpKind::Register
                && on_stack(i.op0_register());
            let leads = i.flow_control() != FlowControl::Next && i.flow_control() != FlowControl::Interrupt;
            for n in 0..i.op_count() {
                let kind = i.op_kind(n);
                (kind as u32).hash(&mut hash);
                match kind {
                    OpKind::Register => i.op_register(n).hash(&mut hash),
                    // This instruction loads the address of a jump table in the middle of the code.
                    OpKind::Memory if i.is_ip_rel_memory_operand() && i.mnemonic() == Mnemonic::Lea => {}
                    OpKind::Memory if i.is_ip_rel_memory_operand() => {
                        // The compiler puts constants that instructions load behind the code, so the code ends before
                        // the first of them.
                        let target = usize::try_from(i.ip_rel_memory_address()).unwrap_or(usize::MAX);
                        if target > at && target < end {
                            end = target;
                        }
                    }
                    OpKind::Memory => {
                        let displacement = i.memory_displacement64();
                        (i.memory_base(), i.memory_index(), i.memory_index_scale(), displacement).hash(&mut hash);
                        if !on_stack(i.memory_base()) {
                            out.all.insert(displacement);
                            out.all.insert(i64::from(displacement as i32) as u64);
                        }
                    }
                    _ => {
                        if let (Ok(value), false) = (i.try_immediate(n), leads) {
                            value.hash(&mut hash);
                            if !adjusts {
                                out.ordered.push(value);
                                out.all.insert(value);
                            }
                        }
                    }
                }
            }
        }
        if let Some(pool) = code.get(end..) {
            pool.hash(&mut hash);
            for word in pool.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])) {
                out.all.insert(word.into());
            }
            for word in pool.windows(8).step_by(4) {
                out.all.extend(word.first_chunk::<8>().map(|w| u64::from_le_bytes(*w)));
            }
        }
        out.fingerprint = hash.finish();
        out
    }

    /// The first constant that the code lacks. `uses` are constants that singlepass writes into the code of
    /// operators, in order: the constants of each operator come behind those of the operators before it. `None` if
    /// the code has all of them.
    pub fn lacks(&self, uses: &[Use]) -> Option<Constant> {
        let mut from = 0;
        for one in uses {
            let rest = self.ordered.get(from..).unwrap_or_default();
            let mut behind = 0;
            for constant in &one.constants {
                match rest.iter().position(|value| is(*value, constant)) {
                    Some(at) => behind = behind.max(at + 1),
                    None => return Some(*constant),
                }
            }
            from += behind;
        }
        None
    }

    /// Whether the constant is in the code as it is.
    pub fn has(&self, constant: &Constant) -> bool {
        let low = constant.bits as u32;
        self.all.contains(&constant.bits)
            || (!constant.wide && (self.all.contains(&(low as i32 as u64)) || self.all.contains(&u64::from(low))))
    }

    /// Whether the code has the constant, or a value that an optimizer may have made from it.
    pub fn has_trace(&self, constant: &Constant) -> bool {
        let value = if constant.wide { constant.bits } else { i64::from(constant.bits as i32) as u64 };
        let power = value.is_power_of_two().then(|| u64::from(value.trailing_zeros()));
        let forms =
            [Some(value.wrapping_add(1)), Some(value.wrapping_sub(1)), Some(value.wrapping_neg()), Some(!value), power];
        let with = |bits| Constant { bits: if constant.wide { bits } else { bits & 0xffff_ffff }, ..*constant };
        self.has(constant) || forms.into_iter().flatten().any(|bits| self.has(&with(bits)))
    }
}

/// Tables in the code that are not instructions. Cranelift puts the distances to the targets of a `br_table` (4 bytes
/// each) behind its jump, and the code goes on behind the table. Singlepass has a row of jumps there, which are
/// instructions.
#[derive(Default)]
struct Tables {
    /// The last address that was loaded with `lea`, and the register that holds it.
    loaded: Option<(u64, Register)>,
    /// Offsets at which tables begin.
    starts: BTreeSet<usize>,
}

impl Tables {
    /// Looks at an instruction to find out where tables are. Cranelift reads a table as `lea base, [rip + table];
    /// movsxd distance, [base + index * 4]`.
    fn see(&mut self, i: &Instruction) {
        if i.mnemonic() == Mnemonic::Lea && i.is_ip_rel_memory_operand() {
            self.loaded = Some((i.ip_rel_memory_address(), i.op0_register()));
        } else if let Some((start, base)) = self.loaded
            && (i.mnemonic(), i.memory_base(), i.memory_index_scale()) == (Mnemonic::Movsxd, base, 4)
            && i.memory_displacement64() == 0
        {
            self.starts.extend(usize::try_from(start));
        }
    }

    /// The offset at which the table at `at` ends: at the first of its targets behind the table, or at the first word
    /// that leads nowhere in the code. Returns `at` if there is no table at `at`.
    fn skip(&self, code: &[u8], at: usize) -> usize {
        if !self.starts.contains(&at) {
            return at;
        }
        let (mut behind, mut first) = (at, code.len());
        while behind < first
            && let Some(word) = code.get(behind..).and_then(|rest| rest.first_chunk::<4>())
            && let Some(target) = at.checked_add_signed(i32::from_le_bytes(*word) as isize)
            && target < code.len()
        {
            behind += 4;
            if target >= behind {
                first = first.min(target);
            }
        }
        behind
    }
}

fn is(value: u64, constant: &Constant) -> bool {
    if constant.wide { value == constant.bits } else { value as u32 == constant.bits as u32 }
}

/// Whether code often has the constant for other reasons too: sizes of words and pages, masks, numbers of bits.
pub fn is_common(constant: &Constant) -> bool {
    let value = if constant.wide { constant.bits.cast_signed() } else { i64::from(constant.bits as i32) };
    let magnitude = value.unsigned_abs();
    magnitude <= 4 || magnitude.is_power_of_two() || magnitude.wrapping_add(1).is_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(bits: u64, wide: bool) -> Constant {
        Constant { operator: 0, bits, wide }
    }

    fn uses(groups: &[&[u64]]) -> Vec<Use> {
        let group = |g: &&[u64]| Use { constants: g.iter().map(|&bits| constant(bits, false)).collect() };
        groups.iter().map(group).collect()
    }

    /// The code of `push rbp; mov rbp, rsp; sub rsp, 0x40; mov eax, 5; add ecx, -9; cmp [rdi+0x1234], eax; mov rax,
    /// 0x1122334455667788; movsd xmm0, [rip+0]`, and the constant 2.5 behind it.
    const CODE: &[u8] = &[
        0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x40, 0xb8, 5, 0, 0, 0, 0x83, 0xc1, 0xf7, 0x39, 0x87, 0x34, 0x12, 0,
        0, 0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xf2, 0x0f, 0x10, 0x05, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 4, 0x40,
    ];

    #[test]
    fn constants_are_found_wherever_code_has_them() {
        let code = Immediates::of(CODE);
        let there = [
            constant(5, false),
            constant(5, true),
            constant(-9i32 as u32 as u64, false),
            constant(-9i64 as u64, true),
            constant(0x1122_3344_5566_7788, true),
            constant(2.5f64.to_bits(), true),
            constant(0x1234, true),
        ];
        assert!(there.iter().all(|c| code.has(c)), "{code:?}");
        assert!(![0x40, 6, 0x55667788].iter().any(|&c| code.has(&constant(c, false))), "{code:?}");
        assert!(code.has_trace(&constant(6, false)) && code.has_trace(&constant(9, true)));
        assert!(code.has_trace(&constant(32, false)) && !code.has_trace(&constant(700, false)));
    }

    /// Constants behind a `br_table` are found, in the code of both compilers.
    #[test]
    fn constants_behind_a_table_are_found() {
        // lea rcx, [rip+9]; movsxd rax, dword [rcx+rdi*4]; add rcx, rax; jmp rcx; a table of three; mov eax, 5; ret
        let cranelift: &[u8] = &[
            0x48, 0x8d, 0x0d, 9, 0, 0, 0, 0x48, 0x63, 0x04, 0xb9, 0x48, 0x01, 0xc1, 0xff, 0xe1, // three distances
            12, 0, 0, 0, 0xf0, 0xff, 0xff, 0xff, 17, 0, 0, 0, 0xb8, 5, 0, 0, 0, 0xc3,
        ];
        // lea rcx, [rip+9]; imul rdx, rdi, 5; add rdx, rcx; jmp rdx; jmp +5; jmp +0; mov eax, 5; ret
        let singlepass: &[u8] = &[
            0x48, 0x8d, 0x0d, 9, 0, 0, 0, 0x48, 0x6b, 0xd7, 5, 0x48, 0x01, 0xca, 0xff, 0xe2, // two jumps
            0xe9, 5, 0, 0, 0, 0xe9, 0, 0, 0, 0, 0xb8, 5, 0, 0, 0, 0xc3,
        ];
        let found = Immediates::of(cranelift);
        assert_eq!(found.ordered, [5]);
        assert_eq!(Immediates::of(singlepass).ordered, [5, 5]);
        // The distances in the table are not part of what the code does, but a constant behind the table is.
        let mut other = cranelift.to_vec();
        other[29] = 6;
        assert_ne!(Immediates::of(&other).fingerprint, found.fingerprint);
        // A table that would go on beyond the code ends with the code.
        for length in 16..cranelift.len() {
            let cut = Immediates::of(&cranelift[..length]);
            assert!(cut.ordered.len() <= 1, "{length}: {cut:?}");
        }
    }

    #[test]
    fn constants_come_in_the_order_of_operators() {
        let code = Immediates { ordered: vec![1, 7, 5, 5, 9], ..Immediates::default() };
        for (groups, lacks) in [
            (&[&[7][..], &[5], &[9]][..], None),
            (&[&[7, 5], &[5, 9]], None),
            (&[&[5, 7], &[9, 5]], None),
            (&[&[5, 7]], None),
            (&[&[9], &[5]], Some(5)),
            (&[&[5], &[7]], Some(7)),
            (&[&[5], &[5], &[5]], Some(5)),
            (&[&[8]], Some(8)),
            (&[], None),
        ] {
            assert_eq!(code.lacks(&uses(groups)).map(|c| c.bits), lacks, "{groups:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_of_what_code_does() {
        let of = |code: &[u8]| Immediates::of(code).fingerprint;
        // call +0; jmp +2; mov eax, 5
        let code = [0xe8, 0, 0, 0, 0, 0xeb, 2, 0xb8, 5, 0, 0, 0];
        let (mut elsewhere, mut other) = (code, code);
        (elsewhere[1], elsewhere[6], other[8]) = (7, 3, 6);
        assert_eq!(of(&code), of(&elsewhere));
        assert_ne!(of(&code), of(&other));
    }
}
