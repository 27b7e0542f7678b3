//! Types and declarations, as modules have them.

words! {
    /// A Wasm value type, as far as these runtimes have them.
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
        /// Reference to something of the host.
        ExternRef = "externref",
        /// Any other reference.
        Ref = "ref",
    }

    /// What an export is.
    ExternKind {
        /// Function.
        Function = "func",
        /// Linear memory.
        Memory = "memory",
        /// Global.
        Global = "global",
        /// Table.
        Table = "table",
        /// Exception tag.
        Tag = "tag",
    }

    /// Where a function's name comes from.
    NameSource {
        /// A symbol of an executable, a library or a code image.
        Symbol = "symbol",
        /// Debug information.
        Dwarf = "dwarf",
        /// The module exports the function by it.
        Export = "export",
        /// The module's name section.
        NameSection = "name section",
        /// The module imports the function by it: `module.name`.
        Import = "import",
        /// The runtime's own list of symbols of the module.
        SymbolMap = "symbol map",
        /// What the tables of a code image say that the code is.
        CodeImage = "code image",
        /// The code was recognised by its bytes.
        RecognisedCode = "recognised code",
    }
}

/// A linear memory, as the module declares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryDecl {
    /// Whether its addresses have 64 bits.
    pub memory64: bool,
    /// Whether threads share it.
    pub shared: bool,
    /// Pages at most, if it says and that is known.
    pub maximum: Option<u64>,
}

/// A global, as the module declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalDecl {
    /// Type, if known.
    pub ty: Option<ValType>,
    /// Whether code may write it, if known.
    pub mutable: Option<bool>,
}

/// An export of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestExport {
    /// Name.
    pub name: String,
    /// What it is.
    pub kind: ExternKind,
    /// Index in that index space.
    pub index: u32,
}

impl ValType {
    /// The text format's name.
    pub fn name(self) -> &'static str {
        self.as_str()
    }

    /// Whether it is a reference: its bits are the runtime's own, zero is null.
    pub fn is_reference(self) -> bool {
        matches!(self, ValType::FuncRef | ValType::ExternRef | ValType::Ref)
    }
}

impl ExternKind {
    /// The text format's name.
    pub fn name(self) -> &'static str {
        self.as_str()
    }
}
