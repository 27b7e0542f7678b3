//! Unwinding the test's own stacks: compiled code, planted registers, a signal on an alternate stack.

use super::cfi::CfiUnwinder;
use super::testing::{Own, here, own_objects};
use super::{Cursor, End, Stack, Trust, walk};
use crate::arch::{CodeAddress, Reg, Registers};
use crate::target::objects::Objects;

fn names(stack: &Stack, objects: &Objects) -> Vec<String> {
    let symbols = crate::symbolize::native::NativeSymbolizer::new(objects);
    let all = stack.frames.iter().flat_map(|f| symbols.symbolize(f.cursor.address));
    all.filter_map(|s| s.name).collect()
}

/// Both walks begin in the same function and must name the same functions down to the thread's start.
#[test]
#[inline(never)]
fn a_real_stack_is_the_one_that_std_sees() {
    let at = here!();
    let backtrace = format!("{:?}", std::backtrace::Backtrace::force_capture());
    let theirs: Vec<String> = backtrace
        .split("fn: \"")
        .skip(1)
        .map(|s| s.split("\", file").next().unwrap_or(s))
        .map(|s| s.split("\" }").next().unwrap_or(s).to_string())
        .collect();
    let objects = own_objects();
    let unwinder = CfiUnwinder::new(&objects);
    let stack = walk(at, &[&unwinder], &Own, 1000);
    assert_eq!(stack.end, End::Bottom);
    assert!(stack.frames[1..].iter().all(|f| f.trust == Trust::Cfi));
    let ours = names(&stack, &objects);
    let me = theirs.iter().position(|n| n.contains("a_real_stack_is_the_one_that_std_sees")).expect(&backtrace);
    // With line tables only, std has the last part of a name and ours has all of it; std looks for libc's debug file,
    // which these objects are without.
    assert!(ours.len() > 10 && ours.len() <= theirs.len() - me, "{ours:#?} {theirs:#?}");
    for (ours, theirs) in ours.iter().zip(&theirs[me..]) {
        assert!(ours.ends_with(theirs.as_str()), "{ours} {theirs}");
    }
}

// Plants known values in every register and hands its argument on to the callback.
std::arch::global_asm!(
    ".type wstate_test_planted, @function",
    "wstate_test_planted:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbp, 0",
    "push rbx",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbx, 0",
    "push r12",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r12, 0",
    "push r13",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r13, 0",
    "push r14",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r14, 0",
    "push r15",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset r15, 0",
    "sub rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "mov rax, rsi",
    "mov rbp, 0x1006",
    "mov rbx, 0x1003",
    "mov r12, 0x1012",
    "mov r13, 0x1013",
    "mov r14, 0x1014",
    "mov r15, 0x1015",
    "call rax",
    "wstate_test_planted_return:",
    "add rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "pop r15",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore r15",
    "pop r14",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore r14",
    "pop r13",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore r13",
    "pop r12",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore r12",
    "pop rbx",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore rbx",
    "pop rbp",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore rbp",
    "ret",
    ".cfi_endproc",
    ".size wstate_test_planted, . - wstate_test_planted",
    // A leaf without frame pointer that faults with known values everywhere.
    ".type wstate_test_fault, @function",
    "wstate_test_fault:",
    ".cfi_startproc",
    "mov rax, 0x1000",
    "mov rcx, 0x1001",
    "mov rdx, 0x1002",
    "mov rsi, 0x1004",
    "mov r8, 0x1008",
    "mov r11, 0x1011",
    "movq xmm0, rax",
    "movq xmm7, rcx",
    "movq xmm15, rdx",
    "wstate_test_fault_at:",
    "ud2",
    "ret",
    ".cfi_endproc",
    ".size wstate_test_fault, . - wstate_test_fault",
);

unsafe extern "C" {
    fn wstate_test_planted(argument: *mut Seen, callback: extern "C" fn(*mut Seen));
    fn wstate_test_planted_return();
    fn wstate_test_fault();
    fn wstate_test_fault_at();
}

/// What a callback found while its frames were alive.
#[derive(Default)]
#[repr(C)]
struct Seen {
    frames: Vec<crate::unwind::Frame>,
    end: Option<End>,
    names: Vec<String>,
}

impl Seen {
    fn look(&mut self, at: Cursor) {
        let objects = own_objects();
        let unwinder = CfiUnwinder::new(&objects);
        let stack = walk(at, &[&unwinder], &Own, 1000);
        self.names = names(&stack, &objects);
        (self.frames, self.end) = (stack.frames, Some(stack.end));
    }

    fn registers_at(&self, address: CodeAddress) -> &Registers {
        &self.frames.iter().find(|f| f.cursor.address == address).expect("frame").cursor.registers
    }
}

const PLANTED: [(Reg, u64); 6] = [
    (Reg::RBP, 0x1006),
    (Reg::RBX, 0x1003),
    (Reg::R12, 0x1012),
    (Reg::R13, 0x1013),
    (Reg::R14, 0x1014),
    (Reg::R15, 0x1015),
];

#[test]
fn callee_saved_registers_come_back_through_compiled_frames() {
    #[inline(never)]
    extern "C" fn callback(seen: *mut Seen) {
        // SAFETY: what the test handed to the assembly.
        let seen = unsafe { &mut *seen };
        // Work that needs registers, so that planted values have to be saved somewhere.
        let at = here!();
        seen.look(at);
    }
    let mut seen = Seen::default();
    // SAFETY: the callback takes what is handed on.
    unsafe { wstate_test_planted(&mut seen, callback) };
    assert_eq!(seen.end, Some(End::Bottom), "{:?}", seen.names);
    let registers = seen.registers_at(CodeAddress::Return(wstate_test_planted_return as *const () as u64));
    for (reg, value) in PLANTED {
        assert_eq!(registers.get(reg), Some(value), "{reg}");
    }
    assert!(seen.names.iter().any(|n| n == "wstate_test_planted"), "{:?}", seen.names);
}

thread_local!(static IN_HANDLER: std::cell::RefCell<Seen> = std::cell::RefCell::default());

#[test]
fn a_signal_frame_on_an_alternate_stack_gives_every_register() {
    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let at = here!();
        IN_HANDLER.with_borrow_mut(|seen| seen.look(at));
        // SAFETY: the kernel handed this over; the faulting instruction is two bytes long.
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] += 2 };
    }
    extern "C" fn fault(_: *mut Seen) {
        // SAFETY: the handler skips the fault.
        unsafe { wstate_test_fault() };
    }
    let mut stack = vec![0u8; 8 << 20];
    // SAFETY: the stack outlives the handler; the old stack and the old handler are put back.
    unsafe {
        let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
        let mut old_stack: libc::stack_t = std::mem::zeroed();
        assert_eq!(libc::sigaltstack(&alternate, &mut old_stack), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGILL, &action, &mut old), 0);
        wstate_test_planted(&mut Seen::default(), fault);
        libc::sigaction(libc::SIGILL, &old, std::ptr::null_mut());
        libc::sigaltstack(&old_stack, std::ptr::null_mut());
    }
    let seen = IN_HANDLER.take();
    assert_eq!(seen.end, Some(End::Bottom), "{:?}", seen.names);
    let faulted = seen.registers_at(CodeAddress::Exact(wstate_test_fault_at as *const () as u64));
    let live = [
        (Reg::RAX, 0x1000),
        (Reg::RCX, 0x1001),
        (Reg::RDX, 0x1002),
        (Reg::RSI, 0x1004),
        (Reg::R8, 0x1008),
        (Reg::R11, 0x1011),
        (Reg::XMM0, 0x1000),
        (Reg::XMM7, 0x1001),
        (Reg::XMM15, 0x1002),
    ];
    for (reg, value) in live {
        assert_eq!(faulted.get(reg), Some(value), "{reg}");
        assert!(faulted.saved_at(reg).is_some(), "{reg}");
    }
    let planted = seen.registers_at(CodeAddress::Return(wstate_test_planted_return as *const () as u64));
    for (reg, value) in PLANTED {
        assert_eq!(planted.get(reg), Some(value), "{reg}");
    }
    let order = ["wstate_test_fault", "wstate_test_planted"];
    let found = order.map(|name| seen.names.iter().position(|n| n == name).expect(name));
    assert!(found[0] < found[1]);
}
