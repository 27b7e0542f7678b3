//! Tests that compare a live process with cores of it, from gdb and from the kernel, whole and cut off.

use super::*;
use crate::process::core::CoreTarget;
use std::sync::Arc;

fn same_as_live(live: &LiveTarget, core: &CoreTarget) {
    assert_eq!(core.pid(), Some(live.pid));
    assert_eq!(core.executable(), live.executable());
    let ids = |t: &dyn Target| t.threads().iter().map(|t| t.id).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(core), ids(live));
    for thread in live.threads() {
        let other = core.threads().iter().find(|t| t.id == thread.id).unwrap();
        assert_eq!(other.fs_base, thread.fs_base);
        for reg in [x64::RBX, x64::RBP, x64::R12, x64::R13, x64::R14, x64::R15, x64::XMM1, x64::XMM15] {
            assert_eq!(other.registers.get(reg), thread.registers.get(reg), "{reg} of {:?}", thread.id);
        }
        let sp = thread.registers.sp().unwrap();
        assert_eq!(other.registers.sp(), Some(sp));
        assert_eq!(core.read_vec(sp, 256).unwrap(), live.read_vec(sp, 256).unwrap());
        let pc = thread.registers.pc().unwrap();
        // Code is in the core if gdb wrote it. If the kernel wrote it, code comes from the file on disk.
        assert_eq!(core.read_vec(pc, 8).unwrap(), live.read_vec(pc, 8).unwrap());
    }
    let search = SearchPaths::default();
    let (ours, theirs) = (Objects::load(live, &search), Objects::load(core, &search));
    let show = |objects: &Objects| -> Vec<String> {
        objects
            .iter()
            .map(|o| format!("{} {:x} {:?} {:?} {:?}", o.name(), o.bias, o.build_id, o.data.is_some(), o.problem))
            .collect()
    };
    assert_eq!(show(&ours), show(&theirs));
    assert_eq!(ours.executable().map(|o| o.path.clone()), live.executable);
    assert!(ours.iter().any(|o| o.name() == "[vdso]" && matches!(o.data, Some(ObjectData::Memory(_)))));
    for object in ours.iter() {
        assert!(object.problem.is_none(), "{:?}", object.problem);
        assert!(object::File::parse(&**object.data.as_ref().unwrap()).is_ok());
    }
}

/// The first bytes of a core, up to the given length.
struct Front(Arc<crate::process::files::Mapped>, usize);

impl AsRef<[u8]> for Front {
    fn as_ref(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

/// Cuts a core at many places, and returns the largest number of threads that a cut core has.
fn most_threads_of_cut(path: &Path) -> usize {
    let whole = Arc::new(crate::process::files::map_file(path).unwrap());
    let mut most = 0;
    for i in 1..64 {
        let front = Front(whole.clone(), whole.len() * i / 64);
        let core = CoreTarget::from_bytes(path, Arc::new(front), &SearchPaths::default()).unwrap();
        assert!(core.notes().iter().any(|n| n.contains("cut off")), "{i}");
        let objects = Objects::load(&core, &SearchPaths::default());
        assert_eq!(objects.executable().is_some(), core.executable().is_some());
        most = most.max(core.threads().len());
    }
    most
}

#[test]
fn a_debuggers_core_equals_the_live_view() {
    let dir = tempfile::tempdir().unwrap();
    let peer = Peer::target();
    peer.stop();
    let live = peer.capture();
    let prefix = dir.path().join("core");
    let made = Command::new("gcore").arg("-o").arg(&prefix).arg(peer.pid().to_string()).output();
    let made = made.expect("this test needs gdb's gcore");
    let path = dir.path().join(format!("core.{}", peer.pid()));
    assert!(path.exists(), "gcore: {}", String::from_utf8_lossy(&made.stderr));
    let core = CoreTarget::open(&path, &SearchPaths::default()).unwrap();
    same_as_live(&live, &core);
    assert_eq!(core.read_vec(peer.shared, 16).unwrap(), b"0123456789abcdef");

    // gdb writes its notes behind the memory, so every cut core has lost them.
    assert_eq!(most_threads_of_cut(&path), 0);
}

#[test]
fn a_kernel_core_equals_the_live_view() {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if pattern.trim() != "core" {
        println!("not tested: kernel cores go to {pattern}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.arg("-c").arg("ulimit -c unlimited && exec \"$0\" \"$@\"").current_dir(dir.path());
    let inner = Peer::command();
    command.arg(inner.get_program()).args(inner.get_args());
    let mut peer = Peer::target_of(&mut command);
    peer.stop();
    let live = peer.capture();
    let shared = live.read_vec(peer.shared, 16).unwrap();
    let objects = Objects::load(&live, &SearchPaths::default());
    assert!(objects.executable().is_some());
    peer.signal(libc::SIGABRT);
    // Reads now what the process cannot answer any more when it is dead.
    let text: Vec<(u64, Vec<u8>)> =
        live.threads().iter().filter_map(|t| t.registers.pc()).map(|pc| (pc, live.read_vec(pc, 8).unwrap())).collect();
    peer.signal(libc::SIGCONT);
    peer.child.wait().unwrap();
    let path = ["core".to_string(), format!("core.{}", peer.pid())].map(|n| dir.path().join(n));
    let path = path.iter().find(|p| p.exists()).expect("the kernel wrote no core");
    let core = CoreTarget::open(path, &SearchPaths::default()).unwrap();
    assert_eq!(core.threads().iter().filter(|t| t.signal == Some(libc::SIGABRT)).count(), 1);
    assert_eq!(core.threads()[0].signal, Some(libc::SIGABRT));
    assert_eq!((core.pid(), core.executable()), (live.pid(), live.executable()));
    for thread in live.threads().iter().filter(|t| t.id.0 != peer.spinner) {
        let other = core.threads().iter().find(|t| t.id == thread.id).unwrap();
        assert_eq!((other.fs_base, other.registers.sp()), (thread.fs_base, thread.registers.sp()));
        let sp = thread.registers.sp().unwrap();
        let mut copied = [0; 256];
        live.captured.read(sp, &mut copied).unwrap();
        assert_eq!(core.read_vec(sp, 256).unwrap(), copied);
    }
    for (pc, bytes) in text {
        assert_eq!(core.read_vec(pc, 8).unwrap(), bytes);
    }
    assert_eq!(core.read_vec(peer.shared, 16).unwrap(), shared);
    let theirs = Objects::load(&core, &SearchPaths::default());
    let show = |objects: &Objects| -> Vec<String> {
        objects
            .iter()
            .map(|o| format!("{} {:x} {:?} {:?} {:?}", o.name(), o.bias, o.build_id, o.data.is_some(), o.problem))
            .collect()
    };
    assert_eq!(show(&objects), show(&theirs));
    assert_eq!(most_threads_of_cut(path), core.threads().len());
}
