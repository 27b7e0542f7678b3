//! Parses the expressions that `wasm-print` understands:
//!
//! ```text
//! local 3       l3           a local
//! stack 0       s0           an operand, 0 is the lowest
//! global 2      g2           a global of the frame's instance
//! i32[0x400]    f64[l1]      a value in the linear memory: i8 u8 i16 u16 i32 u32 i64 u64 f32 f64
//! memory[s0]                 the same as u8
//! u32[8] @1                  in another memory than 0
//! ```

use crate::report::values::print;
use crate::wasm::ValType;

/// A parsed expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// A local, by index.
    Local(u32),
    /// An operand, by index from the bottom.
    Stack(u32),
    /// A global, by index, imported ones first.
    Global(u32),
    /// A value in a linear memory.
    Load {
        /// Index of the memory.
        memory: u32,
        /// Address of the value in that memory.
        address: Address,
        /// How the bytes at that address are read.
        ty: Load,
    },
}

/// An address in a linear memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address that is given as a number.
    Number(u64),
    /// The value of a local, by index.
    Local(u32),
    /// The value of an operand, by index from the bottom.
    Stack(u32),
}

/// How bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// An integer.
    Integer {
        /// Number of bytes of the integer.
        size: u64,
        /// Whether it is signed, in two's complement.
        signed: bool,
    },
    /// A float.
    F32,
    /// A double.
    F64,
}

impl Load {
    fn of(name: &str) -> Option<Load> {
        Some(match name {
            "f32" => Load::F32,
            "f64" => Load::F64,
            "memory" => Load::Integer { size: 1, signed: false },
            _ => {
                let size = match name.get(1..)? {
                    "8" => 1,
                    "16" => 2,
                    "32" => 4,
                    "64" => 8,
                    _ => return None,
                };
                match name.get(..1)? {
                    "i" => Load::Integer { size, signed: true },
                    "u" => Load::Integer { size, signed: false },
                    _ => return None,
                }
            }
        })
    }

    /// Number of bytes that are read.
    pub fn size(self) -> u64 {
        match self {
            Load::Integer { size, .. } => size,
            Load::F32 => 4,
            Load::F64 => 8,
        }
    }

    /// The text of a value whose little-endian bytes are `bytes`.
    pub fn print(self, bytes: &[u8]) -> String {
        let bits = bytes.iter().take(8).rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        match self {
            Load::F32 => print(Some(ValType::F32), bits.into()),
            Load::F64 => print(Some(ValType::F64), bits.into()),
            Load::Integer { signed: false, .. } => format!("{bits} ({bits:#x})"),
            Load::Integer { size, signed: true } => {
                let shift = 64 - 8 * size.clamp(1, 8) as u32;
                format!("{} ({bits:#x})", ((bits << shift) as i64) >> shift)
            }
        }
    }
}

fn index(text: &str) -> Option<u32> {
    text.trim().parse().ok()
}

/// The index in a text such as `local 3` or `l3`; `None` if the text has not this form.
fn named(text: &str, long: &str, short: &str) -> Option<u32> {
    let text = text.trim().trim_start_matches('$');
    let rest = text.strip_prefix(long).filter(|r| r.starts_with([' ', '[', '.']) || index(r).is_some());
    let rest = rest.or_else(|| text.strip_prefix(short))?;
    index(rest.trim().trim_start_matches(['[', '.']).trim_end_matches(']'))
}

/// Parses an expression. The error says what would be understood.
pub fn parse(text: &str) -> Result<Expression, String> {
    let usage = || format!("{text:?} is not understood; try: local 0, stack 0, global 0, i32[0x400], f64[l1]");
    let found = named(text, "local", "l").map(Expression::Local);
    let found = found.or_else(|| named(text, "stack", "s").map(Expression::Stack));
    if let Some(found) = found.or_else(|| named(text, "global", "g").map(Expression::Global)) {
        return Ok(found);
    }
    let (load, memory) = match text.rsplit_once('@') {
        Some((load, memory)) => (load.trim(), index(memory).ok_or_else(usage)?),
        None => (text.trim(), 0),
    };
    let (ty, inside) = load.strip_suffix(']').and_then(|l| l.split_once('[')).ok_or_else(usage)?;
    let ty = Load::of(ty.trim()).ok_or_else(usage)?;
    let inside = inside.trim();
    let given = match inside.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => inside.parse().ok(),
    };
    let address = given.map(Address::Number);
    let address = address.or_else(|| named(inside, "local", "l").map(Address::Local));
    let address = address.or_else(|| named(inside, "stack", "s").map(Address::Stack)).ok_or_else(usage)?;
    Ok(Expression::Load { memory, address, ty })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        for (text, expected) in [
            ("local 3", Expression::Local(3)),
            ("l3", Expression::Local(3)),
            ("$l3", Expression::Local(3)),
            ("local[3]", Expression::Local(3)),
            ("stack 0", Expression::Stack(0)),
            ("s0", Expression::Stack(0)),
            ("global 12", Expression::Global(12)),
            (" g12 ", Expression::Global(12)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        let load = |ty, address, memory| Ok(Expression::Load { memory, address, ty });
        let i32 = Load::Integer { size: 4, signed: true };
        assert_eq!(parse("i32[0x400]"), load(i32, Address::Number(0x400), 0));
        assert_eq!(parse("i32[ 12 ] @ 1"), load(i32, Address::Number(12), 1));
        assert_eq!(parse("memory[s1]"), load(Load::Integer { size: 1, signed: false }, Address::Stack(1), 0));
        assert_eq!(parse("f64[local 2]"), load(Load::F64, Address::Local(2), 0));
    }

    #[test]
    fn everything_else_is_told() {
        for text in
            ["", "x", "local", "local -1", "l", "i32", "i32[", "i33[0]", "i32[0x]", "i32[0]@", "é[0]", "l99999999999"]
        {
            assert!(parse(text).unwrap_err().contains("try: local 0"), "{text}");
        }
    }

    #[test]
    fn bytes_are_read_as_asked() {
        let print = |name: &str, bytes: &[u8]| Load::of(name).unwrap().print(bytes);
        assert_eq!(print("i8", &[0xff]), "-1 (0xff)");
        assert_eq!(print("u8", &[0xff]), "255 (0xff)");
        assert_eq!(print("i64", &[0xff; 8]), "-1 (0xffffffffffffffff)");
        assert_eq!(print("u16", &[1, 2]), "513 (0x201)");
        assert_eq!(print("f64", &2.5f64.to_le_bytes()), "2.5");
        assert_eq!(print("f32", &0.1f32.to_le_bytes()), "0.1");
    }
}
