//! Operators in the spelling of the text format.

use std::fmt::Write;

use wasmparser::{BlockType, MemArg, Operator};

use super::value_type;

/// Targets of a `br_table` that are spelled out.
const MAX_TARGETS_SHOWN: usize = 8;

/// First parts of mnemonics that end in a dot.
const PREFIXES: [&str; 17] = [
    "i32", "i64", "f32", "f64", "v128", "i8x16", "i16x8", "i32x4", "i64x2", "f32x4", "f64x2", "local", "global",
    "table", "memory", "ref", "data",
];

macro_rules! visitor_names {
    ($(@$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })? => $visit:ident ($($ann:tt)*))*) => {
        fn visitor_name(op: &Operator<'_>) -> &'static str {
            match op {
                $(Operator::$op { .. } => stringify!($visit),)*
                _ => "visit_unknown_operator",
            }
        }
    };
}
wasmparser::for_each_operator!(visitor_names);

fn mnemonic(op: &Operator<'_>) -> String {
    let name = visitor_name(op);
    let name = name.strip_prefix("visit_").unwrap_or(name);
    match name.split_once('_') {
        Some((first, rest)) if PREFIXES.contains(&first) => match rest.strip_prefix("atomic_") {
            Some(rest) => {
                let rest = match rest.split_once('_') {
                    Some((rmw, op)) if rmw.starts_with("rmw") => format!("{rmw}.{op}"),
                    _ => rest.to_string(),
                };
                format!("{first}.atomic.{rest}")
            }
            None => format!("{first}.{rest}"),
        },
        _ if name == "atomic_fence" => "atomic.fence".to_string(),
        _ => name.to_string(),
    }
}

fn block(out: &mut String, ty: &BlockType) {
    let _ = match ty {
        BlockType::Empty => Ok(()),
        BlockType::Type(t) => match value_type(*t) {
            Some(t) => write!(out, " (result {})", t.name()),
            None => write!(out, " (result {t})"),
        },
        BlockType::FuncType(index) => write!(out, " (type {index})"),
    };
}

fn access(out: &mut String, memarg: &MemArg) {
    if memarg.offset != 0 {
        let _ = write!(out, " offset={}", memarg.offset);
    }
    if memarg.align != memarg.max_align {
        let _ = write!(out, " align={}", 1u64 << memarg.align.min(63));
    }
}

/// `op` as the text format writes it, long immediates shortened.
pub(super) fn operator(op: &Operator<'_>) -> String {
    let mut out = mnemonic(op);
    let _ = match op {
        Operator::Block { blockty } | Operator::Loop { blockty } | Operator::If { blockty } => {
            block(&mut out, blockty);
            Ok(())
        }
        Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => write!(out, " {relative_depth}"),
        Operator::BrTable { targets } => {
            for target in targets.targets().take(MAX_TARGETS_SHOWN).flatten() {
                let _ = write!(out, " {target}");
            }
            if targets.len() as usize > MAX_TARGETS_SHOWN {
                out.push_str(" ...");
            }
            write!(out, " {}", targets.default())
        }
        Operator::Call { function_index } | Operator::ReturnCall { function_index } => write!(out, " {function_index}"),
        Operator::CallIndirect { type_index, table_index: 0 } => write!(out, " (type {type_index})"),
        Operator::CallIndirect { type_index, table_index } => write!(out, " {table_index} (type {type_index})"),
        Operator::LocalGet { local_index }
        | Operator::LocalSet { local_index }
        | Operator::LocalTee { local_index } => {
            write!(out, " {local_index}")
        }
        Operator::GlobalGet { global_index } | Operator::GlobalSet { global_index } => write!(out, " {global_index}"),
        Operator::I32Const { value } => write!(out, " {value}"),
        Operator::I64Const { value } => write!(out, " {value}"),
        Operator::F32Const { value } => write!(out, " {}", f32::from_bits(value.bits())),
        Operator::F64Const { value } => write!(out, " {}", f64::from_bits(value.bits())),
        Operator::I32Load { memarg }
        | Operator::I64Load { memarg }
        | Operator::F32Load { memarg }
        | Operator::F64Load { memarg }
        | Operator::I32Load8S { memarg }
        | Operator::I32Load8U { memarg }
        | Operator::I32Load16S { memarg }
        | Operator::I32Load16U { memarg }
        | Operator::I64Load8S { memarg }
        | Operator::I64Load8U { memarg }
        | Operator::I64Load16S { memarg }
        | Operator::I64Load16U { memarg }
        | Operator::I64Load32S { memarg }
        | Operator::I64Load32U { memarg }
        | Operator::I32Store { memarg }
        | Operator::I64Store { memarg }
        | Operator::F32Store { memarg }
        | Operator::F64Store { memarg }
        | Operator::I32Store8 { memarg }
        | Operator::I32Store16 { memarg }
        | Operator::I64Store8 { memarg }
        | Operator::I64Store16 { memarg }
        | Operator::I64Store32 { memarg } => {
            access(&mut out, memarg);
            Ok(())
        }
        _ => Ok(()),
    };
    out
}
