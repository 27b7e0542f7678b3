//! Wasmtime: reads what the code that this runtime compiled says about itself.
//!
//! Compiled code lies in one contiguous *image*, an ELF file that is mapped as it is (a `.cwasm` file has the same
//! bytes). [`find`] finds images in a target, `tables::code` puts together what one image says, and `walk`
//! reads frames. Each of the other modules reads one section. They touch nothing but the bytes they are given, which come from a
//! file or through [`Memory`].
//!
//! | module | reads | layout depends on the version |
//! |---|---|---|
//! | [`image`] | ELF header, sections, version, symbols | no |
//! | [`tables::addrmap`] | `.wasmtime.addrmap`: code offset -> offset in the Wasm file | two formats |
//! | [`tables::frame_table`] | `.wasmtime.frames`: code offset -> locals and operand stack (`guest_debug`) | two formats |
//! | [`tables::dwarf`] | `.debug_*`: code offset -> source functions, lines, variables (`debug_info`) | no |
//! | [`image::engine`] | `.wasmtime.engine`: what the compiler could inline | with nearly every major |
//! | [`image::info`] | `.wasmtime.info`: modules, types, functions, names | with nearly every major |
//! | [`instance::offsets`] | where an instance (`VMContext`) and a store keep what | at 37, 38, 39, 43, 45, 46, 47, 48 |
//! | [`instance`] | memories, globals, tables, imports of instances; what modules declare | [`image::info`], [`instance::offsets`] |
//!
//! Where there are two formats, they are told apart by structure. What does not depend on the version works for any
//! version. The rest works for the versions of [`image::version`], and an unknown version is an error that says so.

pub mod code_map;
mod declarations;
pub mod find;
pub mod image;
pub mod instance;
pub mod stubs;
pub mod tables;
#[cfg(test)]
mod testing;
mod walk;

pub use self::image::version::Version;

use self::tables::code::Code;
use self::walk::chain::{Chain, Solved};
use self::walk::flow::{Facts, Flow, Held, Hints, near_start};
use self::walk::{anchor, exit, frame, recover, waiting};
use super::code_map::{CodeMap, Detail};
use super::{Declared, GuestFrame, GuestInstance, GuestModule, Runtime, Tables, Value, Why};
use crate::arch::{CodeAddress, x64};
use crate::limits::{MAX_FLOW_BYTES, MAX_FLOW_FUNCTIONS, MAX_IMAGES_MODULES, MAX_INSTANCE_CHECKS, MAX_KNOWN_INSTANCES};
use crate::process::{Mapping, Memory};
use crate::unwind::{Cursor, Next, Unwinder};
use crate::wasm::WasmModule;
use image::{Function, FunctionKind};
use instance::{Context, Described};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

/// A `.wasm` file that an image carries. Two of them are equal if they have the same bytes.
struct Carried(Rc<WasmModule>);

impl PartialEq for Carried {
    fn eq(&self, other: &Carried) -> bool {
        self.0.bytes() == other.0.bytes()
    }
}

impl Eq for Carried {}

impl Hash for Carried {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.bytes().hash(state);
    }
}

/// The code images of this runtime in one target.
#[derive(Default)]
pub struct Wasmtime {
    codes: Vec<Code>,
    listed: Vec<GuestModule>,
    /// For each module in `listed`, the index of its image in `codes`.
    owner: Vec<usize>,
    notes: Vec<String>,
    mappings: Vec<Mapping>,
    /// The `.wasm` files that images carry.
    carried: HashSet<Carried>,
    /// The frames that were walked through, and the instance that each one runs in.
    chain: RefCell<Chain>,
    /// Stack pointers of the native frames that entered Wasm, from all walks.
    entered: RefCell<BTreeSet<u64>>,
    /// For each exit from Wasm that the runtime's own words led to: an instance of the store that was left. The key
    /// is the frame pointer of the exit trampoline.
    anchored: RefCell<HashMap<u64, u64>>,
    /// The functions whose code was followed, by the address of their first byte. `None` if the code cannot be
    /// followed.
    flows: RefCell<HashMap<u64, Option<Rc<Flow>>>>,
    /// Indexes in `codes` of the images of which a walk met a frame of a Wasm function.
    ran: RefCell<BTreeSet<usize>>,
    /// What the code says about each address that was asked for. `None` if it says nothing.
    facts: RefCell<HashMap<CodeAddress, Option<Rc<Facts>>>>,
}

/// Number of bytes that hold what a compiler puts at the start of a function before anything else.
const BEGINNING_BYTES: usize = 128;

/// From this version on, functions that Winch compiles take their arguments off the stack.
const WINCH_CALLEES_POP: Version = Version(50);

/// What has to be known of a function, apart from its bytes, to follow its code.
fn hints(code: &Code, function: &Function) -> Hints {
    let winch_callees_pop = code.version.is_none_or(|v| v >= WINCH_CALLEES_POP);
    Hints { winch_callees_pop, handlers: code.handlers(function) }
}

impl Wasmtime {
    fn add(&mut self, mut code: Code) {
        code.first = self.listed.len();
        if code.first + code.modules > MAX_IMAGES_MODULES && code.modules > 1 {
            let why =
                format!("the code images have more than {MAX_IMAGES_MODULES} modules: those of this one are left out");
            code.leave_out_modules(Why::Other(why));
        }
        // Each store runs its own copy of code that was compiled for a debugger. The copies carry the same `.wasm`
        // file, which is kept once.
        for own in code.wasm.iter_mut().flatten() {
            match self.carried.get(&Carried(Rc::clone(own))) {
                Some(Carried(same)) => *own = Rc::clone(same),
                None => _ = self.carried.insert(Carried(Rc::clone(own))),
            }
        }
        for module in 0..code.modules {
            self.listed.push(find::guest_module(&code, module));
            self.owner.push(self.codes.len());
        }
        self.codes.push(code);
    }

    fn code_at(&self, address: u64) -> Option<&Code> {
        self.codes.iter().find(|c| c.contains(address))
    }

    /// The image of a module, and the module's number in it.
    fn place(&self, module: usize) -> Result<(&Code, usize), Why> {
        let code = self.owner.get(module).and_then(|&i| self.codes.get(i));
        let code = code.ok_or(Why::NoSuchModule)?;
        Ok((code, module - code.first))
    }

    fn described(&self, module: usize) -> Result<Described<'_>, Why> {
        let (code, module) = self.place(module)?;
        let info = code.info.as_ref().map_err(Why::clone)?;
        Described::new(info, module as u32, code.version.unwrap_or(info.version), code.image.text())
    }

    /// Whether an instance of `module` can be at `vmctx`. Where the layout is not known, nothing can be compared with
    /// the module, and any `VMContext` will do.
    fn can_be_instance(&self, module: usize, vmctx: u64, memory: &dyn Memory) -> bool {
        match self.described(module) {
            Ok(d) => d.validate(vmctx, &self.mappings, memory).is_ok(),
            Err(_) => exit::is_vmctx(vmctx, memory),
        }
    }

    /// The modules that the instance at `vmctx` can be an instance of. A module that the instance's own pointers name
    /// wins over modules that the instance merely does not contradict. `None` if this needs more than `left`
    /// comparisons.
    fn modules_of_instance(&self, vmctx: u64, memory: &dyn Memory, left: &mut usize) -> Option<Vec<usize>> {
        *left = left.checked_sub(self.listed.len())?;
        let (mut tied, mut untied) = (Vec::new(), Vec::new());
        for module in 0..self.listed.len() {
            let checked = self.described(module).and_then(|d| d.validate(vmctx, &self.mappings, memory));
            match checked {
                Ok(checked) if checked.tied => tied.push(module),
                Ok(_) => untied.push(module),
                Err(_) => {}
            }
        }
        Some(if tied.is_empty() { untied } else { tied })
    }

    /// What the function has done, when it comes to `at`, with the registers that it was called with. `None` if the
    /// code cannot be followed there.
    fn facts(&self, code: &Code, at: CodeAddress, memory: &dyn Memory) -> Option<Rc<Facts>> {
        if let Some(known) = self.facts.borrow().get(&at) {
            return known.clone();
        }
        let follow = || -> Option<Rc<Facts>> {
            let function = code.function(at.lookup())?;
            let start = code.image.text().start + u64::from(function.start);
            let mut flows = self.flows.borrow_mut();
            if !flows.contains_key(&start) {
                if flows.len() >= MAX_FLOW_FUNCTIONS {
                    return None;
                }
                let len = (function.len as usize).min(MAX_FLOW_BYTES + 1);
                let flow = code
                    .memory(memory)
                    .read_vec(start, len)
                    .ok()
                    .and_then(|bytes| Flow::new(start, bytes, hints(code, &function)));
                flows.insert(start, flow.map(Rc::new));
            }
            match flows.get(&start)? {
                Some(flow) => flow.at(at),
                None => {
                    let len = (function.len as usize).min(BEGINNING_BYTES);
                    near_start(start, &code.memory(memory).read_vec(start, len).ok()?, at)
                }
            }
            .map(Rc::new)
        };
        let found = follow();
        let mut facts = self.facts.borrow_mut();
        if facts.len() < MAX_KNOWN_INSTANCES {
            facts.insert(at, found.clone());
        }
        found
    }

    /// Whether a call returns to `at`. If the function is too large to be followed, the answer is yes.
    fn follows_call(&self, code: &Code, at: CodeAddress, memory: &dyn Memory) -> bool {
        if let Some(facts) = self.facts(code, at, memory) {
            return facts.is_call();
        }
        let start = code.function(at.lookup()).map(|f| code.image.text().start + u64::from(f.start));
        start.is_some_and(|start| !matches!(self.flows.borrow().get(&start), Some(Some(_))))
    }

    /// Keeps what a step from the frame `at` to its caller tells about the instances that frames run in.
    fn remember(&self, code: &Code, at: &Cursor, caller: Option<&Cursor>, memory: &dyn Memory) {
        let Some(function) = code.function(at.address.lookup()) else { return };
        let facts = self.facts(code, at.address, memory);
        let held = |reg| facts.as_ref()?.state.find(Held::Entry(reg), &at.registers, memory);
        let module = |code: &Code, at: &Cursor| code.first + code.module_at(at.address.lookup());
        let runs_wasm = |kind: &FunctionKind| {
            matches!(
                kind,
                FunctionKind::Wasm { .. } | FunctionKind::ArrayToWasm { .. } | FunctionKind::ModuleStart { .. }
            )
        };
        // The caller's image, registers and key, if the caller runs Wasm code or an entry trampoline of this runtime.
        let calling = caller.and_then(|caller| {
            let its = self.code_at(caller.address.lookup())?;
            let kind = its.function(caller.address.lookup())?.kind;
            Some((its, caller, key(caller)?)).filter(|_| runs_wasm(&kind))
        });
        if let (FunctionKind::ArrayToWasm { .. }, Some(sp)) = (&function.kind, caller.and_then(|c| c.registers.sp())) {
            let mut entered = self.entered.borrow_mut();
            if entered.len() < MAX_KNOWN_INSTANCES {
                entered.insert(sp);
            }
        }
        if runs_wasm(&function.kind) {
            let Some(here) = key(at) else { return };
            let module = module(code, at);
            let own = held(x64::RDI).filter(|v| self.can_be_instance(module, *v, memory));
            let start = code.image.text().start + u64::from(function.start);
            let called_by = calling.map(|(its, caller, key)| {
                let call = self.facts(its, caller.address, memory).and_then(|f| f.call(start));
                (key, call)
            });
            let mut chain = self.chain.borrow_mut();
            chain.add(here, module, start, own);
            chain.called_by(here, called_by);
            return;
        }
        // A trampoline to the host keeps its caller's instance, because it has to tell the store about the exit.
        let Some((its, caller, key)) = calling else { return };
        let module = module(its, caller);
        let found = match function.kind {
            FunctionKind::Builtin(_) => held(x64::RDI),
            _ => held(x64::RSI),
        };
        let found = found.filter(|v| self.can_be_instance(module, *v, memory)).or_else(|| {
            let mut found = exit::instances(its, at, caller, memory);
            found.retain(|v| self.can_be_instance(module, *v, memory));
            // If more than one instance fits, none is taken.
            found.pop().filter(|_| found.is_empty())
        });
        let anchored = || self.anchored.borrow().get(&at.registers.get(x64::RBP)?).copied();
        let member = if found.is_none() { exit::store_member(its, at, caller, memory).or_else(anchored) } else { None };
        let mut chain = self.chain.borrow_mut();
        chain.told(key, found);
        chain.of_store(key, member);
    }

    /// Keeps `member`, an instance of the store that was left by an exit found on the stack. `found` is the key of
    /// the frame that was found there.
    fn anchored(&self, exit: &anchor::Exit, found: (u64, u64), member: u64) {
        let mut anchored = self.anchored.borrow_mut();
        if anchored.len() < MAX_KNOWN_INSTANCES {
            anchored.insert(exit.trampoline, member);
        }
        let is_wasm = |f: image::Function| matches!(f.kind, FunctionKind::Wasm { .. });
        let code = found.0.checked_sub(1).and_then(|before| self.code_at(before)?.function(before));
        if code.is_some_and(is_wasm) {
            self.chain.borrow_mut().of_store(found, Some(member));
        }
    }

    /// What follows, for the instances that frames run in, from all frames that were walked through.
    fn solved(&self, memory: &dyn Memory) -> Rc<Solved> {
        self.chain.borrow_mut().solve(self, memory)
    }
}

/// The key of a frame in the chain. `None` if its stack pointer is not known.
fn key(at: &Cursor) -> Option<(u64, u64)> {
    Some((at.address.raw(), at.registers.sp()?))
}

impl Unwinder for Wasmtime {
    fn step(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        let address = at.address.lookup();
        let index = self.codes.iter().position(|c| c.contains(address))?;
        let code = self.codes.get(index)?;
        if code.function(address).is_some_and(|f| f.kind.is_wasm()) {
            self.ran.borrow_mut().insert(index);
        }
        Some(frame::step(self, code, at, memory))
    }
}

impl Runtime for Wasmtime {
    fn name(&self) -> &'static str {
        frame::RUNTIME
    }

    fn modules(&self) -> &[GuestModule] {
        &self.listed
    }

    fn describe(&self, at: &Cursor, memory: &dyn Memory) -> Vec<GuestFrame> {
        match self.code_at(at.address.lookup()) {
            Some(code) => frame::describe(self, code, at, memory),
            None => Vec::new(),
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn may_wait(&self, _: usize) -> bool {
        true
    }

    fn waiting(&self, memory: &dyn Memory) -> Vec<Cursor> {
        if self.codes.is_empty() { Vec::new() } else { waiting::find(&self.mappings, memory) }
    }

    fn recover(&self, at: &Cursor, memory: &dyn Memory) -> Option<Next> {
        recover::recover(self, at, memory)
    }

    fn module_of(&self, address: u64) -> Option<usize> {
        let code = self.code_at(address)?;
        Some(code.first + code.module_at(address))
    }

    fn wasm_file(&self, module: usize) -> Option<&WasmModule> {
        let (code, module) = self.place(module).ok()?;
        code.wasm.get(module)?.as_deref()
    }

    fn linear_memory(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<(u64, u64), Why> {
        self.described(module)?.linear_memory(instance, index, memory)
    }

    fn global(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<Value, Why> {
        self.described(module)?.global(instance, index, memory)
    }

    fn instances(&self, memory: &dyn Memory) -> Vec<GuestInstance> {
        // The search begins with the instances that frames run in and with the other instances of their stores. It
        // goes on to the instances that these import from. The result has all instances or none, because in a part of
        // them an instance could be taken for the only one of its module.
        let solved = self.solved(memory);
        if solved.cut {
            return Vec::new();
        }
        let compared: HashMap<u64, &Vec<usize>> = solved.lists.values().flatten().map(|(v, m)| (*v, m)).collect();
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        let mut open: Vec<u64> = solved.instances().into_iter().collect();
        open.extend(solved.lists.values().flatten().map(|(vmctx, _)| *vmctx));
        let mut out = BTreeSet::new();
        let mut left = MAX_INSTANCE_CHECKS;
        while let Some(vmctx) = open.pop() {
            if seen.len() >= MAX_KNOWN_INSTANCES || !seen.insert(vmctx) {
                continue;
            }
            // If two modules declare the same things, either may be meant, and the instance is not listed here. A
            // frame knows its module, and its instance is named there.
            let modules = match compared.get(&vmctx) {
                Some(modules) => modules.to_vec(),
                None => match self.modules_of_instance(vmctx, memory, &mut left) {
                    Some(modules) => modules,
                    None => return Vec::new(),
                },
            };
            let [module] = modules[..] else { continue };
            out.insert(GuestInstance { module, address: vmctx });
            let imports = self.described(module).and_then(|d| d.imports_of(vmctx, memory)).unwrap_or_default();
            open.extend(imports.iter().filter(|n| n.context == Context::Instance).map(|n| n.address));
        }
        out.into_iter().collect()
    }

    fn check_instance(&self, instance: GuestInstance, memory: &dyn Memory) -> Result<(), Why> {
        self.described(instance.module)?.validate(instance.address, &self.mappings, memory).map(|_| ())
    }

    fn declared(&self, module: usize, _: &dyn Memory) -> Declared {
        let declared = || -> Result<Declared, Why> {
            let (code, number) = self.place(module)?;
            let info = code.info.as_ref().map_err(Why::clone)?;
            let names = code.names().unwrap_or_default();
            Ok(instance::declared(info, number as u32, code.image.text(), &code.functions, names))
        };
        declared().unwrap_or_else(Declared::unknown)
    }

    fn body_offset(&self, module: usize, local_function: u32) -> Option<u64> {
        let (code, number) = self.place(module).ok()?;
        let function = code.imports(number)?.checked_add(local_function)?;
        let known = code.body_offset(number as u32, function).map(u64::from);
        known.or_else(|| {
            let body = code.wasm.get(number)?.as_ref()?.body_offset(local_function)?;
            body.checked_add(code.wasm_shift.get(number).copied().flatten()?)
        })
    }

    fn tables(&self) -> Option<&dyn Tables> {
        Some(self)
    }

    fn code_map(&self, detail: &Detail, memory: &dyn Memory) -> CodeMap {
        code_map::code_map(self, detail, memory)
    }
}

impl Tables for Wasmtime {
    fn table(&self, module: usize, instance: u64, index: u32, memory: &dyn Memory) -> Result<u64, Why> {
        self.described(module)?.table(instance, index, memory)
    }
}
