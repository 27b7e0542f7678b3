//! Where the instructions of a piece of code begin and end.

use iced_x86::{Decoder, DecoderOptions};

/// The instructions of a function, as far as they decode.
#[derive(Clone, Debug, Default)]
pub struct Instructions {
    /// Start and end offset of each instruction, ascending.
    ranges: Vec<(u32, u32)>,
}

impl Instructions {
    /// The instructions of `code`. An instruction begins for certain at each offset in `known` (ascending). Between
    /// two of them may be the table of a `br_table`, which is no code, and behind the table the decoder would read on
    /// in the middle of an instruction.
    pub fn of(code: &[u8], known: &[u32]) -> Instructions {
        let mut ranges = Vec::new();
        let len = u32::try_from(code.len()).unwrap_or(u32::MAX);
        let mut starts: Vec<u32> = [0].into_iter().chain(known.iter().copied().filter(|k| *k < len)).collect();
        starts.dedup();
        for (i, &from) in starts.iter().enumerate() {
            let to = starts.get(i + 1).copied().unwrap_or(len);
            let Some(bytes) = code.get(from as usize..to as usize) else { continue };
            let mut decoder = Decoder::with_ip(64, bytes, from.into(), DecoderOptions::NONE);
            while decoder.can_decode() {
                let i = decoder.decode();
                if i.is_invalid() {
                    break;
                }
                ranges.push((i.ip() as u32, i.next_ip() as u32));
            }
        }
        Instructions { ranges }
    }

    /// Start of the instruction that ends at the offset `end`.
    pub fn ending_at(&self, end: u32) -> Option<u32> {
        let i = self.ranges.binary_search_by_key(&end, |r| r.1).ok()?;
        self.ranges.get(i).map(|r| r.0)
    }

    /// End of the instruction that begins at the offset `start`.
    pub fn beginning_at(&self, start: u32) -> Option<u32> {
        let i = self.ranges.binary_search_by_key(&start, |r| r.0).ok()?;
        self.ranges.get(i).map(|r| r.1)
    }

    /// Start of the first instruction that begins at the offset or behind it.
    pub fn from(&self, offset: u32) -> Option<u32> {
        self.ranges.get(self.ranges.partition_point(|r| r.0 < offset)).map(|r| r.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_between_instructions_ends_where_the_next_is_known_to_begin() {
        // The code is: jmp rax; the first four bytes of a `mov rax, imm64` as a table; nop; call +0; ret.
        let code = [0xff, 0xe0, 0x48, 0xb8, 0x01, 0x02, 0x90, 0xe8, 0, 0, 0, 0, 0xc3];
        let i = Instructions::of(&code, &[6]);
        assert_eq!((i.ending_at(12), i.beginning_at(7), i.beginning_at(12)), (Some(7), Some(12), Some(13)));
        assert_eq!((i.from(3), i.from(8), i.from(13)), (Some(6), Some(12), None));
        assert_eq!((i.ending_at(11), i.beginning_at(8)), (None, None));
        assert_eq!(Instructions::of(&code, &[]).beginning_at(7), None);
        assert_eq!(Instructions::of(&[], &[0, 5]).from(0), None);
    }
}
