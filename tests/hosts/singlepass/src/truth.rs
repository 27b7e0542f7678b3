//! The runtime's own answer for a stop, taken in process and written to files.

use crate::{options::Options, report, shim::Entry};
use std::{cell::Cell, io::Write, panic::AssertUnwindSafe, panic::catch_unwind, path::PathBuf, sync::Mutex};
use wasmer_runtime_core::{
    Module,
    fault::FaultInfo,
    module::ModuleInner,
    state::{
        CodeVersion, ExecutionStateImage,
        x64::{GPR, X64Register, build_instance_image, read_stack},
    },
    vm,
};

/// Every code version of this process, in the order of instantiation: the union of what the threads' private
/// `CURRENT_CODE_VERSIONS` hold. Needed where an instance runs on a thread that did not make it.
pub static VERSIONS: Mutex<Vec<CodeVersion>> = Mutex::new(Vec::new());

thread_local! {
    /// Whether the truth of this thread needs [`VERSIONS`], because another thread made its instance.
    pub static ALL_THREADS: Cell<bool> = const { Cell::new(false) };
}

/// The code version that the runtime pushes for an instance of this module.
pub fn code_version(module: &ModuleInner, baseline: bool) -> CodeVersion {
    CodeVersion {
        baseline,
        msm: module.runnable_module.get_module_state_map().expect("singlepass has a state map"),
        base: module.runnable_module.get_code().expect("singlepass has code").as_ptr() as usize,
        backend: "singlepass",
        runnable_module: module.runnable_module.clone(),
    }
}

/// Registers by state-map number, as `read_stack` wants them.
pub type Known = [Option<u64>; 32];

/// The registers that a Wasm caller keeps over a call.
pub fn known_at_call(entry: &Entry) -> Known {
    let mut known = [None; 32];
    for (register, value) in [
        (GPR::RBX, entry.rbx),
        (GPR::RBP, entry.rbp),
        (GPR::R12, entry.r12),
        (GPR::R13, entry.r13),
        (GPR::R14, entry.r14),
        (GPR::R15, entry.r15),
    ] {
        known[X64Register::GPR(register).to_index().0] = Some(value);
    }
    known
}

/// Runs the runtime's `read_stack`; `None` where it panics (state.rs:1369 with spilled call arguments).
///
/// # Safety
/// `rsp` is a stack pointer and `known` the registers of a thread that is stopped at `address`.
pub unsafe fn read(address: u64, rsp: u64, mut known: Known) -> Option<ExecutionStateImage> {
    catch_unwind(AssertUnwindSafe(|| unsafe {
        if ALL_THREADS.get() {
            let versions = VERSIONS.lock().unwrap_or_else(|e| e.into_inner()).clone();
            read_stack(|| versions.iter(), rsp as *const u64, known, Some(address), None)
        } else {
            known[X64Register::GPR(GPR::RSP).to_index().0] = Some(rsp);
            let ip: &'static Cell<usize> = Box::leak(Box::new(Cell::new(address as usize)));
            let fault = FaultInfo { faulting_addr: std::ptr::null(), ip, known_registers: known };
            fault.read_stack(None).expect("rsp is known")
        }
    }))
    .ok()
}

/// Linear memories above this are left out of the truth unless `--truth-memory` asks for them: encoding them byte by byte takes seconds in a debug build.
const INSTANCE_BYTES: usize = 4 << 20;

/// Writes `<truth>` (bincode of the image), `<truth>.instance` and `<truth>.txt`, with `suffix` after `<truth>`.
/// Where the runtime has no answer the files are absent.
///
/// # Safety
/// `vmctx` is the context of the instance that is stopped, or null.
pub unsafe fn write(options: &Options, suffix: &str, image: Option<ExecutionStateImage>, vmctx: *mut vm::Ctx) {
    let Some(path) = &options.truth else { return };
    let path = PathBuf::from(format!("{}{suffix}", path.display()));
    let Some(image) = image else {
        report::note(&format!("the runtime's read_stack panicked: no truth in {}", path.display()));
        return;
    };
    let with = |extension: &str| PathBuf::from(format!("{}{extension}", path.display()));
    let save = |path: PathBuf, bytes: &[u8]| {
        let mut file = std::fs::File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        file.write_all(bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    };
    save(with(""), &bincode::serialize(&image).expect("an image encodes"));
    save(with(".txt"), image.output().as_bytes());
    let small = || unsafe { (*vmctx).internal.memory_bound } <= INSTANCE_BYTES;
    if !vmctx.is_null() && (options.truth_memory || small()) {
        save(with(".instance"), &build_instance_image(unsafe { &mut *vmctx }, image).to_bytes());
    }
}

/// Writes `<truth>.result`: what the guest returned, as decimal digits of its raw bits.
pub fn result(options: &Options, bits: u64) {
    let Some(path) = &options.truth else { return };
    let path = PathBuf::from(format!("{}.result", path.display()));
    let fresh = path.with_extension("new");
    let written = std::fs::write(&fresh, bits.to_string()).and_then(|()| std::fs::rename(&fresh, &path));
    written.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Writes the artifact of a module (`Module::cache`) where `--artifact` asks for it.
pub fn artifact(module: &Module, path: &std::path::Path) {
    let bytes = module.cache().and_then(|artifact| artifact.serialize()).expect("singlepass modules have artifacts");
    std::fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
