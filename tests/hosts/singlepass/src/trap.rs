//! The host's own trap handler: it records what the runtime would have found, then stops there.

use crate::{
    options::{End, Options},
    report, truth,
};
use std::{ffi::c_void, mem, ptr, sync::OnceLock};
use wasmer_runtime_core::{
    fault::{allocate_and_run, get_fault_info},
    state::x64::{GPR, X64Register},
    vm,
};

static OPTIONS: OnceLock<&'static Options> = OnceLock::new();
const SIGNALS: [libc::c_int; 5] = [libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS, libc::SIGTRAP];

/// Replaces the runtime's handler; to be called after the runtime has installed its own.
pub fn install(options: &'static Options) {
    OPTIONS.get_or_init(|| options);
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in SIGNALS {
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

extern "C" fn on_trap(_signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(options) = OPTIONS.get() else { return };
    unsafe {
        // The alternate signal stack is small; the runtime's own handler moves to a larger one in the same way.
        allocate_and_run(1 << 20, || {
            let fault = get_fault_info(info.cast(), context);
            let register = |r: GPR| fault.known_registers[X64Register::GPR(r).to_index().0].unwrap_or(0);
            let image = truth::read(fault.ip.get() as u64, register(GPR::RSP), fault.known_registers);
            let (name, suffix) = report::label(&options.stop);
            truth::write(options, &suffix, image, register(GPR::R15) as *mut vm::Ctx);
            if options.wasm.is_some() {
                truth::result(options, u64::MAX);
            }
            report::reached(&name);
            match options.end {
                End::Sleep => report::sleep_forever(),
                End::CoreInHandler => libc::abort(),
                // The instruction faults again, now without a handler: the kernel dumps the same registers.
                End::Core => {
                    for signal in SIGNALS {
                        libc::signal(signal, libc::SIG_DFL);
                    }
                }
            }
        });
    }
}
