//! Tests that unwind the test's own stacks: through compiled code, with planted register values, and through a signal
//! on an alternate stack.

use super::cfi::CfiUnwinder;
use super::testing::{Own, has_tool, here, own_objects};
use super::{Cursor, End, Frame, Stack, Trust, walk};
use crate::arch::{CodeAddress, Reg, Registers, x64};
use crate::process::objects::Objects;
use std::ffi::{CString, c_void};
use std::fmt::Write;
use std::process::Command;

fn names(stack: &Stack, objects: &Objects) -> Vec<String> {
    let symbols = crate::symbolize::native::NativeSymbolizer::new(objects);
    let all = stack.frames.iter().flat_map(|f| symbols.symbolize(f.cursor.address));
    all.filter_map(|s| s.name).collect()
}

/// Both walks begin in the same function. They must name the same functions down to the start of the thread.
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
    // Where a file has line tables only, std has the last part of a name and wstate has all of it. std also looks for
    // libc's debug file, which `own_objects` does not load.
    assert!(ours.len() > 10 && ours.len() <= theirs.len() - me, "{ours:#?} {theirs:#?}");
    for (ours, theirs) in ours.iter().zip(&theirs[me..]) {
        assert!(ours.ends_with(theirs.as_str()), "{ours} {theirs}");
    }
}

// The assembly plants known values in every callee-saved register and hands its argument on to the callback.
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
    // A leaf function without a frame pointer, which faults with known values in its registers.
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
    fn wstate_test_planted(argument: *mut c_void, callback: extern "C" fn(*mut c_void));
    fn wstate_test_planted_return();
    fn wstate_test_fault();
    fn wstate_test_fault_at();
}

/// What a callback found while its frames were alive.
#[derive(Default)]
struct Seen {
    frames: Vec<Frame>,
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
    (x64::RBP, 0x1006),
    (x64::RBX, 0x1003),
    (x64::R12, 0x1012),
    (x64::R13, 0x1013),
    (x64::R14, 0x1014),
    (x64::R15, 0x1015),
];

#[test]
fn callee_saved_registers_come_back_through_compiled_frames() {
    #[inline(never)]
    extern "C" fn callback(seen: *mut c_void) {
        // SAFETY: `seen` is the pointer to `Seen` that the test handed to the assembly.
        let seen = unsafe { &mut *seen.cast::<Seen>() };
        // This work needs registers, so the planted values have to be saved somewhere.
        let at = here!();
        seen.look(at);
    }
    let mut seen = Seen::default();
    // SAFETY: the callback takes the argument that is handed on to it.
    unsafe { wstate_test_planted((&raw mut seen).cast(), callback) };
    assert_eq!(seen.end, Some(End::Bottom), "{:?}", seen.names);
    let registers = seen.registers_at(CodeAddress::Return(wstate_test_planted_return as *const () as u64));
    for (reg, value) in PLANTED {
        assert_eq!(registers.get(reg), Some(value), "{reg}");
    }
    assert!(seen.names.iter().any(|n| n == "wstate_test_planted"), "{:?}", seen.names);
}

/// The functions have frames of several kinds: without a frame pointer, with an array of variable size, with many
/// values that live across a call, and in a cold part.
const C_SOURCE: &str = r#"
typedef void (*callback)(void *);
__attribute__((cold, noipa)) static void cold(void) { __asm__ volatile(""); }
__attribute__((noipa)) static void sized(callback f, void *a, long n) {
    volatile char array[n];
    array[0] = 1;
    f(a);
    array[n - 1] = 2;
}
__attribute__((noipa)) static long wide(callback f, void *a, long p, long q, long r, long s, long t, long u) {
    sized(f, a, p + q);
    return p * q + r * s + t * u;
}
__attribute__((noipa)) static long parted(callback f, void *a, long rare) {
    long x = rare * 3;
    if (__builtin_expect(rare != 0, 0)) {
        cold();
        x += wide(f, a, rare, x, x + 1, x + 2, x + 3, x + 4);
        __asm__ volatile("" : "+r"(x));
    }
    return x * 7;
}
__attribute__((noipa)) void chain(callback f, void *a, long depth) {
    if (depth) chain(f, a, depth - 1);
    else parted(f, a, 5);
    __asm__ volatile("" ::: "memory");
}
"#;

type Chain = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, i64);

/// `chain` of [`C_SOURCE`], compiled without frame pointers, and the directory of its library, which must exist while
/// the walk reads that file by its name. `None` if there is no compiler.
fn compiled_chain() -> Option<(Chain, tempfile::TempDir)> {
    if !has_tool("gcc") {
        return None;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let (source, library) = (dir.path().join("chain.c"), dir.path().join("chain.so"));
    std::fs::write(&source, C_SOURCE).expect("source");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-fomit-frame-pointer", "-fPIC", "-shared", "-o"]).arg(&library).arg(&source);
    assert!(gcc.status().expect("gcc").success());
    let path = CString::new(library.to_str().expect("utf-8")).expect("no zero");
    // SAFETY: the library has no initializers; `chain` has this type and is never unloaded.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        let chain = libc::dlsym(library, c"chain".as_ptr());
        assert!(!chain.is_null());
        Some((std::mem::transmute::<*mut c_void, Chain>(chain), dir))
    }
}

const COMPARED: [Reg; 7] = [x64::RSP, x64::RBX, x64::RBP, x64::R12, x64::R13, x64::R14, x64::R15];

/// A frame's pc and its [`COMPARED`] registers.
type GdbFrame = (u64, Vec<Option<u64>>);

/// The frames of the calling thread as gdb sees them. `None` if gdb is missing or may not attach.
fn frames_by_gdb() -> Option<Vec<GdbFrame>> {
    if !has_tool("gdb") {
        return None;
    }
    let mut script = String::from("import gdb\n");
    let (pid, tid) = (std::process::id(), nix::unistd::gettid());
    let registers = COMPARED.map(|r| r.name()).join(" ");
    write!(
        script,
        r#"
def word(frame, name):
    value = frame.read_register(name)
    return '?' if value.is_optimized_out else format(int(value) & (2**64 - 1), 'x')
for thread in gdb.selected_inferior().threads():
    if thread.ptid[1] == {tid}:
        thread.switch()
        frame = gdb.newest_frame()
        while frame:
            print('frame', format(frame.pc(), 'x'), *[word(frame, r) for r in '{registers}'.split()])
            frame = frame.older()
"#
    )
    .expect("string");
    let script = format!("python exec({script:?})");
    // SAFETY: the call only lets a child process attach where the kernel restricts that.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set backtrace past-main on"]);
    gdb.args(["-p", &pid.to_string(), "-ex", &script]);
    let output = gdb.output().expect("gdb runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    let parse = |line: &str| {
        let mut words = line.strip_prefix("frame ")?.split(' ');
        Some((hex(words.next()?)?, words.map(hex).collect()))
    };
    let frames: Vec<_> = text.lines().filter_map(parse).collect();
    if frames.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        super::testing::missing(&format!("gdb shows no frames, it must be able to attach: {text} {said}"));
        return None;
    }
    Some(frames)
}

thread_local! {
    static IN_HANDLER: std::cell::RefCell<Seen> = std::cell::RefCell::default();
    static CHAIN: std::cell::Cell<Option<Chain>> = const { std::cell::Cell::new(None) };
    static BY_GDB: std::cell::RefCell<Option<Vec<GdbFrame>>> = std::cell::RefCell::default();
}

#[test]
fn a_signal_frame_on_an_alternate_stack_gives_every_register() {
    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut c_void) {
        let at = here!();
        IN_HANDLER.with_borrow_mut(|seen| seen.look(at));
        BY_GDB.set(frames_by_gdb());
        // SAFETY: the kernel handed over `context`; the faulting instruction is two bytes long.
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] += 2 };
    }
    extern "C" fn fault(_: *mut c_void) {
        // SAFETY: the handler skips the fault.
        unsafe { wstate_test_fault() };
    }
    extern "C" fn through_c(argument: *mut c_void) {
        match CHAIN.get() {
            // SAFETY: `chain` calls `fault` and returns.
            Some(chain) => unsafe { chain(fault, argument, 5) },
            None => fault(argument),
        }
    }
    let compiled = compiled_chain();
    CHAIN.set(compiled.as_ref().map(|(chain, _)| *chain));
    let mut stack = vec![0u8; 8 << 20];
    // SAFETY: the stack outlives the handler; the old stack and the old handler are put back afterwards.
    unsafe {
        let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
        let mut old_stack: libc::stack_t = std::mem::zeroed();
        assert_eq!(libc::sigaltstack(&alternate, &mut old_stack), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGILL, &action, &mut old), 0);
        wstate_test_planted(std::ptr::null_mut(), through_c);
        libc::sigaction(libc::SIGILL, &old, std::ptr::null_mut());
        libc::sigaltstack(&old_stack, std::ptr::null_mut());
    }
    let seen = IN_HANDLER.take();
    assert_eq!(seen.end, Some(End::Bottom), "{:?}", seen.names);
    let faulted = seen.registers_at(CodeAddress::Exact(wstate_test_fault_at as *const () as u64));
    let live = [
        (x64::RAX, 0x1000),
        (x64::RCX, 0x1001),
        (x64::RDX, 0x1002),
        (x64::RSI, 0x1004),
        (x64::R8, 0x1008),
        (x64::R11, 0x1011),
        (x64::XMM0, 0x1000),
        (x64::XMM7, 0x1001),
        (x64::XMM15, 0x1002),
    ];
    for (reg, value) in live {
        assert_eq!(faulted.get(reg), Some(value), "{reg}");
        assert!(faulted.saved_at(reg).is_some(), "{reg}");
    }
    let objects = own_objects();
    let signal_frame = &seen.frames[1].cursor;
    assert!(CfiUnwinder::new(&objects).is_signal_frame(signal_frame, &Own), "the handler's caller is the kernel");
    let planted = seen.registers_at(CodeAddress::Return(wstate_test_planted_return as *const () as u64));
    for (reg, value) in PLANTED {
        assert_eq!(planted.get(reg), Some(value), "{reg}");
    }
    let mut expected = vec!["wstate_test_fault", "wstate_test_planted"];
    if CHAIN.get().is_some() {
        expected.splice(1..1, ["sized", "wide", "parted.cold", "chain", "chain", "chain", "chain", "chain", "chain"]);
    }
    let mut names = seen.names.iter();
    for name in expected {
        assert!(names.any(|n| n == name), "{name} in {:#?}", seen.names);
    }
    if let Some(theirs) = BY_GDB.take() {
        compare(&seen.frames, &theirs);
    }
}

/// gdb stopped deeper in the handler, so the comparison begins at the handler's caller, the signal frame.
fn compare(ours: &[Frame], theirs: &[GdbFrame]) {
    let ours = &ours[1..];
    let sp = ours[0].cursor.registers.sp();
    let first = theirs.iter().position(|(pc, words)| *pc == ours[0].cursor.address.raw() && words[0] == sp);
    let theirs = &theirs[first.expect("gdb sees the signal frame")..];
    // gdb shows inlined functions as frames of their own, with the registers of the machine frame that they are in.
    let mut physical = theirs.to_vec();
    physical.dedup();
    assert_eq!(ours.len(), physical.len());
    println!("{} frames compared with gdb", ours.len());
    for (frame, (pc, words)) in ours.iter().zip(&physical) {
        assert_eq!(frame.cursor.address.raw(), *pc);
        for (reg, word) in COMPARED.iter().zip(words) {
            assert_eq!(frame.cursor.registers.get(*reg), *word, "{reg} at {pc:#x}");
        }
    }
}

#[test]
fn the_vdso_is_unwound_and_named() {
    use object::{Object, ObjectSymbol};
    let objects = own_objects();
    let vdso = objects.iter().find(|o| o.name() == "[vdso]").expect("every process has one");
    let file = object::File::parse(&**vdso.data.as_ref().expect("its memory")).expect("an ELF file");
    let function = file.dynamic_symbols().find(|s| s.name() == Ok("__vdso_clock_gettime")).expect("symbol");
    let at = super::testing::cursor(vdso.bias.wrapping_add(function.address()), &[(x64::RSP, 0x8000), (x64::RBX, 3)]);
    let memory = super::testing::Pieces::default().word(0x8000, 0x1234);
    let next = super::Unwinder::step(&CfiUnwinder::new(&objects), &at, &memory);
    let Some(super::Next::Caller(caller, Trust::Cfi)) = next else { panic!("{next:?}") };
    assert_eq!((caller.registers.pc(), caller.registers.get(x64::RBX)), (Some(0x1234), Some(3)));
    let symbols = crate::symbolize::native::NativeSymbolizer::new(&objects).symbolize(at.address);
    assert!(symbols[0].name.as_deref().is_some_and(|n| n.ends_with("clock_gettime")), "{symbols:?}");
}
