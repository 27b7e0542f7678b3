//! Types: their names, their sizes, and how their values are printed.

use std::fmt::Write;

use gimli::{AttributeValue, DwTag};

use super::units::{Attribute, Die, Entry, Units, Visit};
use crate::limits::{MAX_REFERENCE_DEPTH, MAX_SCOPE_WORK, MAX_SHOWN_CHARS, MAX_SHOWN_MEMBERS, MAX_TEXT_NAME};

/// How the names begin that Wasmtime gives to the structures that stand for the guest's pointers and references
/// (`unit.rs: replace_pointer_type`). Such a structure holds an offset in linear memory, and its template parameter
/// `T` is the type that it points to.
const POINTER: &str = "WebAssemblyPtrWrapper<";
const REFERENCE: &str = "WebAssemblyRefWrapper<";

/// A type without the names (`typedef`) and qualifiers that were put around it.
struct Plain {
    entry: Entry,
    tag: DwTag,
}

fn qualifier(tag: DwTag) -> Option<&'static str> {
    match tag {
        gimli::DW_TAG_const_type => Some("const "),
        gimli::DW_TAG_volatile_type => Some("volatile "),
        gimli::DW_TAG_atomic_type => Some("_Atomic "),
        gimli::DW_TAG_restrict_type => Some("restrict "),
        gimli::DW_TAG_immutable_type => Some("immutable "),
        _ => None,
    }
}

fn is_aggregate(tag: DwTag) -> bool {
    matches!(
        tag,
        gimli::DW_TAG_structure_type
            | gimli::DW_TAG_class_type
            | gimli::DW_TAG_union_type
            | gimli::DW_TAG_array_type
            | gimli::DW_TAG_interface_type
    )
}

/// The mark of a pointer or reference of the guest, if the type stands for one.
fn pointer_mark(units: &Units, entry: &Entry) -> Option<&'static str> {
    if entry.die.tag() != gimli::DW_TAG_structure_type {
        return None;
    }
    let name = units.name(entry)?;
    if name.starts_with(POINTER) {
        Some(" *")
    } else if name.starts_with(REFERENCE) {
        Some(" &")
    } else {
        None
    }
}

fn unsigned(value: Option<Attribute>) -> Option<u64> {
    value?.udata_value()
}

/// A constant as the 64 bits that it has in memory.
fn bits(value: &Attribute) -> Option<u64> {
    value.udata_value().or_else(|| value.sdata_value().map(|v| v as u64))
}

fn children(units: &Units, entry: &Entry, visit: &mut dyn FnMut(Die) -> Visit) {
    let mut work = MAX_SCOPE_WORK;
    // If an entry cannot be read, what was read before it counts.
    let _ = units.walk(&entry.unit, entry.die.offset(), &mut work, &mut |die, _, _| match visit(die) {
        Visit::Stop => Visit::Stop,
        _ => Visit::Skip,
    });
}

/// The type's name, as the source has it.
pub(super) fn name(units: &Units, ty: Option<&Entry>) -> String {
    let mut text = nested_name(units, ty, 0);
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT_NAME) {
        text.truncate(end);
        text.push_str("..");
    }
    text
}

fn nested_name(units: &Units, ty: Option<&Entry>, depth: usize) -> String {
    let Some(entry) = ty else { return "void".into() };
    if depth > MAX_REFERENCE_DEPTH {
        return "..".into();
    }
    let of = |entry: Option<Entry>| nested_name(units, entry.as_ref(), depth + 1);
    if let Some(mark) = pointer_mark(units, entry) {
        let mut parameter = None;
        children(units, entry, &mut |die| {
            if die.tag() == gimli::DW_TAG_template_type_parameter {
                parameter = Some(die);
                return Visit::Stop;
            }
            Visit::Skip
        });
        let parameter = parameter.map(|die| Entry { unit: entry.unit.clone(), die });
        return of(parameter.and_then(|p| units.type_of(&p))) + mark;
    }
    let inner = || of(units.type_of(entry));
    if let Some(qualifier) = qualifier(entry.die.tag()) {
        return qualifier.to_string() + &inner();
    }
    if entry.die.tag() == gimli::DW_TAG_array_type {
        let mut text = inner();
        for count in dimensions(units, entry) {
            match count {
                Some(count) => _ = write!(text, "[{count}]"),
                None => text.push_str("[]"),
            }
        }
        return text;
    }
    if let Some(name) = units.name(entry) {
        return name;
    }
    match entry.die.tag() {
        gimli::DW_TAG_pointer_type => inner() + " *",
        gimli::DW_TAG_reference_type => inner() + " &",
        gimli::DW_TAG_rvalue_reference_type => inner() + " &&",
        gimli::DW_TAG_subroutine_type => "function".into(),
        gimli::DW_TAG_structure_type => "struct".into(),
        gimli::DW_TAG_class_type => "class".into(),
        gimli::DW_TAG_union_type => "union".into(),
        gimli::DW_TAG_enumeration_type => "enum".into(),
        _ => "?".into(),
    }
}

/// Number of elements in each dimension of an array, where it is known.
fn dimensions(units: &Units, array: &Entry) -> Vec<Option<u64>> {
    let mut out = Vec::new();
    children(units, array, &mut |die| {
        if die.tag() == gimli::DW_TAG_subrange_type {
            let count = unsigned(die.attr_value(gimli::DW_AT_count));
            let bound = unsigned(die.attr_value(gimli::DW_AT_upper_bound)).and_then(|b| b.checked_add(1));
            out.push(count.or(bound));
        }
        if out.len() >= MAX_REFERENCE_DEPTH { Visit::Stop } else { Visit::Skip }
    });
    out
}

fn plain(units: &Units, entry: &Entry) -> Option<Plain> {
    let mut at = entry.clone();
    for _ in 0..MAX_REFERENCE_DEPTH {
        let tag = at.die.tag();
        if qualifier(tag).is_none() && tag != gimli::DW_TAG_typedef {
            return Some(Plain { entry: at, tag });
        }
        at = units.type_of(&at)?;
    }
    None
}

/// Size of a value in bytes, if the type says.
pub(super) fn size(units: &Units, ty: &Entry) -> Option<u64> {
    let mut total: u64 = 1;
    let mut at = plain(units, ty)?;
    for _ in 0..MAX_REFERENCE_DEPTH {
        if let Some(bytes) = unsigned(at.entry.die.attr_value(gimli::DW_AT_byte_size)) {
            return total.checked_mul(bytes);
        }
        match at.tag {
            gimli::DW_TAG_array_type => {
                let dimensions = dimensions(units, &at.entry);
                if dimensions.is_empty() {
                    return None;
                }
                for count in dimensions {
                    total = total.checked_mul(count?)?;
                }
            }
            // An enumeration without a size has that of its base type.
            gimli::DW_TAG_enumeration_type => {}
            // Pointers of the guest are structures of their own. The pointers that are left are addresses of the
            // process.
            gimli::DW_TAG_pointer_type | gimli::DW_TAG_reference_type | gimli::DW_TAG_rvalue_reference_type => {
                return total.checked_mul(u64::from(at.entry.unit.unit.encoding().address_size));
            }
            _ => return None,
        }
        at = plain(units, &units.type_of(&at.entry)?)?;
    }
    None
}

/// A value as its type prints it. `bytes` may end before the value does. `None` if values of such a type are not
/// printed.
pub(super) fn print(units: &Units, ty: &Entry, bytes: &[u8]) -> Option<String> {
    print_nested(units, ty, bytes, true)
}

fn print_nested(units: &Units, ty: &Entry, bytes: &[u8], outermost: bool) -> Option<String> {
    let Plain { entry, tag } = plain(units, ty)?;
    if pointer_mark(units, &entry).is_some() {
        return address(bytes.get(..4)?);
    }
    match tag {
        gimli::DW_TAG_base_type => scalar(&entry, bytes),
        gimli::DW_TAG_pointer_type
        | gimli::DW_TAG_reference_type
        | gimli::DW_TAG_rvalue_reference_type
        | gimli::DW_TAG_ptr_to_member_type => address(bytes.get(..usize::try_from(size(units, &entry)?).ok()?)?),
        gimli::DW_TAG_enumeration_type => enumerator(units, &entry, bytes),
        gimli::DW_TAG_array_type => array(units, &entry, bytes, outermost),
        _ if is_aggregate(tag) && !outermost => Some("{...}".into()),
        _ if is_aggregate(tag) => Some(members(units, &entry, bytes)),
        _ => None,
    }
}

fn word(bytes: &[u8]) -> Option<u64> {
    let mut word = [0; 8];
    word.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u64::from_le_bytes(word))
}

fn address(bytes: &[u8]) -> Option<String> {
    Some(format!("{:#x}", word(bytes)?))
}

fn signed(value: u64, bits: u32) -> i64 {
    let unused = 64u32.saturating_sub(bits.max(1));
    (value << unused) as i64 >> unused
}

fn scalar(entry: &Entry, bytes: &[u8]) -> Option<String> {
    let len = usize::try_from(unsigned(entry.die.attr_value(gimli::DW_AT_byte_size))?).ok()?;
    let bytes = bytes.get(..len)?;
    let Some(AttributeValue::Encoding(encoding)) = entry.die.attr_value(gimli::DW_AT_encoding) else { return None };
    match (encoding, len) {
        (_, 0) => Some("()".into()),
        (gimli::DW_ATE_float, 4) => Some(format!("{:?}", f32::from_bits(word(bytes)? as u32))),
        (gimli::DW_ATE_float, 8) => Some(format!("{:?}", f64::from_bits(word(bytes)?))),
        (gimli::DW_ATE_float | gimli::DW_ATE_complex_float | gimli::DW_ATE_decimal_float, _) => hex(bytes),
        (_, 16) => {
            let wide = u128::from_le_bytes(bytes.try_into().ok()?);
            Some(match encoding {
                gimli::DW_ATE_signed => (wide as i128).to_string(),
                _ => wide.to_string(),
            })
        }
        (_, 9..) => hex(bytes),
        _ => number(encoding, word(bytes)?, 8 * len as u32),
    }
}

fn hex(bytes: &[u8]) -> Option<String> {
    let mut text = String::from("0x");
    for byte in bytes.iter().rev().take(MAX_SHOWN_CHARS) {
        write!(text, "{byte:02x}").ok()?;
    }
    Some(text)
}

/// Prints a whole number of `bits` bits.
fn number(encoding: gimli::DwAte, value: u64, bits: u32) -> Option<String> {
    let signed = signed(value, bits);
    Some(match encoding {
        gimli::DW_ATE_boolean if value <= 1 => (value == 1).to_string(),
        gimli::DW_ATE_signed => signed.to_string(),
        gimli::DW_ATE_signed_char => with_character(signed.to_string(), value),
        gimli::DW_ATE_unsigned_char => with_character(value.to_string(), value),
        gimli::DW_ATE_UTF => match u32::try_from(value).ok().and_then(char::from_u32) {
            Some(c) => format!("'{}'", c.escape_default()),
            None => value.to_string(),
        },
        gimli::DW_ATE_address => format!("{value:#x}"),
        _ => value.to_string(),
    })
}

fn with_character(number: String, value: u64) -> String {
    match u8::try_from(value) {
        Ok(byte @ 0x20..=0x7e) => format!("{number} '{}'", char::from(byte).escape_default()),
        _ => number,
    }
}

fn enumerator(units: &Units, entry: &Entry, bytes: &[u8]) -> Option<String> {
    let len = usize::try_from(size(units, entry)?).ok().filter(|len| (1..=8).contains(len))?;
    let value = word(bytes.get(..len)?)?;
    let mask = u64::MAX >> (64 - 8 * len);
    let mut found = None;
    children(units, entry, &mut |die| {
        let constant = die.attr_value(gimli::DW_AT_const_value);
        if die.tag() == gimli::DW_TAG_enumerator && constant.as_ref().and_then(bits).map(|v| v & mask) == Some(value) {
            found = Some(die);
            return Visit::Stop;
        }
        Visit::Skip
    });
    let found = found.map(|die| Entry { unit: entry.unit.clone(), die });
    Some(match found.and_then(|f| units.name(&f)) {
        Some(name) => name,
        None => value.to_string(),
    })
}

fn array(units: &Units, entry: &Entry, bytes: &[u8], outermost: bool) -> Option<String> {
    let element = units.type_of(entry)?;
    let dimensions = dimensions(units, entry);
    let total = dimensions.iter().try_fold(1u64, |n, count| n.checked_mul((*count)?))?;
    let inner = plain(units, &element)?;
    let is_char = match inner.entry.die.attr_value(gimli::DW_AT_encoding) {
        Some(AttributeValue::Encoding(e)) => e == gimli::DW_ATE_signed_char || e == gimli::DW_ATE_unsigned_char,
        _ => false,
    };
    let len = size(units, &element)?;
    if is_char && len == 1 && dimensions.len() == 1 {
        return Some(string(bytes.get(..usize::try_from(total).unwrap_or(usize::MAX)).unwrap_or(bytes)));
    }
    if !outermost {
        return Some("{...}".into());
    }
    let len = usize::try_from(len).ok()?;
    let mut parts = Vec::new();
    // The elements of all dimensions are printed in one row.
    for i in 0..total {
        let from = usize::try_from(i).ok().and_then(|i| i.checked_mul(len));
        let Some(value) = from.and_then(|from| bytes.get(from..)?.get(..len)) else { break };
        if parts.len() >= MAX_SHOWN_MEMBERS {
            break;
        }
        parts.push(print_nested(units, &element, value, false).unwrap_or_else(|| "?".into()));
    }
    if (parts.len() as u64) < total {
        parts.push("...".into());
    }
    Some(format!("{{{}}}", parts.join(", ")))
}

/// The text up to the first zero byte, in quotes.
fn string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let shown = &bytes[..end.min(MAX_SHOWN_CHARS)];
    let more = if shown.len() < end { ".." } else { "" };
    format!("\"{}\"{more}", shown.escape_ascii())
}

fn members(units: &Units, entry: &Entry, bytes: &[u8]) -> String {
    let mut dies = Vec::new();
    let mut more = false;
    children(units, entry, &mut |die| {
        let is_static = die.has_attr(gimli::DW_AT_external) || die.has_attr(gimli::DW_AT_declaration);
        match die.tag() {
            // Variants are not printed, since it would have to be decided first which of them the value has.
            gimli::DW_TAG_variant_part => more = true,
            gimli::DW_TAG_member | gimli::DW_TAG_inheritance if !is_static => {
                if dies.len() >= MAX_SHOWN_MEMBERS {
                    more = true;
                    return Visit::Stop;
                }
                dies.push(die);
            }
            _ => {}
        }
        Visit::Skip
    });
    let mut parts = Vec::new();
    for die in dies {
        let member = Entry { unit: entry.unit.clone(), die };
        let value = member_value(units, &member, bytes).unwrap_or_else(|| "?".into());
        let name = match units.name(&member) {
            Some(name) => name,
            None if member.die.tag() == gimli::DW_TAG_inheritance => name(units, units.type_of(&member).as_ref()),
            // An anonymous union or structure is printed without a name.
            None => {
                parts.push(value);
                continue;
            }
        };
        parts.push(format!("{name} = {value}"));
    }
    if more {
        parts.push("...".into());
    }
    format!("{{{}}}", parts.join(", "))
}

fn member_value(units: &Units, member: &Entry, bytes: &[u8]) -> Option<String> {
    let ty = units.type_of(member)?;
    let len = size(units, &ty)?;
    let offset = match member.die.attr_value(gimli::DW_AT_data_member_location) {
        Some(value) => value.udata_value()?,
        None => 0,
    };
    if let Some(width) = unsigned(member.die.attr_value(gimli::DW_AT_bit_size)) {
        return bit_field(units, member, &ty, offset, width, bytes);
    }
    let from = usize::try_from(offset).ok()?;
    let value = bytes.get(from..)?.get(..usize::try_from(len).ok()?)?;
    print_nested(units, &ty, value, false)
}

fn bit_field(units: &Units, member: &Entry, ty: &Entry, offset: u64, width: u64, bytes: &[u8]) -> Option<String> {
    let first = match unsigned(member.die.attr_value(gimli::DW_AT_data_bit_offset)) {
        Some(first) => first,
        // The older form counts from the storage unit's most significant bit.
        None => {
            let from_top = unsigned(member.die.attr_value(gimli::DW_AT_bit_offset))?;
            let unit = unsigned(member.die.attr_value(gimli::DW_AT_byte_size)).or_else(|| size(units, ty))?;
            let end = offset.checked_add(unit)?.checked_mul(8)?;
            end.checked_sub(from_top)?.checked_sub(width)?
        }
    };
    if !(1..=56).contains(&width) {
        return None;
    }
    let from = usize::try_from(first / 8).ok()?;
    let to = usize::try_from(first.checked_add(width)?.div_ceil(8)).ok()?;
    let value = word(bytes.get(from..to)?)? >> (first % 8) & (u64::MAX >> (64 - width));
    let Plain { entry, tag } = plain(units, ty)?;
    match entry.die.attr_value(gimli::DW_AT_encoding) {
        Some(AttributeValue::Encoding(encoding)) => number(encoding, value, width as u32),
        _ if tag == gimli::DW_TAG_enumeration_type => Some(value.to_string()),
        _ => None,
    }
}
