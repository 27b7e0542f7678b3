//! Finds where a variable is at one address of the code, and reads its bytes.

use gimli::{
    AttributeValue, Evaluation, EvaluationResult, Expression, Location, Piece, Reader, UnitOffset, Value, ValueType,
};

use super::sections::Slice;
use super::units::{Attribute, Entry, Unit, Units};
use crate::arch::{Reg, Registers, x64};
use crate::limits::{MAX_EXPRESSION_STEPS, MAX_LOCATIONS, MAX_REFERENCE_DEPTH};
use crate::process::Memory;
use crate::runtime::Why;

/// Bytes from the frame's address within which memory is printed as a part of the frame.
const FRAME_REACH: u64 = 1 << 20;

/// What the expressions of one frame are evaluated with.
pub(super) struct Frame<'a> {
    /// Address of the code where the frame is, as the relocated debug information counts.
    pub(super) address: u64,
    pub(super) registers: &'a Registers,
    pub(super) cfa: Option<u64>,
    pub(super) memory: &'a dyn Memory,
    /// `DW_AT_frame_base` of the function.
    pub(super) frame_base: Option<Attribute>,
}

/// Where a variable is.
pub(super) enum Located {
    /// The variable is in one place, or in several pieces.
    Pieces(Vec<Piece<Slice>>),
    /// The compiler knew the value, which is a constant.
    Constant(Attribute),
}

fn why(reason: impl Into<String>) -> Why {
    Why::other(reason)
}

fn broken(e: gimli::Error) -> Why {
    Why::Other(format!("the debug information is broken: {e}"))
}

impl Frame<'_> {
    fn register(&self, register: gimli::Register) -> Result<(Reg, u64), Why> {
        let reg = self.registers.machine().from_dwarf(register.0);
        let reg =
            reg.ok_or_else(|| why(format!("it is in DWARF register {}, which wstate does not read", register.0)))?;
        let value = self.registers.get(reg);
        Ok((reg, value.ok_or(Why::RegisterUnknown(reg))?))
    }

    fn cfa(&self) -> Result<u64, Why> {
        self.cfa.ok_or_else(|| why("the address of this frame is not known"))
    }

    fn read(&self, address: u64, len: usize) -> Result<Vec<u8>, Why> {
        let bytes = self.memory.read_vec(address, len);
        bytes.map_err(|_| Why::Unreadable { address })
    }

    /// The text for an address: `[fp-0x10]` if it is in the frame, else the address itself.
    fn name(&self, address: u64) -> String {
        let Some(cfa) = self.cfa else { return format!("[{address:#x}]") };
        let lowest = self.registers.sp().unwrap_or(0).max(cfa.saturating_sub(FRAME_REACH));
        if address < lowest || address >= cfa.saturating_add(FRAME_REACH) {
            return format!("[{address:#x}]");
        }
        // Every function of Wasmtime keeps the frame pointer, which is two words below the CFA once it is set.
        let fp = self.registers.get(x64::RBP).filter(|fp| fp.checked_add(16) == Some(cfa));
        let (base, name) = fp.map_or((cfa, "cfa"), |fp| (fp, "fp"));
        if address < base {
            format!("[{name}-{:#x}]", base - address)
        } else {
            format!("[{name}+{:#x}]", address - base)
        }
    }
}

/// Where the variable is at the frame's address.
pub(super) fn locate(units: &Units, variable: &Entry, frame: &Frame<'_>) -> Result<Located, Why> {
    let own = variable.die.attr_value(gimli::DW_AT_location).map(|value| (variable.unit.clone(), value));
    if let Some((unit, value)) = own {
        return described(units, &unit, value, frame).map(Located::Pieces);
    }
    match units.inherited(variable, gimli::DW_AT_const_value) {
        Some((_, value)) => Ok(Located::Constant(value)),
        None => Err(why("optimized out: no place is described")),
    }
}

fn described(units: &Units, unit: &Unit, value: Attribute, frame: &Frame<'_>) -> Result<Vec<Piece<Slice>>, Why> {
    let expression = expression_at(units, unit, value, frame.address)?;
    evaluate(units, unit, expression, frame, true)
}

/// The expression that a location attribute has for an address.
fn expression_at(units: &Units, unit: &Unit, value: Attribute, address: u64) -> Result<Expression<Slice>, Why> {
    if let AttributeValue::Exprloc(expression) = value {
        return Ok(expression);
    }
    let list = units.dwarf.attr_locations(&unit.unit, value).map_err(broken)?;
    let mut list = list.ok_or_else(|| why("its place is described in an unknown form"))?;
    // The ranges are read one by one, because gimli's `next` skips any number of empty ranges at once.
    for _ in 0..MAX_LOCATIONS {
        let Some(raw) = list.next_raw().map_err(broken)? else { return Err(Why::OptimizedOut) };
        let Some(entry) = list.convert_raw(raw).map_err(broken)? else { continue };
        if entry.range.begin <= address && address < entry.range.end {
            return Ok(entry.data);
        }
    }
    Err(why("its places are too many to look at"))
}

/// Evaluates an expression for a frame. `based`: the expression may refer to the frame's base, which the expression
/// of the base itself may not do.
fn evaluate(
    units: &Units,
    unit: &Unit,
    expression: Expression<Slice>,
    frame: &Frame<'_>,
    based: bool,
) -> Result<Vec<Piece<Slice>>, Why> {
    let encoding = unit.unit.encoding();
    if encoding.address_size != 8 {
        return Err(why("the debug information has addresses of another size"));
    }
    // An empty expression says that the variable is nowhere; to evaluate it would be a mistake.
    if expression.0.is_empty() {
        return Err(Why::OptimizedOut);
    }
    let mut evaluation = Evaluation::new(expression.0, encoding);
    evaluation.set_max_iterations(MAX_EXPRESSION_STEPS);
    let mut state = evaluation.evaluate().map_err(broken)?;
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresMemory { address, size, space: None, base_type } if (1..=8).contains(&size) => {
                let mut bytes = frame.read(address, usize::from(size))?;
                bytes.resize(8, 0);
                let value = typed(unit, base_type, &bytes)?;
                evaluation.resume_with_memory(value)
            }
            EvaluationResult::RequiresRegister { register, base_type } => {
                let (_, value) = frame.register(register)?;
                let value = typed(unit, base_type, &value.to_le_bytes())?;
                evaluation.resume_with_register(value)
            }
            EvaluationResult::RequiresFrameBase if based => {
                evaluation.resume_with_frame_base(frame_base(units, unit, frame)?)
            }
            EvaluationResult::RequiresCallFrameCfa => evaluation.resume_with_call_frame_cfa(frame.cfa()?),
            EvaluationResult::RequiresBaseType(offset) => evaluation.resume_with_base_type(base_type(unit, offset)?),
            EvaluationResult::RequiresEntryValue(_) => {
                return Err(why("optimized out: only its value at the call is described"));
            }
            EvaluationResult::RequiresTls(_) => return Err(why("it is local to a thread of the guest")),
            other => return Err(why(format!("its place is described with {}", operation(&other)))),
        }
        .map_err(broken)?;
    }
    Ok(evaluation.result())
}

fn operation(state: &EvaluationResult<Slice>) -> &'static str {
    match state {
        EvaluationResult::RequiresMemory { .. } => "another address space",
        EvaluationResult::RequiresWasmLocal { .. } => "a local that was not translated",
        EvaluationResult::RequiresWasmGlobal { .. } => "a global that was not translated",
        EvaluationResult::RequiresWasmStack { .. } => "an operand that was not translated",
        EvaluationResult::RequiresAtLocation(_) => "another variable's place",
        EvaluationResult::RequiresParameterRef(_) => "a value of the caller",
        EvaluationResult::RequiresRelocatedAddress(_) | EvaluationResult::RequiresIndexedAddress { .. } => {
            "a fixed address"
        }
        EvaluationResult::RequiresFrameBase => "a frame base that refers to itself",
        _ => "an operation that wstate does not know",
    }
}

/// The frame base of the function. Functions that had debug information have the CFA as their base, whatever the
/// source had. Functions that had none have no base, and their places count from the CFA all the same (`attr.rs`,
/// `expression.rs: translate_loc`).
fn frame_base(units: &Units, unit: &Unit, frame: &Frame<'_>) -> Result<u64, Why> {
    let Some(value) = frame.frame_base.clone() else { return frame.cfa() };
    let expression = expression_at(units, unit, value, frame.address)?;
    let pieces = evaluate(units, unit, expression, frame, false)?;
    match pieces.as_slice() {
        [Piece { size_in_bits: None, location, .. }] => match location {
            Location::Address { address } => Ok(*address),
            Location::Register { register } => Ok(frame.register(*register)?.1),
            Location::Value { value } => value.to_u64(u64::MAX).map_err(broken),
            _ => Err(why("the function's frame base is not known here")),
        },
        _ => Err(why("the function's frame base is not known here")),
    }
}

fn base_type(unit: &Unit, offset: UnitOffset) -> Result<ValueType, Why> {
    if offset.0 == 0 {
        return Ok(ValueType::Generic);
    }
    let die = unit.unit.entry(offset).map_err(broken)?;
    let found = ValueType::from_entry(&die).map_err(broken)?;
    found.ok_or_else(|| why("its place is described with an unknown type"))
}

/// The eight `bytes` as a value of the type at `offset`.
fn typed(unit: &Unit, offset: UnitOffset, bytes: &[u8]) -> Result<Value, Why> {
    match base_type(unit, offset)? {
        ValueType::Generic => {
            let mut word = [0; 8];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            Ok(Value::Generic(u64::from_le_bytes(word)))
        }
        other => Value::parse(other, gimli::EndianSlice::new(bytes, gimli::LittleEndian)).map_err(broken),
    }
}

/// The first `len` bytes of what was found, and its place in words.
pub(super) fn bytes_of(pieces: &[Piece<Slice>], len: usize, frame: &Frame<'_>) -> Result<(Vec<u8>, String), Why> {
    if let [piece @ Piece { size_in_bits: None, bit_offset: None, .. }] = pieces {
        return piece_bytes(&piece.location, len, frame);
    }
    if pieces.is_empty() {
        return Err(Why::OptimizedOut);
    }
    let mut bytes = Vec::new();
    let mut places = Vec::new();
    for piece in pieces {
        let bits = piece.size_in_bits.filter(|bits| bits % 8 == 0 && piece.bit_offset.unwrap_or(0) == 0);
        let bits = bits.ok_or_else(|| why("it is in pieces that are not whole bytes"))?;
        let wanted = usize::try_from(bits / 8).unwrap_or(usize::MAX).min(len - bytes.len());
        if wanted == 0 {
            continue;
        }
        if piece.location.is_empty() {
            return Err(why("parts of it are optimized out here"));
        }
        let (part, place) = piece_bytes(&piece.location, wanted, frame)?;
        bytes.extend(part);
        if places.len() < MAX_REFERENCE_DEPTH {
            places.push(format!("{place}:{wanted}"));
        }
    }
    if bytes.len() < len {
        return Err(why("only a part of it is described"));
    }
    Ok((bytes, places.join(" ")))
}

fn piece_bytes(location: &Location<Slice>, len: usize, frame: &Frame<'_>) -> Result<(Vec<u8>, String), Why> {
    let cut = |bytes: &[u8], what: &str| {
        let bytes = bytes.get(..len).ok_or_else(|| why(format!("{what} has fewer bytes than its type")));
        Ok::<_, Why>(bytes?.to_vec())
    };
    match location {
        Location::Empty => Err(Why::OptimizedOut),
        Location::Register { register } => {
            let (reg, value) = frame.register(*register)?;
            let bytes = value.to_le_bytes();
            // Only the low half of a vector register is kept.
            let bytes = bytes.get(..len).ok_or_else(|| why(format!("it is larger than what is known of {reg}")))?;
            Ok((bytes.to_vec(), reg.name().to_string()))
        }
        Location::Address { address } => Ok((frame.read(*address, len)?, frame.name(*address))),
        Location::Value { value } => {
            let bytes = match *value {
                Value::Generic(v) | Value::U64(v) => v.to_le_bytes().to_vec(),
                Value::I8(v) => v.to_le_bytes().to_vec(),
                Value::U8(v) => v.to_le_bytes().to_vec(),
                Value::I16(v) => v.to_le_bytes().to_vec(),
                Value::U16(v) => v.to_le_bytes().to_vec(),
                Value::I32(v) => v.to_le_bytes().to_vec(),
                Value::U32(v) => v.to_le_bytes().to_vec(),
                Value::I64(v) => v.to_le_bytes().to_vec(),
                Value::F32(v) => v.to_le_bytes().to_vec(),
                Value::F64(v) => v.to_le_bytes().to_vec(),
            };
            Ok((cut(&bytes, "its computed value")?, "computed".into()))
        }
        Location::Bytes { value } => Ok((cut(value.bytes(), "its constant")?, "constant".into())),
        Location::ImplicitPointer { .. } => Err(why("optimized out: only what it points to is described")),
    }
}

/// The first `len` bytes of a constant attribute.
pub(super) fn constant_bytes(units: &Units, unit: &Unit, value: &Attribute, len: usize) -> Result<Vec<u8>, Why> {
    let number = match value {
        AttributeValue::Udata(v) => *v as i128,
        AttributeValue::Sdata(v) => i128::from(*v),
        AttributeValue::Data1(v) => i128::from(*v),
        AttributeValue::Data2(v) => i128::from(*v),
        AttributeValue::Data4(v) => i128::from(*v),
        AttributeValue::Data8(v) => i128::from(*v),
        AttributeValue::Block(block) => return Ok(block.bytes().get(..len).ok_or_else(short)?.to_vec()),
        other => {
            let text = units.dwarf.attr_string(&unit.unit, other.clone()).map_err(|_| short())?;
            let mut bytes = text.bytes().to_vec();
            bytes.push(0);
            return Ok(bytes.get(..len).ok_or_else(short)?.to_vec());
        }
    };
    Ok(number.to_le_bytes().get(..len).ok_or_else(short)?.to_vec())
}

fn short() -> Why {
    why("its constant has fewer bytes than its type")
}
