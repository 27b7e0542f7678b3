//! Turns the engine's types into those of the report.

use super::{Bits, End, EndKind, Engine, EngineSeen, Hex, Module, OpPosition, Trust, Value, Variable};
use crate::arch::Registers;
use crate::runtime::{self, Place, Position, Slot, Why};
use crate::unwind;
use crate::wasm::ValType;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

impl Value {
    /// The report's form of an engine value.
    pub fn new(index: u32, value: &runtime::Value) -> Value {
        let ty = value.ty;
        let index = Some(index);
        match &value.slot {
            Slot::Known { bits, place } => Value {
                index,
                ty,
                bits: Some(Bits(*bits)),
                value: Some(print(value.ty, *bits)),
                place: Some(place.clone()),
                address: match place {
                    Place::Register { saved_at, .. } => saved_at.map(Hex),
                    Place::Memory { address, .. } | Place::Address(address) => Some(Hex(*address)),
                    Place::Constant | Place::Other(_) => None,
                },
                why: None,
            },
            Slot::Unknown(why) => {
                Value { index, ty, bits: None, value: None, place: None, address: None, why: Some(why.clone()) }
            }
        }
    }

    /// The report's form of a list of engine values, or the reason why there is no list. The result goes into
    /// `locals` and `locals_why`, or into `stack` and `stack_why`.
    pub fn list(values: &Result<Vec<runtime::Value>, Why>) -> (Option<Vec<Value>>, Option<Why>) {
        match values {
            Ok(v) => (Some(v.iter().enumerate().map(|(i, v)| Value::new(i as u32, v)).collect()), None),
            Err(why) => (None, Some(why.clone())),
        }
    }
}

/// A value as it stands in a document.
#[derive(Deserialize)]
struct Written {
    index: Option<u32>,
    #[serde(rename = "type")]
    ty: Option<ValType>,
    bits: Option<Bits>,
    value: Option<String>,
    place: Option<String>,
    address: Option<Hex>,
    why: Option<Why>,
}

/// The text of a place in memory has no address, which is a key of its own.
impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Value, D::Error> {
        let Written { index, ty, bits, value, place, address, why } = Written::deserialize(d)?;
        let place = place.map(|text| Place::of_value(text, address.map(|hex| hex.0)));
        Ok(Value { index, ty, bits, value, place, address, why })
    }
}

/// An engine as it stands in a document.
#[derive(Deserialize)]
struct WrittenEngine {
    name: Engine,
    supported: Option<bool>,
    sure: Option<bool>,
    evidence: Option<String>,
}

/// Where it is not said whether the engine's modules are known, this version tells what it knows; and where it is not said
/// whether the evidence is proof, it is none.
impl<'de> Deserialize<'de> for EngineSeen {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<EngineSeen, D::Error> {
        let WrittenEngine { name, supported, sure, evidence } = WrittenEngine::deserialize(d)?;
        let supported = supported.unwrap_or_else(|| name.is_supported());
        Ok(EngineSeen { name, supported, sure: sure == Some(true), evidence: evidence.unwrap_or_default() })
    }
}

/// The text of a value, depending on its type. Integers are signed decimals, but an i64 of 2^31 or more in magnitude
/// is hexadecimal, because it is more often an address or a pattern than a count. References are the runtime's own
/// bits, or `null`. A value without a type is raw hexadecimal.
pub fn print(ty: Option<ValType>, bits: u128) -> String {
    match ty {
        Some(ValType::I32) => (bits as u32 as i32).to_string(),
        Some(ValType::I64) => {
            let v = bits as i64;
            if v.unsigned_abs() < 1 << 31 { v.to_string() } else { format!("{v:#x}") }
        }
        Some(ValType::F32) => {
            let v = f32::from_bits(bits as u32);
            if v.is_nan() { nan(v.is_sign_negative(), u64::from(v.to_bits() & 0x7f_ffff)) } else { format!("{v:?}") }
        }
        Some(ValType::F64) => {
            let v = f64::from_bits(bits as u64);
            if v.is_nan() { nan(v.is_sign_negative(), v.to_bits() & 0xf_ffff_ffff_ffff) } else { format!("{v:?}") }
        }
        Some(ty) if ty.is_reference() && bits == 0 => "null".to_string(),
        Some(ValType::V128 | ValType::FuncRef | ValType::ExternRef | ValType::Ref | ValType::NotKnown) | None => {
            format!("{bits:#x}")
        }
    }
}

/// A NaN as the text format writes it, always with its payload.
fn nan(negative: bool, payload: u64) -> String {
    format!("{}nan:{payload:#x}", if negative { "-" } else { "" })
}

/// The registers whose values are known, by name.
pub fn registers(registers: &Registers) -> BTreeMap<String, Hex> {
    registers.iter().map(|(reg, value)| (reg.name().to_string(), Hex(value))).collect()
}

impl Variable {
    /// The report's form of a variable of the source language.
    pub fn new(variable: &runtime::SourceVariable) -> Variable {
        let value = variable.value.as_ref().ok();
        Variable {
            name: Some(variable.name.clone()),
            ty: variable.ty.clone(),
            value: value.map(|value| value.text.clone()),
            bytes: value.map(|value| value.bytes.clone()),
            place: value.map(|value| value.place.clone()),
            why: variable.value.as_ref().err().cloned(),
        }
    }
}

impl Module {
    /// The report's form of a module that was found.
    pub fn new(index: u32, module: &runtime::GuestModule) -> Module {
        Module {
            index: Some(index),
            name: Some(module.name.clone()),
            code_start: Some(Hex(module.code.0)),
            code_end: Some(Hex(module.code.1)),
            functions: module.functions.map(|n| n as u64),
            tracked: module.tracked,
            backend: Some(module.backend.clone()),
            routes: module.routes.clone(),
            checks: module.checks.clone(),
            wasm_file: module.wasm_file.clone(),
            wasm_compared: module.wasm_compared,
            problem: module.problem.clone(),
        }
    }
}

impl From<unwind::Trust> for Trust {
    fn from(t: unwind::Trust) -> Trust {
        match t {
            unwind::Trust::Context => Trust::Context,
            unwind::Trust::Cfi => Trust::Cfi,
            unwind::Trust::Runtime => Trust::Runtime,
            unwind::Trust::Recognised => Trust::Recognised,
            unwind::Trust::Code => Trust::Code,
            unwind::Trust::FramePointer => Trust::FramePointer,
            unwind::Trust::Scan => Trust::Scan,
        }
    }
}

impl From<&unwind::End> for End {
    fn from(e: &unwind::End) -> End {
        match e {
            unwind::End::Bottom => End { kind: EndKind::Bottom, why: None },
            unwind::End::Lost(why) => End { kind: EndKind::Lost, why: Some(why.to_string()) },
            unwind::End::Cycle => End { kind: EndKind::Cycle, why: Some("the same frame came twice".to_string()) },
            unwind::End::Limit(n) => End { kind: EndKind::Limit, why: Some(format!("after {n} frames")) },
        }
    }
}

impl End {
    /// The end of a thread whose registers could not be read.
    pub fn no_registers(why: Option<&str>) -> End {
        End { kind: EndKind::NoRegisters, why: why.map(str::to_string) }
    }
}

impl OpPosition {
    /// The report's `op_index` and `op_position` for a position in the engine's form.
    pub fn of(position: Position) -> (Option<u64>, OpPosition) {
        match position {
            Position::Header => (None, OpPosition::Header),
            Position::Operator(n) => (Some(n), OpPosition::At),
            Position::After(n) => (Some(n), OpPosition::After),
            Position::Offset(_) => (None, OpPosition::At),
            Position::Unknown => (None, OpPosition::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x64;

    #[test]
    fn values_print_by_type() {
        let rows: &[(Option<ValType>, u128, &str)] = &[
            (Some(ValType::I32), 9, "9"),
            (Some(ValType::I32), 0xdead_beef_ffff_ffff, "-1"),
            (Some(ValType::I32), 0x8000_0000, "-2147483648"),
            (Some(ValType::I64), 99, "99"),
            (Some(ValType::I64), u128::from(-5i64 as u64), "-5"),
            (Some(ValType::I64), 0x7fff_ffff, "2147483647"),
            (Some(ValType::I64), 0x8000_0000, "0x80000000"),
            (Some(ValType::I64), 0x1111_1111_1111_1111, "0x1111111111111111"),
            (Some(ValType::I64), u128::from(i64::MIN as u64), "0x8000000000000000"),
            (Some(ValType::F32), 0xdead_beef_0000_0000 | u128::from(1.5f32.to_bits()), "1.5"),
            (Some(ValType::F32), 0x7fc0_0000, "nan:0x400000"),
            (Some(ValType::F32), 0xff80_0001, "-nan:0x1"),
            (Some(ValType::F64), u128::from(3.25f64.to_bits()), "3.25"),
            (Some(ValType::F64), u128::from(3f64.to_bits()), "3.0"),
            (Some(ValType::F64), u128::from((-0.0f64).to_bits()), "-0.0"),
            (Some(ValType::F64), u128::from(f64::NEG_INFINITY.to_bits()), "-inf"),
            (Some(ValType::F64), 0x7ff8_0000_0000_0000, "nan:0x8000000000000"),
            (Some(ValType::F64), u128::from(1e300f64.to_bits()), "1e300"),
            (Some(ValType::V128), 7, "0x7"),
            (Some(ValType::V128), u128::MAX, "0xffffffffffffffffffffffffffffffff"),
            (Some(ValType::I64), u128::from(u64::MAX) << 64 | 3, "3"),
            (Some(ValType::FuncRef), 0, "null"),
            (Some(ValType::ExternRef), 0x7f00_0010, "0x7f000010"),
            (None, 0x1_0000_0009, "0x100000009"),
        ];
        for (ty, bits, text) in rows {
            assert_eq!(&print(*ty, *bits), text, "{ty:?} {bits:#x}");
        }
    }

    #[test]
    fn raw_bits_stay_whole_and_the_save_slot_is_told() {
        let v = runtime::Value {
            ty: Some(ValType::I32),
            slot: Slot::Known {
                bits: 0xaaaa_aaaa_0000_0009,
                place: Place::Register { reg: x64::RBX, saved_at: Some(0x7ffd_0010) },
            },
        };
        let v = Value::new(3, &v);
        assert_eq!((v.index, v.value.as_deref(), v.bits), (Some(3), Some("9"), Some(Bits(0xaaaa_aaaa_0000_0009))));
        let place = v.place.map(|place| place.to_string());
        assert_eq!((place.as_deref(), v.address), (Some("rbx, saved at 0x7ffd0010"), Some(Hex(0x7ffd_0010))));
    }

    #[test]
    fn memory_places_have_a_signed_offset() {
        let place = |offset| Place::Memory { base: x64::RBP, offset, address: 0 }.to_string();
        assert_eq!(place(-0x28), "[rbp-0x28]");
        assert_eq!(place(0), "[rbp+0x0]");
        assert_eq!(place(i64::MIN), "[rbp-0x8000000000000000]");
    }

    #[test]
    fn a_missing_list_carries_its_reason() {
        assert_eq!(Value::list(&Err(Why::BetweenPoints)), (None, Some(Why::BetweenPoints)));
        assert_eq!(Value::list(&Ok(vec![])), (Some(vec![]), None));
    }
}
