//! Types of the runtime, described as far as values of them must be skipped to reach what comes behind them.
//!
//! postcard says nothing about types, and in a component's `.wasmtime.info` the core modules lie behind a description
//! of the whole component. Nothing of this description is needed but its length. Each constant here has the runtime's
//! name for the type. Fields and variants stand in the order in which they are written, and [`Shape::Since`] and
//! [`Shape::Until`] mark those that not all versions have. A comment with several names (or a range of names) behind
//! a line is about the lines before it as well.

use super::postcard::{Malformed, Reader};
use super::version::Version;

/// How the values of a type are written in postcard.
pub enum Shape {
    /// A number, or a newtype of one.
    Number,
    /// One byte: `u8` or `bool`.
    Byte,
    /// A string with its length.
    Str,
    /// So many bytes, without a length.
    Raw(usize),
    /// An `Option`.
    Opt(&'static Shape),
    /// A sequence with its length, or a map, which is a sequence of pairs.
    Seq(&'static Shape),
    /// A sequence whose first element has another shape than the rest.
    Headed(&'static Shape, &'static Shape),
    /// As many values as the version has unsafe intrinsics, without a length.
    Intrinsics(&'static Shape),
    /// Fields, one behind the other.
    Fields(&'static [Shape]),
    /// An enum with these variants. Variants that the version does not have are not counted.
    Enum(&'static [Shape]),
    /// A field or variant that exists only from this version on.
    Since(u32, &'static Shape),
    /// A field or variant that exists only up to this version.
    Until(u32, &'static Shape),
}

use Shape::*;

impl Shape {
    fn exists(&self, version: Version) -> bool {
        match self {
            Since(first, inner) => version.0 >= *first && inner.exists(version),
            Until(last, inner) => version.0 <= *last && inner.exists(version),
            _ => true,
        }
    }

    /// Moves the reader behind a value of this shape. Shapes have no cycles, so their nesting bounds the recursion,
    /// and the input's length bounds the number of elements.
    pub fn skip(&self, r: &mut Reader<'_>, version: Version) -> Result<(), Malformed> {
        match self {
            Number => r.skip_number(),
            Byte => r.byte().map(|_| ()),
            Str => r.str().map(|_| ()),
            Raw(n) => r.raw(*n).map(|_| ()),
            Opt(inner) => r.option(|r| inner.skip(r, version)).map(|_| ()),
            Seq(inner) => {
                for _ in 0..r.count()? {
                    inner.skip(r, version)?;
                }
                Ok(())
            }
            Headed(first, rest) => {
                for i in 0..r.count()? {
                    if i == 0 { first } else { rest }.skip(r, version)?;
                }
                Ok(())
            }
            Intrinsics(inner) => {
                for _ in 0..intrinsics(version) {
                    inner.skip(r, version)?;
                }
                Ok(())
            }
            Fields(fields) => fields.iter().try_for_each(|f| f.skip(r, version)),
            Enum(variants) => {
                let at = r.wrong("no such variant");
                let number = r.u64()?;
                let mut existing = variants.iter().filter(|v| v.exists(version));
                let chosen = usize::try_from(number).ok().and_then(|n| existing.nth(n));
                chosen.ok_or(at)?.skip(r, version)
            }
            Since(_, inner) | Until(_, inner) => {
                if self.exists(version) {
                    inner.skip(r, version)
                } else {
                    Ok(())
                }
            }
        }
    }
}

/// Number of unsafe intrinsics (`UnsafeIntrinsic::len()`). They are a list in the source (`component/intrinsic.rs`),
/// which was counted in each version.
fn intrinsics(version: Version) -> usize {
    match version.0 {
        ..=38 => 0,
        39..=44 => 9,
        45..=46 => 13,
        47.. => 21,
    }
}

const UNIT: Shape = Fields(&[]);
const N: Shape = Number;
const N2: Shape = Fields(&[N, N]);

// ---- core modules ----

pub const TYPE_INDEX: Shape = Enum(&[N, N, N]);
pub const HEAP_TYPE: Shape = Enum(&[
    UNIT, UNIT, // extern, noextern
    UNIT, TYPE_INDEX, UNIT, // func, a function type, nofunc
    UNIT, TYPE_INDEX, UNIT, // exn, an exception type, noexn
    UNIT, TYPE_INDEX, UNIT, // cont, a continuation type, nocont
    UNIT, UNIT, UNIT, // any, eq, i31
    UNIT, TYPE_INDEX, // array, an array type
    UNIT, TYPE_INDEX, UNIT, // struct, a struct type, none
]);
pub const REF_TYPE: Shape = Fields(&[Byte, HEAP_TYPE]);
pub const VAL_TYPE: Shape = Enum(&[UNIT, UNIT, UNIT, UNIT, UNIT, REF_TYPE]);

// The operators of constant expressions, which are serialized up to version 45 only.
const CONST_OP: Shape = Enum(&[
    N,
    N,
    N,
    N,
    N,    // constants
    N,    // global.get
    UNIT, // ref.i31
    // ref.null has no type in 36. After that it has one of five top types, which is a number.
    Fields(&[Since(37, &N)]),
    N, // ref.func
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT, // i32 and i64: add, sub, mul
    N,
    N, // struct.new, struct.new_default
    N,
    N,
    N2, // array.new, array.new_default, array.new_fixed
    UNIT,
    UNIT, // extern.convert_any, any.convert_extern
]);
pub const CONST_EXPR: Shape = Seq(&CONST_OP);
pub const TABLE_SEGMENT_ELEMENTS: Shape = Enum(&[Seq(&N), Fields(&[Since(45, &REF_TYPE), Seq(&CONST_EXPR)])]);
pub const TABLE_INITIALIZATION: Shape =
    Fields(&[Seq(&Enum(&[Seq(&N), CONST_EXPR])), Seq(&Fields(&[N, CONST_EXPR, TABLE_SEGMENT_ELEMENTS]))]);
pub const MEMORY_INITIALIZATION: Shape = Enum(&[
    Until(45, &Seq(&Fields(&[N, CONST_EXPR, N2]))),
    Since(46, &UNIT),
    Until(45, &Seq(&Opt(&Fields(&[N, N2])))),
    Since(46, &Seq(&Opt(&N2))),
]);
pub const GLOBAL_CONST: Shape = Enum(&[N, N, N, N, N]);

const GLOBAL: Shape = Fields(&[VAL_TYPE, Byte]);
const LIMITS: Shape = Fields(&[N, Opt(&N)]);
const MEMORY: Shape = Fields(&[N, LIMITS, Byte, Byte]);
pub const TAG: Shape = Fields(&[TYPE_INDEX, Since(37, &TYPE_INDEX)]);
const TABLE: Shape = Fields(&[N, LIMITS, REF_TYPE]);
const ENTITY_TYPE: Shape = Enum(&[GLOBAL, MEMORY, TAG, TABLE, TYPE_INDEX]);
const ENTITY_INDEX: Shape = Enum(&[N, N, N, N, N]);

// A `SecondaryMap` begins with its default value (up to 42 as an `Option`), and has `None` for each entry that is
// equal to the default.
pub const TRAMPOLINE_TYPES: Shape = Headed(&Fields(&[Until(42, &Opt(&N)), Since(43, &N)]), &Opt(&N));

// ---- components ----

const INTERFACE_TYPE: Shape = Enum(&[
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT,
    UNIT, // bool to string
    N,
    N,
    N,
    N,             // record, variant, list, tuple
    Since(44, &N), // map
    N,
    N,
    N,
    N,
    N,
    N, // flags, enum, option, result, own, borrow
    N,
    N,
    N,             // future, stream, error context
    Since(42, &N), // list of fixed length
]);
const TYPE_DEF: Shape = Enum(&[N, N, N, INTERFACE_TYPE, N, N, N]);
const EXTERN_DATA: Shape = Fields(&[Opt(&Str), Since(48, &Opt(&Str))]);
const EXTERN: Shape = Fields(&[Since(46, &EXTERN_DATA), TYPE_DEF]);
const EXPORT_INDEX: Shape = Fields(&[N, Since(46, &EXTERN_DATA)]);
// A version in these names is written as a string.
const NAME_MAP: Shape = Fields(&[Seq(&Fields(&[Str, EXPORT_INDEX])), Seq(&Fields(&[Str, Str, Str]))]);
const CORE_EXPORT: Shape = Fields(&[N, Enum(&[ENTITY_INDEX, Str])]);
// This is a `CORE_EXPORT` with a plain index as its item.
const CORE_EXPORT_INDEX: Shape = Fields(&[N, Enum(&[N, Str])]);
const CORE_DEF: Shape = Enum(&[CORE_EXPORT, N, N, Since(39, &N), Since(42, &Until(48, &UNIT))]);
const EXPORT: Shape = Enum(&[Fields(&[N, CORE_DEF, N]), N2, N2, Fields(&[N, NAME_MAP]), TYPE_DEF]);
const INSTANTIATE_MODULE: Shape = Fields(&[
    Enum(&[Fields(&[N, Seq(&CORE_DEF)]), Fields(&[N, Seq(&Fields(&[Str, Seq(&Fields(&[Str, CORE_DEF]))]))])]),
    Since(42, &Opt(&N)),
]);
const GLOBAL_INITIALIZER: Shape = Enum(&[
    INSTANTIATE_MODULE,
    N2,
    Fields(&[N, CORE_EXPORT_INDEX]),
    Fields(&[N, CORE_DEF]),
    Fields(&[N, CORE_DEF]),
    Fields(&[N, CORE_DEF]),
    Fields(&[N, CORE_EXPORT_INDEX]),
    Fields(&[N, VAL_TYPE, Opt(&CORE_DEF), N]),
]);
const CANONICAL_OPTIONS: Shape = Fields(&[
    N,
    N,
    Opt(&N),
    Opt(&N),
    Byte,
    Since(37, &Until(49, &Byte)), // cancellable
    N,
    Enum(&[UNIT, Fields(&[Opt(&N), Opt(&N)])]),
]);
pub const COMPONENT: Shape = Fields(&[
    Seq(&Fields(&[Str, EXTERN])),  // import_types
    Seq(&Fields(&[N, Seq(&Str)])), // imports
    NAME_MAP,                      // exports
    Seq(&EXPORT),                  // export_items
    Seq(&GLOBAL_INITIALIZER),      // initializers
    N,
    N,
    N,
    N,
    N,
    N,
    N,                          // numbers of runtime instances to post returns
    Seq(&N),                    // trampolines
    Since(39, &Intrinsics(&N)), // unsafe_intrinsics
    N,
    N,
    N,
    N,
    N,                       // numbers of lowerings to error context tables
    Seq(&N),                 // imported_resources
    Seq(&N),                 // defined_resource_instances
    Seq(&CANONICAL_OPTIONS), // options
]);

const ABI: Shape = Fields(&[N, N, N, N, Opt(&Byte)]);
const VARIANT_INFO: Shape = Fields(&[N, N, N]);
const EXTERNS: Shape = Seq(&Fields(&[Str, EXTERN]));
const RESOURCE_TABLE: Shape = Fields(&[Until(38, &N2), Since(39, &Enum(&[N2, N]))]);

/// The fields of `ComponentTypes` before the types of the core modules.
pub const COMPONENT_TYPES_BEFORE: Shape = Fields(&[
    Seq(&Fields(&[Seq(&Fields(&[Str, Str, ENTITY_TYPE])), Seq(&Fields(&[Str, ENTITY_TYPE]))])), // modules
    Seq(&Fields(&[EXTERNS, EXTERNS])),                                                          // components
    Seq(&EXTERNS),                                                                              // instances
    Seq(&Fields(&[Since(40, &Byte), Seq(&Str), N, N])),                                         // functions
    Seq(&INTERFACE_TYPE),                                                                       // lists
    Since(44, &Seq(&Fields(&[INTERFACE_TYPE, INTERFACE_TYPE, ABI, N, N]))),                     // maps
    Seq(&Fields(&[Seq(&Fields(&[Str, INTERFACE_TYPE])), ABI])),                                 // records
    Seq(&Fields(&[Seq(&Fields(&[Str, Opt(&INTERFACE_TYPE)])), ABI, VARIANT_INFO])),             // variants
    Seq(&Fields(&[Seq(&INTERFACE_TYPE), ABI])),                                                 // tuples
    Seq(&Fields(&[Seq(&Str), ABI, VARIANT_INFO])),                                              // enums
    Seq(&Fields(&[Seq(&Str), ABI])),                                                            // flags
    Seq(&Fields(&[INTERFACE_TYPE, ABI, VARIANT_INFO])),                                         // options
    Seq(&Fields(&[Opt(&INTERFACE_TYPE), Opt(&INTERFACE_TYPE), ABI, VARIANT_INFO])),             // results
    Seq(&RESOURCE_TABLE),                                                                       // resource_tables
]);
/// The fields of `ComponentTypes` behind the types of the core modules.
pub const COMPONENT_TYPES_BEHIND: Shape = Fields(&[
    Seq(&Opt(&INTERFACE_TYPE)),                          // futures
    Seq(&N2),                                            // future_tables
    Seq(&Opt(&INTERFACE_TYPE)),                          // streams
    Seq(&N2),                                            // stream_tables
    Seq(&N),                                             // error_context_tables
    Since(42, &Seq(&Fields(&[INTERFACE_TYPE, N, ABI]))), // fixed_length_lists
]);

pub const CHECKSUM: Shape = Since(43, &Raw(32));
