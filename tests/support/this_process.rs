//! This process as a target: its own memory and mappings, and the threads that a test describes.

use std::path::Path;
use wstate::arch::Machine;
use wstate::process::files::FileLocation;
use wstate::process::{Mapping, Memory, MemoryError, Target, Thread};

/// This process, without files.
pub struct ThisProcess {
    /// All mappings of this process, as they were when it was asked.
    pub mappings: Vec<Mapping>,
    /// The threads that the test describes.
    pub threads: Vec<Thread>,
}

impl ThisProcess {
    /// This process as it is mapped now, with these threads.
    pub fn with(threads: Vec<Thread>) -> ThisProcess {
        use procfs::process::{MMPermissions, MMapPath, Process};
        let mappings = Process::myself().unwrap().maps().unwrap().into_iter().map(|m| Mapping {
            start: m.address.0,
            end: m.address.1,
            read: m.perms.contains(MMPermissions::READ),
            write: m.perms.contains(MMPermissions::WRITE),
            execute: m.perms.contains(MMPermissions::EXECUTE),
            offset: m.offset,
            path: match m.pathname {
                MMapPath::Path(path) => Some(path),
                MMapPath::Heap => Some("[heap]".into()),
                MMapPath::Stack => Some("[stack]".into()),
                MMapPath::Anonymous => None,
                // The kernel's own, such as the vdso.
                _ => Some("[v]".into()),
            },
        });
        ThisProcess { mappings: mappings.collect(), threads }
    }
}

impl Memory for ThisProcess {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let remote = nix::sys::uio::RemoteIoVec { base: address as usize, len };
        let mut local = [std::io::IoSliceMut::new(buf)];
        match nix::sys::uio::process_vm_readv(nix::unistd::Pid::this(), &mut local, &[remote]) {
            Ok(n) if n == len => Ok(()),
            _ => Err(MemoryError::Unmapped { address, len }),
        }
    }
}

impl Target for ThisProcess {
    fn machine(&self) -> Machine {
        Machine::X64
    }
    fn description(&self) -> String {
        "this process".into()
    }
    fn threads(&self) -> &[Thread] {
        &self.threads
    }
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }
    fn executable(&self) -> Option<&Path> {
        None
    }
    fn pid(&self) -> Option<u32> {
        Some(std::process::id())
    }
    fn auxv(&self, _: u64) -> Option<u64> {
        None
    }
    fn file_candidates(&self, _: &Mapping) -> Vec<FileLocation> {
        Vec::new()
    }
    fn notes(&self) -> &[String] {
        &[]
    }
    fn is_live(&self) -> bool {
        true
    }
}
