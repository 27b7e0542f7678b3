//! Writes operators in the spelling of the text format.

use std::fmt::Write;

use wasmparser::{BlockType, MemArg, Operator};

use super::types::value_type;
use crate::limits::MAX_SHOWN_TARGETS;

/// First parts of mnemonics that are followed by a dot.
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

/// `op` as the text format writes it. Long immediates are shortened.
pub(super) fn operator(op: &Operator<'_>) -> String {
    let mut out = mnemonic(op);
    let _ = match op {
        Operator::Block { blockty } | Operator::Loop { blockty } | Operator::If { blockty } => {
            block(&mut out, blockty);
            Ok(())
        }
        Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => write!(out, " {relative_depth}"),
        Operator::BrTable { targets } => {
            for target in targets.targets().take(MAX_SHOWN_TARGETS).flatten() {
                let _ = write!(out, " {target}");
            }
            if targets.len() as usize > MAX_SHOWN_TARGETS {
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

#[cfg(test)]
mod tests {
    use super::*;
    use wasmparser::{Parser, Payload};

    #[test]
    fn of_many_targets_the_first_are_shown() {
        for (count, more) in [(MAX_SHOWN_TARGETS, ""), (MAX_SHOWN_TARGETS + 1, " ...")] {
            let text = format!("(module (func (br_table {} 0 (i32.const 0))))", "0 ".repeat(count));
            let wasm = wat::parse_str(text).unwrap();
            let bodies = Parser::new(0).parse_all(&wasm).filter_map(|payload| match payload.unwrap() {
                Payload::CodeSectionEntry(body) => Some(body),
                _ => None,
            });
            let all = bodies
                .flat_map(|body| body.get_operators_reader().unwrap().into_iter().map(|op| operator(&op.unwrap())));
            let expected = format!("br_table{}{more} 0", " 0".repeat(MAX_SHOWN_TARGETS));
            assert_eq!(all.filter(|op| op.starts_with("br_table")).collect::<Vec<_>>(), [expected]);
        }
    }
}
