//! What a module exports, with the indices that the runtime's API does not tell.

/// The kind of an export, by its number in the binary format.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Func,
    Table,
    Memory,
    Global,
    Other,
}

#[derive(Clone)]
pub struct Export {
    pub name: String,
    pub kind: Kind,
    pub index: u32,
}

/// A reader of a module that the runtime has already validated; anything else ends in a panic.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().expect("more of the module");
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u32 {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.byte();
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }

    fn bytes(&mut self) -> &'a [u8] {
        let (taken, rest) = {
            let n = self.number() as usize;
            self.0.split_at(n)
        };
        self.0 = rest;
        taken
    }
}

/// The export section of a module.
pub fn of(wasm: &[u8]) -> Vec<Export> {
    let mut module = Reader(&wasm[8..]);
    while !module.0.is_empty() {
        let id = module.byte();
        let mut section = Reader(module.bytes());
        if id != 7 {
            continue;
        }
        return (0..section.number())
            .map(|_| Export {
                name: String::from_utf8_lossy(section.bytes()).into_owned(),
                kind: match section.byte() {
                    0 => Kind::Func,
                    1 => Kind::Table,
                    2 => Kind::Memory,
                    3 => Kind::Global,
                    _ => Kind::Other,
                },
                index: section.number(),
            })
            .collect();
    }
    Vec::new()
}
