//! Reads `.wasmtime.info`, structure by structure, in the layout of one version.

use std::sync::Arc;

use super::{
    CompiledFunction, Counts, Entity, Export, FuncKey, FuncKeyBits, FuncKind, FuncType, GlobalType, ImageInfo, Import,
    Limits, MemoryType, Meta, ModuleFunction, ModuleInfo, NameRange, RefTo, TableType, WasmType,
};
use crate::limits::{MAX_FUNCTIONS, MAX_IMAGE_MODULES};
use crate::runtime::wasmtime::image::postcard::{Malformed, Reader};
use crate::runtime::wasmtime::image::shape;
use crate::runtime::wasmtime::image::version::Version;

type Result<T, E = Malformed> = std::result::Result<T, E>;

// Reads the runtime's structures. Each method has the name of the structure that it reads.
pub(super) struct Decoder<'a> {
    pub(super) r: Reader<'a>,
    pub(super) v: Version,
}

impl<'a> Decoder<'a> {
    fn since(&self, first: u32) -> bool {
        self.v.0 >= first
    }

    fn skip(&mut self, shape: &shape::Shape) -> Result<()> {
        shape.skip(&mut self.r, self.v)
    }

    fn seq<T>(&mut self, mut element: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let n = self.r.count()?;
        let mut out = Vec::new();
        for _ in 0..n {
            out.push(element(self)?);
        }
        Ok(out)
    }

    fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.r.bool()? { value(self).map(Some) } else { Ok(None) }
    }

    pub(super) fn module_image(&mut self) -> Result<ImageInfo> {
        let mut functions = Vec::new();
        let module = self.compiled_module_info(0, &mut functions)?;
        if self.since(38) {
            self.compiled_functions_table(&mut functions)?;
        }
        let types = self.module_types()?;
        Ok(self.finish(vec![module], types, functions))
    }

    pub(super) fn component_image(&mut self) -> Result<ImageInfo> {
        let mut functions = Vec::new();
        self.r.u32()?;
        self.skip(&shape::COMPONENT)?;
        if self.since(38) {
            self.compiled_functions_table(&mut functions)?;
        } else {
            self.component_functions(&mut functions)?;
        }
        self.skip(&shape::COMPONENT_TYPES_BEFORE)?;
        let types = self.option(Self::module_types)?.unwrap_or_default();
        self.skip(&shape::COMPONENT_TYPES_BEHIND)?;
        let mut modules = Vec::new();
        let count = self.r.count()?;
        if count > MAX_IMAGE_MODULES as usize {
            return Err(self.r.wrong("more modules than are looked at"));
        }
        for index in 0..count {
            modules.push(self.compiled_module_info(index as u32, &mut functions)?);
        }
        self.skip(&shape::CHECKSUM)?;
        Ok(self.finish(modules, types, functions))
    }

    fn finish(
        &self,
        modules: Vec<ModuleInfo>,
        types: Vec<Option<FuncType>>,
        mut functions: Vec<CompiledFunction>,
    ) -> ImageInfo {
        functions.sort_by_key(|f| (f.start, f.len));
        // Each core module of an old component lists the same exit trampolines.
        functions.dedup();
        ImageInfo { version: self.v, modules, types, functions }
    }

    fn compiled_module_info(&mut self, index: u32, functions: &mut Vec<CompiledFunction>) -> Result<ModuleInfo> {
        let mut module = self.module(index)?;
        if self.since(38) {
            module.meta = self.metadata()?;
            module.function_names = self.seq(Self::function_name)?;
        } else {
            self.compiled_functions(module.index, functions)?;
            module.function_names = self.seq(Self::function_name)?;
            let exits = self.seq(|d| Ok((d.r.u32()?, d.function_loc()?)))?;
            let exit = |(index, (start, len))| compiled(FuncKind::WasmToArray, 0, index, start, len);
            functions.extend(exits.into_iter().map(exit));
            module.meta = self.metadata()?;
        }
        self.skip(&shape::CHECKSUM)?;
        Ok(module)
    }

    fn module(&mut self, index: u32) -> Result<ModuleInfo> {
        let index = if self.since(38) { self.r.u32()? } else { index };
        let pool: Option<Vec<Arc<str>>> =
            if self.since(43) { Some(self.seq(|d| d.r.str().map(Arc::from))?) } else { None };
        // A string is a number in the pool, counted from one, or stands here. Strings are shared, because a few bytes
        // of input can name a long string many times.
        let text = |d: &mut Self| -> Result<Arc<str>> {
            match &pool {
                None => d.r.str().map(Arc::from),
                Some(pool) => {
                    let wrong = d.r.wrong("no such string");
                    let number = d.r.u32()? as usize;
                    number.checked_sub(1).and_then(|i| pool.get(i)).cloned().ok_or(wrong)
                }
            }
        };
        let name = self.option(text)?;
        let imports = self.seq(|d| {
            let wrong = d.r.wrong("no import");
            if d.r.u64()? != 0 {
                return Err(wrong);
            }
            Ok(Import { module: text(d)?, field: text(d)?, entity: d.entity_index()? })
        })?;
        let exports = self.seq(|d| Ok(Export { name: text(d)?, entity: d.entity_index()? }))?;
        let (mut start, mut has_startup, mut runtime_data) = (None, false, Vec::new());
        if self.since(46) {
            has_startup = self.module_startup()?;
            self.seq(|d| d.seq(|d| d.r.u32()))?;
            self.skip(&shape::MEMORY_INITIALIZATION)?;
            self.seq(|d| {
                d.skip(&shape::REF_TYPE)?;
                d.r.u64()
            })?;
            runtime_data = self.seq(|d| Ok((d.r.u32()?, d.r.u32()?)))?;
        } else {
            start = self.option(|d| d.r.u32())?;
            self.skip(&shape::TABLE_INITIALIZATION)?;
            self.skip(&shape::MEMORY_INITIALIZATION)?;
            self.seq(|d| d.skip(&shape::TABLE_SEGMENT_ELEMENTS))?;
            // Two lists about element and data segments, by their index.
            self.seq(|d| Ok((d.r.u64()?, d.r.u64()?)))?;
            self.seq(|d| Ok((d.r.u64()?, d.r.u64()?, d.r.u64()?)))?;
        }
        self.seq(|d| d.skip(&shape::TYPE_INDEX))?;
        let imported = Counts {
            functions: self.r.u32()?,
            tables: self.r.u32()?,
            memories: self.r.u32()?,
            globals: self.r.u32()?,
            tags: self.r.u32()?,
        };
        let needs_gc_heap = self.r.bool()?;
        let escaped_functions = self.r.u32()?;
        let functions = self.seq(|d| {
            let signature = d.type_index()?;
            let func_ref = d.r.u32()?;
            Ok(ModuleFunction { signature, func_ref: (func_ref != u32::MAX).then_some(func_ref) })
        })?;
        let tables =
            self.seq(|d| Ok(TableType { table64: d.index_type()?, limits: d.limits()?, element: d.ref_type()? }))?;
        let memories = self.seq(|d| {
            Ok(MemoryType {
                memory64: d.index_type()?,
                limits: d.limits()?,
                shared: d.r.bool()?,
                page_size_log2: d.r.byte()?,
            })
        })?;
        let globals = self.seq(|d| Ok(GlobalType { ty: d.val_type()?, mutable: d.r.bool()? }))?;
        if self.since(46) {
            self.seq(|d| {
                d.r.u32()?;
                d.skip(&shape::GLOBAL_CONST)
            })?;
        } else {
            self.seq(|d| d.skip(&shape::CONST_EXPR))?;
        }
        let tags = self.seq(|d| d.skip(&shape::TAG))?.len() as u32;
        Ok(ModuleInfo {
            index,
            name,
            imports,
            exports,
            start,
            has_startup,
            imported,
            needs_gc_heap,
            escaped_functions,
            runtime_data,
            functions,
            tables,
            memories,
            globals,
            tags,
            function_names: Vec::new(),
            meta: Meta::default(),
        })
    }

    fn metadata(&mut self) -> Result<Meta> {
        Ok(Meta {
            unparsed_debug_info: self.r.bool()?,
            code_section_offset: self.r.u64()?,
            wasm_debug_info: self.r.bool()?,
            dwarf: self.seq(|d| Ok((d.r.byte()?, d.r.u64()?, d.r.u64()?)))?,
        })
    }

    fn function_name(&mut self) -> Result<NameRange> {
        Ok(NameRange { function: self.r.u32()?, offset: self.r.u32()?, len: self.r.u32()? })
    }

    fn function_loc(&mut self) -> Result<(u32, u32)> {
        Ok((self.r.u32()?, self.r.u32()?))
    }

    // Reads the `CompiledFunctionInfo` of each defined function, up to version 37.
    fn compiled_functions(&mut self, module: u32, functions: &mut Vec<CompiledFunction>) -> Result<()> {
        for index in 0..self.r.count()? as u32 {
            let body = self.r.u32()?;
            let (start, len) = self.function_loc()?;
            let entry = self.option(Self::function_loc)?;
            let body = (body != u32::MAX).then_some(body);
            functions.push(CompiledFunction { body, ..compiled(FuncKind::Wasm, module, index, start, len) });
            if let Some((start, len)) = entry {
                functions.push(compiled(FuncKind::ArrayToWasm, module, index, start, len));
            }
        }
        Ok(())
    }

    // Reads the glue code of a component, up to version 37: each piece in two calling conventions, and the code that
    // drops resources.
    fn component_functions(&mut self, functions: &mut Vec<CompiledFunction>) -> Result<()> {
        for index in 0..self.r.count()? as u32 {
            for convention in [0, 1] {
                let (start, len) = self.function_loc()?;
                functions.push(compiled(FuncKind::ComponentTrampoline, convention, index, start, len));
            }
        }
        if let Some((start, len)) = self.option(Self::function_loc)? {
            functions.push(compiled(FuncKind::ResourceDrop, 0, 0, start, len));
        }
        Ok(())
    }

    // Reads the table of functions, from version 38 on: `namespaces` are runs of functions of one kind and module.
    fn compiled_functions_table(&mut self, functions: &mut Vec<CompiledFunction>) -> Result<()> {
        let at = self.r.wrong("the table of functions does not fit together");
        let numbers = |d: &mut Self| d.seq(|d| d.r.u32());
        let namespaces = numbers(self)?;
        let loc_starts = numbers(self)?;
        let sparse_starts = numbers(self)?;
        let body_starts = numbers(self)?;
        let sparse = numbers(self)?;
        let locs = self.seq(Self::function_loc)?;
        let bodies = numbers(self)?;
        let bits = if self.since(41) { FuncKeyBits::Four } else { FuncKeyBits::Three };
        if locs.len() > MAX_FUNCTIONS {
            return Err(at);
        }
        for (i, &namespace) in namespaces.iter().enumerate() {
            let start = |of: &[u32], end: usize| {
                let begin = *of.get(i)? as usize;
                Some((begin, of.get(i + 1).map_or(end, |n| *n as usize)))
            };
            let (begin, end) = start(&loc_starts, locs.len()).ok_or(at)?;
            let (sparse_begin, _) = start(&sparse_starts, sparse.len()).ok_or(at)?;
            let (body_begin, _) = start(&body_starts, bodies.len()).ok_or(at)?;
            // Each run begins where the last one ended, so that no entry is taken twice.
            if begin > end || (i == 0 && begin != 0) {
                return Err(at);
            }
            for (k, &(start, len)) in locs.get(begin..end).ok_or(at)?.iter().enumerate() {
                let mut key = FuncKey::from_parts(namespace, k as u32, bits).ok_or(at)?;
                if !key.kind.dense() {
                    key.index = *sparse.get(sparse_begin.saturating_add(k)).ok_or(at)?;
                }
                let body = match key.kind {
                    FuncKind::Wasm => *bodies.get(body_begin.saturating_add(k)).ok_or(at)?,
                    _ => u32::MAX,
                };
                // An entry without bytes is a number that was not compiled.
                if len > 0 {
                    functions.push(CompiledFunction { key, start, len, body: (body != u32::MAX).then_some(body) });
                }
            }
        }
        Ok(())
    }

    fn module_types(&mut self) -> Result<Vec<Option<FuncType>>> {
        // Recursion groups, which are ranges of types.
        self.seq(|d| Ok((d.r.u32()?, d.r.u32()?)))?;
        let types = self.seq(Self::wasm_sub_type)?;
        self.skip(&shape::TRAMPOLINE_TYPES)?;
        Ok(types)
    }

    fn wasm_sub_type(&mut self) -> Result<Option<FuncType>> {
        self.r.bool()?;
        self.option(Self::type_index)?;
        let wrong = self.r.wrong("no such type");
        let function = match self.r.u64()? {
            0 => {
                self.field_type()?;
                None
            }
            1 => Some(self.wasm_func_type()?),
            2 => {
                self.seq(Self::field_type)?;
                None
            }
            3 => {
                self.type_index()?;
                None
            }
            4 => {
                self.type_index()?;
                self.seq(Self::field_type)?;
                None
            }
            _ => return Err(wrong),
        };
        // The flag `shared`.
        self.r.bool()?;
        Ok(function)
    }

    fn wasm_func_type(&mut self) -> Result<FuncType> {
        if !self.since(43) {
            let params = self.seq(Self::val_type)?;
            self.r.u64()?;
            let results = self.seq(Self::val_type)?;
            self.r.u64()?;
            return Ok(FuncType { params, results });
        }
        let mut params = self.seq(Self::val_type)?;
        let wrong = self.r.wrong("more parameters than types");
        let split = self.r.u32()? as usize;
        self.r.u32()?;
        self.r.u32()?;
        if split > params.len() {
            return Err(wrong);
        }
        let results = params.split_off(split);
        Ok(FuncType { params, results })
    }

    fn field_type(&mut self) -> Result<()> {
        let wrong = self.r.wrong("no such storage type");
        match self.r.u64()? {
            0 | 1 => {}
            2 => self.skip(&shape::VAL_TYPE)?,
            _ => return Err(wrong),
        }
        self.r.bool().map(|_| ())
    }

    fn module_startup(&mut self) -> Result<bool> {
        let wrong = self.r.wrong("no such way to start");
        match self.r.u64()? {
            0 => Ok(false),
            1 | 2 => self.type_index().map(|_| true),
            _ => Err(wrong),
        }
    }

    fn index_type(&mut self) -> Result<bool> {
        let wrong = self.r.wrong("no such index type");
        match self.r.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(wrong),
        }
    }

    fn limits(&mut self) -> Result<Limits> {
        Ok(Limits { min: self.r.u64()?, max: self.option(|d| d.r.u64())? })
    }

    // Reads an index among the image's types. In an image such indices are not yet the engine's.
    fn type_index(&mut self) -> Result<Option<u32>> {
        let wrong = self.r.wrong("no such kind of type index");
        let kind = self.r.u64()?;
        let index = self.r.u32()?;
        match kind {
            0 | 2 => Ok(None),
            1 => Ok(Some(index)),
            _ => Err(wrong),
        }
    }

    fn entity_index(&mut self) -> Result<Entity> {
        let wrong = self.r.wrong("no such kind of item");
        let kind = self.r.u64()?;
        let index = self.r.u32()?;
        match kind {
            0 => Ok(Entity::Function(index)),
            1 => Ok(Entity::Table(index)),
            2 => Ok(Entity::Memory(index)),
            3 => Ok(Entity::Global(index)),
            4 => Ok(Entity::Tag(index)),
            _ => Err(wrong),
        }
    }

    fn val_type(&mut self) -> Result<WasmType> {
        let wrong = self.r.wrong("no such value type");
        match self.r.u64()? {
            0 => Ok(WasmType::I32),
            1 => Ok(WasmType::I64),
            2 => Ok(WasmType::F32),
            3 => Ok(WasmType::F64),
            4 => Ok(WasmType::V128),
            5 => self.ref_type(),
            _ => Err(wrong),
        }
    }

    fn ref_type(&mut self) -> Result<WasmType> {
        let nullable = self.r.bool()?;
        let wrong = self.r.wrong("no such heap type");
        // extern, func, exn and cont have an abstract, a concrete and a bottom type each (extern has no concrete
        // one). The other numbers are types below any.
        let to = match self.r.u64()? {
            0 | 1 => RefTo::Extern,
            n @ 2..=4 => self.heap(n == 3, RefTo::Func)?,
            n @ 5..=7 => self.heap(n == 6, RefTo::Exn)?,
            n @ 8..=10 => self.heap(n == 9, RefTo::Cont)?,
            n @ 11..=18 => self.heap(n == 15 || n == 17, RefTo::Any)?,
            _ => return Err(wrong),
        };
        Ok(WasmType::Ref { nullable, to })
    }

    fn heap(&mut self, concrete: bool, to: RefTo) -> Result<RefTo> {
        if concrete {
            self.type_index()?;
        }
        Ok(to)
    }
}

fn compiled(kind: FuncKind, namespace: u32, index: u32, start: u32, len: u32) -> CompiledFunction {
    CompiledFunction { key: FuncKey { kind, namespace, index }, start, len, body: None }
}
