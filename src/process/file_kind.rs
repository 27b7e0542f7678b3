//! Tells what kind of file somebody has named, from its first bytes. A file that was given in the place of another is
//! then called by what it is, and the message says where it belongs.
//!
//! This is only about files that are clearly something else. What is damaged or unknown is judged by whoever reads it.

use super::elf::{Header, NotElf};
use super::files::{self, FileLocation};
use crate::arch::Machine;
use std::io::{self, Read};
use std::path::Path;
use wasmparser::{Encoding, Parser, Payload};

/// Number of bytes from the start of a file that are looked at.
const HEAD: usize = 16 << 10;
/// `EI_OSABI` of the ELF files that Wasmtime compiles modules into (`obj.rs: ELFOSABI_WASMTIME`).
pub const ELFOSABI_WASMTIME: u8 = 200;
/// Values of `e_type` in an ELF header.
const ET_REL: u16 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
pub(super) const ET_CORE: u16 = 4;

/// The place of a command line, or of a library call, at which a file is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The core.
    Core,
    /// The executable that wrote the core.
    Executable,
    /// A `.wasm` file of a module in the target (`--wasm`).
    Wasm,
    /// A cached artifact of a module in the target (`--artifact`).
    Artifact,
    /// An image that `wstate snapshot` has written.
    Image,
}

impl Door {
    /// Every door.
    #[cfg(test)]
    const ALL: [Door; 5] = [Door::Core, Door::Executable, Door::Wasm, Door::Artifact, Door::Image];

    /// What is wanted here.
    fn wanted(self) -> &'static str {
        match self {
            Door::Core => "a core",
            Door::Executable => "an executable",
            Door::Wasm => "a Wasm module",
            Door::Artifact => "a cached artifact of wasmer 0.x",
            Door::Image => "an image",
        }
    }

    /// What to do where nothing better is known.
    fn next(self) -> &'static str {
        match self {
            Door::Core => "name the core file first: wstate core CORE [EXE]",
            Door::Executable => "name the executable that wrote the core, or none",
            Door::Wasm => "name the .wasm file that the host has loaded",
            Door::Artifact => "name a file of the host's own cache of compiled modules",
            Door::Image => "wstate snapshot -o FILE makes one",
        }
    }
}

/// A program that packs files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packer {
    /// Its name.
    pub name: &'static str,
    /// The command that unpacks a file and keeps the packed one.
    pub unpack: &'static str,
    offset: usize,
    magic: &'static [u8],
}

/// The packers that are known by the first bytes of what they write.
pub const PACKERS: [Packer; 7] = [
    Packer { name: "gzip", unpack: "gzip -dk FILE", offset: 0, magic: b"\x1f\x8b" },
    Packer { name: "zstd", unpack: "zstd -d FILE", offset: 0, magic: b"\x28\xb5\x2f\xfd" },
    Packer { name: "lz4", unpack: "lz4 -d FILE", offset: 0, magic: b"\x04\x22\x4d\x18" },
    Packer { name: "xz", unpack: "xz -dk FILE", offset: 0, magic: b"\xfd7zXZ\0" },
    Packer { name: "bzip2", unpack: "bzip2 -dk FILE", offset: 0, magic: b"BZh" },
    Packer { name: "zip", unpack: "unzip FILE", offset: 0, magic: b"PK\x03\x04" },
    Packer { name: "tar", unpack: "tar -xf FILE", offset: 257, magic: b"ustar" },
];

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// It has no bytes.
    Empty,
    /// A core of a machine that is known here.
    Core,
    /// An executable or a library of a machine that is known here.
    Program,
    /// An object file, which the compiler has made for the linker.
    Object,
    /// An ELF file of another machine, with that machine's number in ELF headers.
    OtherMachine(u16),
    /// An ELF file of 32 bits.
    Elf32,
    /// An ELF file whose numbers have their highest byte first.
    BigEndian,
    /// What Wasmtime has compiled a module or component into (`.cwasm`).
    Cwasm,
    /// A Wasm module.
    WasmModule,
    /// A Wasm component.
    WasmComponent,
    /// A coredump in the format of the WebAssembly tool conventions.
    WasmCoredump,
    /// A Wasm module as text (`.wat`).
    WasmText,
    /// A minidump, as Breakpad and Windows write it.
    Minidump,
    /// A program for Windows.
    WindowsProgram,
    /// A program for macOS.
    MacProgram,
    /// It is packed.
    Packed(Packer),
    /// A script that names its interpreter.
    Script,
    /// A crash report of apport, which has the core inside.
    Apport,
    /// A report of wstate, as JSON.
    Report,
    /// Other JSON.
    Json,
    /// Other text, such as a log of a debugger.
    Text,
    /// Nothing of these, or not enough of it to tell.
    Unknown,
}

/// What kind of file begins with `bytes`. No more than the first 16 KiB are looked at.
pub fn kind(bytes: &[u8]) -> FileKind {
    let head = bytes.get(..HEAD).unwrap_or(bytes);
    let packer = |p: &&Packer| head.get(p.offset..).is_some_and(|rest| rest.starts_with(p.magic));
    match head {
        [] => FileKind::Empty,
        [0x7f, b'E', b'L', b'F', ..] => elf(head),
        [0, b'a', b's', b'm', ..] => wasm(head),
        [b'M', b'D', b'M', b'P', ..] => FileKind::Minidump,
        [b'M', b'Z', ..] if head.contains(&0) => FileKind::WindowsProgram,
        [0xcf | 0xce, 0xfa, 0xed, 0xfe, ..] => FileKind::MacProgram,
        [b'#', b'!', ..] => FileKind::Script,
        _ => match PACKERS.iter().find(packer) {
            Some(packer) => FileKind::Packed(*packer),
            None => text(head),
        },
    }
}

fn elf(head: &[u8]) -> FileKind {
    let header = match Header::parse(head) {
        Ok(header) => header,
        Err(NotElf::Class) => return FileKind::Elf32,
        Err(NotElf::ByteOrder) => return FileKind::BigEndian,
        Err(NotElf::Magic | NotElf::Short) => return FileKind::Unknown,
    };
    match header.kind {
        ET_REL if head.get(7) == Some(&ELFOSABI_WASMTIME) => FileKind::Cwasm,
        _ if Machine::from_elf(header.machine).is_none() => FileKind::OtherMachine(header.machine),
        ET_CORE => FileKind::Core,
        ET_EXEC | ET_DYN => FileKind::Program,
        ET_REL => FileKind::Object,
        _ => FileKind::Unknown,
    }
}

/// A coredump is a module without code whose sections tell of another module. The section that makes it one stands near
/// its start.
fn wasm(head: &[u8]) -> FileKind {
    let mut kind = FileKind::Unknown;
    for payload in Parser::new(0).parse_all(head) {
        match payload {
            Ok(Payload::Version { encoding: Encoding::Component, .. }) => return FileKind::WasmComponent,
            Ok(Payload::Version { encoding: Encoding::Module, .. }) => kind = FileKind::WasmModule,
            Ok(Payload::CustomSection(section)) if section.name() == "core" => return FileKind::WasmCoredump,
            // A module that runs has code, and a coredump has none.
            Ok(Payload::CodeSectionStart { .. }) | Err(_) => break,
            Ok(_) => {}
        }
    }
    kind
}

fn text(head: &[u8]) -> FileKind {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The head may end inside a character.
        Err(e) if e.error_len().is_none() => {
            head.get(..e.valid_up_to()).and_then(|part| std::str::from_utf8(part).ok()).unwrap_or_default()
        }
        Err(_) => return FileKind::Unknown,
    };
    // Debuggers colour what they print.
    let is_text = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\x0c' | '\x1b');
    if text.is_empty() || !text.chars().all(is_text) {
        return FileKind::Unknown;
    }
    let begin = text.trim_start();
    const WASM: [&str; 5] = ["(module", "(component", "(;", "(@", ";;"];
    match begin.chars().next() {
        Some('{') if text.contains("\"schema_version\"") && text.contains("\"wstate_version\"") => FileKind::Report,
        Some('{' | '[') => FileKind::Json,
        _ if WASM.iter().any(|first| begin.starts_with(first)) => FileKind::WasmText,
        _ if begin.starts_with("ProblemType: ") => FileKind::Apport,
        _ => FileKind::Text,
    }
}

impl FileKind {
    /// Whether a file of this kind may be what is wanted at `door`.
    fn may_be(self, door: Door) -> bool {
        match self {
            FileKind::Unknown => true,
            FileKind::Core => door == Door::Core,
            FileKind::Program => door == Door::Executable,
            FileKind::WasmModule | FileKind::WasmComponent => door == Door::Wasm,
            _ => false,
        }
    }

    fn name(self) -> String {
        let name = match self {
            FileKind::Empty => "an empty file",
            FileKind::Core => "a core",
            FileKind::Program => "an executable or a library",
            FileKind::Object => "an object file",
            FileKind::OtherMachine(number) => {
                return format!("an ELF file of another machine (ELF machine {number})");
            }
            FileKind::Elf32 => "a 32-bit ELF file",
            FileKind::BigEndian => "a big-endian ELF file",
            FileKind::Cwasm => "what Wasmtime has compiled a module into (.cwasm)",
            FileKind::WasmModule => "a Wasm module",
            FileKind::WasmComponent => "a Wasm component",
            FileKind::WasmCoredump => "a Wasm coredump",
            FileKind::WasmText => "Wasm as text (.wat)",
            FileKind::Minidump => "a minidump",
            FileKind::WindowsProgram => "a program for Windows",
            FileKind::MacProgram => "a program for macOS",
            FileKind::Packed(packer) => return format!("packed with {}", packer.name),
            FileKind::Script => "a script",
            FileKind::Apport => "a crash report of apport",
            FileKind::Report => "a report that wstate has written",
            FileKind::Json => "JSON",
            FileKind::Text => "text",
            FileKind::Unknown => "of an unknown kind",
        };
        name.to_string()
    }

    /// Whether a file of this kind is as good as what is wanted at `door`, but for what its name says: packed, or of
    /// another machine.
    fn is_nearly(self, door: Door) -> bool {
        match self {
            FileKind::Packed(_) => true,
            FileKind::OtherMachine(_) | FileKind::Elf32 | FileKind::BigEndian => {
                matches!(door, Door::Core | Door::Executable)
            }
            _ => false,
        }
    }

    /// What to do with a file of this kind that was given at `door`.
    fn next(self, door: Door) -> String {
        let next = match (self, door) {
            (FileKind::Packed(packer), _) => {
                return format!("unpack it first: {}", packer.unpack);
            }
            (FileKind::OtherMachine(_) | FileKind::Elf32 | FileKind::BigEndian, Door::Core | Door::Executable) => {
                let of = Machine::ALL.iter().map(|machine| machine.description());
                let known: Vec<String> = of.map(|machine| format!("{} ({})", machine.name, machine.elf)).collect();
                return format!("wstate reads cores and executables of {} only", known.join(" and "));
            }
            (FileKind::Empty, Door::Core) => {
                "perhaps the disk was full when it was written; write the core again, with more space"
            }
            (FileKind::Core, Door::Executable) => "name the core first, then the executable: wstate core CORE EXE",
            (FileKind::Core, Door::Image) => "of a core, wstate snapshot -c CORE -o FILE makes one",
            (FileKind::Core, _) => "name it as the core: wstate core CORE",
            (FileKind::Program, Door::Core) => "name the core first, then the executable: wstate core CORE EXE",
            (FileKind::WasmModule | FileKind::WasmComponent, Door::Core | Door::Executable | Door::Artifact) => {
                "give it with --wasm: wstate core CORE --wasm FILE"
            }
            (FileKind::Cwasm, Door::Wasm | Door::Artifact) => {
                "wstate reads compiled code from the target; name the .wasm file that it was compiled from, with --wasm"
            }
            (FileKind::WasmCoredump, Door::Core) => {
                "read it with: wasmgdb FILE; wstate needs a core of the whole process: gcore PID"
            }
            (FileKind::WasmCoredump, Door::Wasm) => "name the .wasm file of the module itself",
            (FileKind::WasmText, Door::Wasm) => "compile it first: wasm-tools parse FILE -o FILE.wasm",
            (FileKind::Minidump, Door::Core) => {
                "minidump-stackwalk prints its native frames; wstate needs a core, as gcore PID writes it"
            }
            (FileKind::Apport, Door::Core) => {
                "unpack it first: apport-unpack FILE DIRECTORY; the core is DIRECTORY/CoreDump"
            }
            (FileKind::Script, Door::Executable) => "name the interpreter that ran it, such as /usr/bin/python3",
            (FileKind::Json, Door::Image) => {
                "if wstate snapshot --with-imports has written it, the image is the file beside it"
            }
            _ => door.next(),
        };
        next.to_string()
    }
}

/// Why a file that begins with `bytes` cannot be what is wanted at `door`, as a sentence that says what it is and what
/// to do. `None` if it may be what is wanted.
pub fn refusal(bytes: &[u8], door: Door) -> Option<String> {
    let kind = kind(bytes);
    let not = if kind.is_nearly(door) { String::new() } else { format!(", not {}", door.wanted()) };
    (!kind.may_be(door)).then(|| format!("it is {}{not}; {}", kind.name(), kind.next(door)))
}

/// The same as [`refusal`] for a file that is not read yet. It reads only the first bytes.
///
/// # Errors
/// The file cannot be opened or read.
pub fn refusal_of_file(path: &Path, door: Door) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    files::open(&FileLocation::user(path))?.file.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(refusal(&head, door))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::CoreBuilder;
    use std::collections::BTreeSet;

    /// An ELF header, changed at some offsets.
    fn elf_file(kind: u16, machine: u16, changes: &[(usize, u8)]) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16..18].copy_from_slice(&kind.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        changes.iter().for_each(|&(at, value)| bytes[at] = value);
        bytes
    }

    fn coredump(sections_before: usize) -> Vec<u8> {
        let mut bytes = b"\0asm\x01\0\0\0".to_vec();
        bytes.extend(b"\x00\x05\x04note".repeat(sections_before));
        bytes.extend(b"\x00\x08\x04core\x00\x01x");
        bytes
    }

    /// One or more files of each kind.
    fn files() -> Vec<(FileKind, Vec<u8>)> {
        let x64 = Machine::X64.description().elf;
        let mut tar = vec![b'a'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        let mut files = vec![
            (FileKind::Empty, Vec::new()),
            (FileKind::Core, CoreBuilder::new().memory(0x1000, 6, &[1; 64]).build()),
            (FileKind::Program, std::fs::read("/proc/self/exe").unwrap()),
            (FileKind::Program, elf_file(ET_EXEC, x64, &[])),
            (FileKind::Object, elf_file(ET_REL, x64, &[])),
            (FileKind::OtherMachine(183), elf_file(ET_CORE, 183, &[])),
            (FileKind::OtherMachine(183), elf_file(ET_DYN, 183, &[])),
            (FileKind::Elf32, elf_file(ET_CORE, 3, &[(4, 1)])),
            (FileKind::BigEndian, elf_file(ET_CORE, 22, &[(5, 2)])),
            (FileKind::Cwasm, elf_file(ET_REL, x64, &[(7, 200)])),
            // Compiled for another machine it is the same kind.
            (FileKind::Cwasm, elf_file(ET_REL, 183, &[(7, 200)])),
            (FileKind::WasmModule, wat::parse_str("(module (func))").unwrap()),
            (FileKind::WasmModule, b"\0asm\x01\0\0\0".to_vec()),
            (FileKind::WasmComponent, wat::parse_str("(component (core module))").unwrap()),
            (FileKind::WasmCoredump, coredump(0)),
            (FileKind::WasmCoredump, coredump(3)),
            (FileKind::WasmText, b"  (module)".to_vec()),
            (FileKind::WasmText, b";; a module\n(module)".to_vec()),
            (FileKind::Minidump, b"MDMP\x93\xa7\0\0".to_vec()),
            (FileKind::WindowsProgram, b"MZ\x90\0\x03".to_vec()),
            (FileKind::MacProgram, b"\xcf\xfa\xed\xfe\x07".to_vec()),
            (FileKind::Script, b"#!/usr/bin/env python3\n".to_vec()),
            (FileKind::Apport, b"ProblemType: Crash\nArchitecture: amd64\n".to_vec()),
            (FileKind::Report, br#"{"schema_version":1,"wstate_version":"0.1.0","#.to_vec()),
            (FileKind::Json, b"[]".to_vec()),
            (FileKind::Text, b"Segmentation fault (core dumped)\n".to_vec()),
            (FileKind::Text, b"(gdb) info checkpoints\n".to_vec()),
            (FileKind::Text, "  Id   Target Id\n* 0    process 4711 \u{e4}".as_bytes().to_vec()),
            (FileKind::Unknown, vec![0xff; 8]),
            (FileKind::Unknown, b"\x7fELF".to_vec()),
            (FileKind::Unknown, b"\0asm".to_vec()),
        ];
        for packer in PACKERS {
            let bytes = if packer.name == "tar" { tar.clone() } else { [packer.magic, &[0; 8]].concat() };
            files.push((FileKind::Packed(packer), bytes));
        }
        files
    }

    #[test]
    fn each_kind_is_known_by_its_first_bytes() {
        for (expected, bytes) in files() {
            assert_eq!(kind(&bytes), expected, "{:?}", &bytes[..bytes.len().min(16)]);
            // What is cut off is something else or unknown, but nothing breaks.
            (0..bytes.len().min(300)).for_each(|cut| _ = kind(&bytes[..cut]));
        }
    }

    /// At every door each kind is either what is wanted or is called by its name with the next step.
    #[test]
    fn each_kind_at_each_door() {
        let mut said = BTreeSet::new();
        for (kind, bytes) in files() {
            for door in Door::ALL {
                let wanted = matches!(
                    (kind, door),
                    (FileKind::Unknown, _)
                        | (FileKind::Core, Door::Core)
                        | (FileKind::Program, Door::Executable)
                        | (FileKind::WasmModule | FileKind::WasmComponent, Door::Wasm)
                );
                let Some(why) = refusal(&bytes, door) else {
                    assert!(wanted, "{kind:?} at {door:?}");
                    continue;
                };
                assert!(!wanted, "{kind:?} at {door:?}: {why}");
                let (what, next) = why.rsplit_once("; ").expect("what it is, and what to do");
                assert!(what.starts_with("it is ") && !next.is_empty() && !why.contains('\n'), "{why}");
                assert!(why.contains(&kind.name()), "{why}");
                assert_eq!(what.contains(&format!(", not {}", door.wanted())), !kind.is_nearly(door), "{why}");
                assert!(why.len() < 220, "{why}");
                said.insert(format!("{door:?}: {why}"));
            }
        }
        insta::assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"));
    }

    /// A file of any size is read no further than its head.
    #[test]
    fn only_the_head_of_a_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(8 << 40).unwrap();
        let why = refusal_of_file(&path, Door::Executable).unwrap().unwrap();
        assert!(why.starts_with("it is a script, not an executable; "), "{why}");
        assert_eq!(refusal_of_file(directory.path(), Door::Core).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(refusal_of_file(&path.join("x"), Door::Core).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
