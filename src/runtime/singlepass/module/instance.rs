//! Linear memories, tables and globals of an instance, read through its `vm::Ctx`.

use super::Module;
use super::ctx::Ctx;
use crate::arch::x64;
use crate::limits::MAX_INSTANCE_ARRAY;
use crate::process::Memory;
use crate::runtime::{GlobalCell, InstanceParts, Place, Slot, Value, Why};
use crate::wasm::ValType;
use std::sync::Arc;

/// Reads element `index` of the array of pointers at `array`.
fn element(array: u64, index: u64, memory: &dyn Memory) -> Result<u64, Why> {
    let at =
        index.checked_mul(8).and_then(|o| array.checked_add(o)).filter(|_| index < MAX_INSTANCE_ARRAY && array != 0);
    memory.read_u64(at.ok_or_else(|| Why::other("the instance's arrays have no such element"))?).map_err(Why::Memory)
}

/// Reads the pointer to memory, table or global `index`. Imported ones come first in the index space; an instance has
/// one array of pointers for the imported ones and one for its own. `counts` has the number of imported and of own
/// ones.
fn pointer(own: u64, imported: u64, counts: (u64, u64), index: u32, memory: &dyn Memory) -> Result<u64, Why> {
    let index = u64::from(index);
    match index.checked_sub(counts.0) {
        None => element(imported, index, memory),
        Some(i) if i < counts.1 => element(own, i, memory),
        Some(_) => Err(Why::Other(match counts.0.saturating_add(counts.1) {
            0 => "the module has none".to_string(),
            n => format!("the module has {n}"),
        })),
    }
}

/// Address and size in bytes of linear memory `index` (`vm.rs: LocalMemory`: base, bound).
pub fn linear_memory(module: &Module, instance: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why> {
    let ctx = Ctx::read(memory, instance).map_err(Why::Memory)?;
    let Some(counts) = module.memories() else {
        // Compiled code reads the first memory's base and size from the context itself.
        return match (index, ctx.memory_base) {
            (0, 0) => Err(Why::other("the module has no memory")),
            (0, base) => Ok((base, ctx.memory_bound)),
            _ => Err(Why::other("how many memories the module has is not known")),
        };
    };
    let at = pointer(ctx.memories, ctx.imported_memories, counts, index, memory)?;
    let base = memory.read_u64(at).map_err(Why::Memory)?;
    let bound = memory.read_u64(at.wrapping_add(8)).map_err(Why::Memory)?;
    match base.checked_add(bound) {
        Some(_) if base != 0 => Ok((base, bound)),
        _ => Err(Why::Damaged { address: at }),
    }
}

/// Number of elements of table `index` (`vm.rs: LocalTable`: base, count).
pub fn table(module: &Module, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
    let ctx = Ctx::read(memory, instance).map_err(Why::Memory)?;
    let counts = module.tables().ok_or(Why::NoDescription { what: "tables" })?;
    let at = pointer(ctx.tables, ctx.imported_tables, counts, index, memory)?;
    let count = memory.read_u64(at.wrapping_add(8)).map_err(Why::Memory)?;
    match u32::try_from(count) {
        Ok(_) => Ok(count),
        Err(_) => Err(Why::Damaged { address: at }),
    }
}

/// Checks that there is an instance of `module` at `instance`, as far as that can be told: where the address of the
/// module's `ModuleInner` is not known, any readable context passes.
pub fn check(module: &Module, instance: u64, memory: &dyn Memory) -> Result<(), Why> {
    let ctx = Ctx::read(memory, instance).map_err(Why::Memory)?;
    match module.inner {
        Some(inner) if inner != ctx.module => Err(Why::other("the instance at this address belongs to another module")),
        _ => Ok(()),
    }
}

/// Value of global `index` (`vm.rs: LocalGlobal`: 16 bytes of data).
pub fn global(module: &Module, instance: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why> {
    let ctx = Ctx::read(memory, instance).map_err(Why::Memory)?;
    let (all, imported) = module.globals().ok_or(Why::NoDescription { what: "globals" })?;
    let counts = (imported, (all.len() as u64).saturating_sub(imported));
    let at = pointer(ctx.globals, ctx.imported_globals, counts, index, memory)?;
    let bits = memory.read_u64(at).map_err(Why::Memory)?;
    let ty = all.get(index as usize).and_then(|g| g.ty);
    // Compiled code reaches the global through the context register, so the place is relative to that register; the
    // address is what a reader can use.
    let offset = at.wrapping_sub(instance) as i64;
    Ok(Value {
        ty,
        slot: Slot::Known { bits: bits.into(), place: Place::Memory { base: x64::R15, offset, address: at } },
    })
}

/// Reads what `state.rs: build_instance_image` reads, and what that leaves out but going on from an image needs.
pub fn parts(module: &Module, instance: u64, memory: &dyn Memory) -> Result<InstanceParts, Why> {
    let ctx = Ctx::read(memory, instance).map_err(Why::Memory)?;
    let (all, imported) = module.globals().ok_or(Why::NoDescription { what: "globals" })?;
    if ctx.memory_base.checked_add(ctx.memory_bound).is_none() {
        return Err(Why::other("the instance's context is damaged"));
    }
    let counts = (imported, (all.len() as u64).saturating_sub(imported));
    let mut cells = Vec::new();
    for (index, global) in all.iter().enumerate() {
        let ty = global.ty.ok_or_else(|| Why::Other(format!("the type of global {index} is not known")))?;
        let address = pointer(ctx.globals, ctx.imported_globals, counts, index as u32, memory)?;
        cells.push(GlobalCell { ty, address, bits: global_bits(ty, address, memory)? });
    }
    let own_memory = module.memories().is_some_and(|(imported, own)| imported == 0 && own > 0);
    let globals = cells.split_off(usize::try_from(imported).unwrap_or(usize::MAX).min(cells.len()));
    Ok(InstanceParts {
        map: Arc::clone(module.map.all(memory).map_err(Why::Other)?),
        code_base: module.code.0,
        vmctx: instance,
        memory: (ctx.memory_base != 0).then_some((ctx.memory_base, ctx.memory_bound)),
        memory_at: if own_memory { Some(element(ctx.memories, 0, memory)?) } else { None },
        grow: memory.read_u64(ctx.intrinsics).ok().filter(|&f| f != 0),
        globals,
        imported_globals: cells,
    })
}

/// The value of a global as `Value::to_u128` has it: bits above the type are not taken from the cell, which holds
/// there what was there before.
fn global_bits(ty: ValType, address: u64, memory: &dyn Memory) -> Result<u128, Why> {
    let mut bytes = [0; 16];
    memory.read(address, &mut bytes).map_err(Why::Memory)?;
    let bits = u128::from_le_bytes(bytes);
    Ok(match ty {
        ValType::I32 => bits as i32 as u128,
        ValType::I64 => bits as i64 as u128,
        ValType::F32 => u128::from(bits as u32),
        ValType::F64 => u128::from(bits as u64),
        _ => bits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::Pieces;

    #[test]
    fn an_array_has_an_end() {
        let memory = Pieces::default().words(0x1000 + 8 * (MAX_INSTANCE_ARRAY - 1), &[7, 8]);
        assert_eq!(element(0x1000, MAX_INSTANCE_ARRAY - 1, &memory), Ok(7));
        assert!(element(0x1000, MAX_INSTANCE_ARRAY, &memory).is_err());
    }
}
