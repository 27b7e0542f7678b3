//! Value types, the kinds of imports and exports, and where names come from.

words! {
    /// A Wasm value type that one of the supported runtimes has.
    ValType {
        /// 32-bit integer.
        I32 = "i32",
        /// 64-bit integer.
        I64 = "i64",
        /// 32-bit float.
        F32 = "f32",
        /// 64-bit float.
        F64 = "f64",
        /// 128-bit vector.
        V128 = "v128",
        /// Reference to a function.
        FuncRef = "funcref",
        /// Reference to a value of the host.
        ExternRef = "externref",
        /// Any other reference.
        Ref = "ref",
    }

    /// The kind of an export or import.
    ExternKind {
        /// A function.
        Function = "func",
        /// A linear memory.
        Memory = "memory",
        /// A global.
        Global = "global",
        /// A table.
        Table = "table",
        /// An exception tag.
        Tag = "tag",
    }

    /// Where a function's name comes from.
    NameSource {
        /// A symbol of an executable, a library or a code image.
        Symbol = "symbol",
        /// Debug information.
        Dwarf = "dwarf",
        /// The name under which the module exports the function.
        Export = "export",
        /// The module's name section.
        NameSection = "name section",
        /// The name under which the module imports the function, written `module.name`.
        Import = "import",
        /// The runtime's own list of symbols of the module.
        SymbolMap = "symbol map",
        /// The tables of a code image say which code it is.
        CodeImage = "code image",
        /// The code was recognised by its bytes.
        RecognisedCode = "recognised code",
    }
}

impl ValType {
    /// The name of the type in the text format.
    pub fn name(self) -> &'static str {
        self.as_str()
    }

    /// Whether the type is a reference. The bits of a reference mean something only to the runtime; zero is null.
    pub fn is_reference(self) -> bool {
        matches!(self, ValType::FuncRef | ValType::ExternRef | ValType::Ref)
    }
}

impl ExternKind {
    /// The name of the kind in the text format.
    pub fn name(self) -> &'static str {
        self.as_str()
    }
}

pub(super) fn value_type(ty: wasmparser::ValType) -> Option<ValType> {
    Some(match ty {
        wasmparser::ValType::I32 => ValType::I32,
        wasmparser::ValType::I64 => ValType::I64,
        wasmparser::ValType::F32 => ValType::F32,
        wasmparser::ValType::F64 => ValType::F64,
        wasmparser::ValType::V128 => ValType::V128,
        wasmparser::ValType::Ref(_) => return None,
    })
}

/// The value type of any type, references included. Nothing is computed for references.
pub(super) fn any_type(ty: wasmparser::ValType) -> ValType {
    value_type(ty).unwrap_or(match ty {
        wasmparser::ValType::Ref(r) if r.is_func_ref() => ValType::FuncRef,
        wasmparser::ValType::Ref(r) if r.is_extern_ref() => ValType::ExternRef,
        _ => ValType::Ref,
    })
}
