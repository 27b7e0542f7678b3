//! Turns the declarations of `.wasmtime.info` into those that all runtimes share.

use super::image::info::{Entity, Export, GlobalType, MemoryType, TableType};
use crate::wasm::{ExternKind, GlobalDecl, GuestExport, MemoryDecl, TableDecl};

impl From<&MemoryType> for MemoryDecl {
    fn from(ty: &MemoryType) -> Self {
        MemoryDecl {
            minimum: ty.limits.min,
            maximum: ty.limits.max,
            memory64: ty.memory64,
            shared: ty.shared,
            page_size_log2: ty.page_size_log2.into(),
        }
    }
}

impl From<&TableType> for TableDecl {
    fn from(ty: &TableType) -> Self {
        TableDecl { minimum: ty.limits.min, maximum: ty.limits.max, table64: ty.table64, element: ty.element.into() }
    }
}

impl From<&GlobalType> for GlobalDecl {
    fn from(ty: &GlobalType) -> Self {
        GlobalDecl { ty: Some(ty.ty.into()), mutable: Some(ty.mutable) }
    }
}

impl From<&Export> for GuestExport {
    fn from(export: &Export) -> Self {
        let (kind, index) = export.entity.kind_and_index();
        GuestExport { name: export.name.to_string(), kind, index }
    }
}

impl Entity {
    /// The kind of the thing, and its index in the index space of that kind.
    pub(super) fn kind_and_index(self) -> (ExternKind, u32) {
        match self {
            Entity::Function(index) => (ExternKind::Function, index),
            Entity::Table(index) => (ExternKind::Table, index),
            Entity::Memory(index) => (ExternKind::Memory, index),
            Entity::Global(index) => (ExternKind::Global, index),
            Entity::Tag(index) => (ExternKind::Tag, index),
        }
    }
}
