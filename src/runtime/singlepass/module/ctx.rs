//! `vm::Ctx`, the per-instance context that compiled code carries in r15 (`vm.rs: Ctx`, `repr(C)`).

use crate::bytes::{Bytes, Short};
use crate::process::{Memory, MemoryError};

/// Size of `vm::Ctx` in bytes.
pub const CTX_SIZE: usize = 160;
/// Byte offset of `internal.globals` in `vm::Ctx`.
#[cfg(any(test, feature = "internals"))]
pub const GLOBALS: u64 = 0x10;
/// Byte offset of `internal.imported_globals` in `vm::Ctx`.
#[cfg(any(test, feature = "internals"))]
pub const IMPORTED_GLOBALS: u64 = 0x28;
/// Byte offset of `internal.imported_funcs` in `vm::Ctx`.
#[cfg(any(test, feature = "internals"))]
pub const IMPORTED_FUNCS: u64 = 0x30;
/// Byte offset of `internal.stack_lower_bound` in `vm::Ctx`.
pub const STACK_LOWER_BOUND: u64 = 0x48;
/// Byte offset of `internal.memory_base` in `vm::Ctx`; `memory_bound` follows.
pub const MEMORY_BASE: u64 = 0x50;
/// Byte offset of `local_functions` in `vm::Ctx`.
#[cfg(any(test, feature = "internals"))]
pub const LOCAL_FUNCTIONS: u64 = 0x70;
/// Byte offset of `module` in `vm::Ctx`.
pub const MODULE: u64 = 0x88;

/// The words of a `vm::Ctx`, in the order of their declaration. All are addresses in the target except
/// `memory_bound`, which is a length in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Ctx {
    pub memories: u64,
    pub tables: u64,
    pub globals: u64,
    pub imported_memories: u64,
    pub imported_tables: u64,
    pub imported_globals: u64,
    pub imported_funcs: u64,
    pub dynamic_sigindices: u64,
    pub intrinsics: u64,
    pub stack_lower_bound: u64,
    pub memory_base: u64,
    pub memory_bound: u64,
    pub internals: u64,
    pub interrupt_signal_mem: u64,
    pub local_functions: u64,
    pub local_backing: u64,
    pub import_backing: u64,
    pub module: u64,
    pub data: u64,
    pub data_finalizer: u64,
}

impl Ctx {
    /// Decodes the words and checks none of them.
    pub fn parse(bytes: &[u8]) -> Result<Ctx, Short> {
        let mut b = Bytes::new(bytes);
        Ok(Ctx {
            memories: b.u64()?,
            tables: b.u64()?,
            globals: b.u64()?,
            imported_memories: b.u64()?,
            imported_tables: b.u64()?,
            imported_globals: b.u64()?,
            imported_funcs: b.u64()?,
            dynamic_sigindices: b.u64()?,
            intrinsics: b.u64()?,
            stack_lower_bound: b.u64()?,
            memory_base: b.u64()?,
            memory_bound: b.u64()?,
            internals: b.u64()?,
            interrupt_signal_mem: b.u64()?,
            local_functions: b.u64()?,
            local_backing: b.u64()?,
            import_backing: b.u64()?,
            module: b.u64()?,
            data: b.u64()?,
            data_finalizer: b.u64()?,
        })
    }

    /// Reads the words at `address` and checks none of them.
    pub fn read(memory: &dyn Memory, address: u64) -> Result<Ctx, MemoryError> {
        let mut buf = [0; CTX_SIZE];
        memory.read(address, &mut buf)?;
        // The buffer has exactly the size that `parse` consumes.
        Ok(Ctx::parse(&buf).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_where_the_offsets_say() {
        let bytes: Vec<u8> = (0..20u64).flat_map(|i| (i * 8).to_le_bytes()).collect();
        assert_eq!(bytes.len(), CTX_SIZE);
        let c = Ctx::parse(&bytes).unwrap();
        assert_eq!((c.globals, c.imported_globals, c.imported_funcs), (GLOBALS, IMPORTED_GLOBALS, IMPORTED_FUNCS));
        assert_eq!((c.stack_lower_bound, c.memory_base), (STACK_LOWER_BOUND, MEMORY_BASE));
        assert_eq!((c.local_functions, c.module, c.data_finalizer), (LOCAL_FUNCTIONS, MODULE, 0x98));
        assert!(Ctx::parse(&bytes[..159]).is_err());
    }
}
