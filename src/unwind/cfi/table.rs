//! One section of unwind tables: finds the entry of a function, through the search table of `.eh_frame_hdr` or through an
//! index of its own, and the row of an address.

use super::row::Row;
use crate::arch::Machine;
use crate::limits;
use gimli::{BaseAddresses, DebugFrame, EhFrame, EndianSlice, LittleEndian, UnwindContext, UnwindSection};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The bytes of a table: a section of a file (unpacked if it was compressed), or bytes that are shared with other
/// users.
pub(super) enum TableBytes<'a> {
    OfFile(Cow<'a, [u8]>),
    Shared(Arc<Vec<u8>>),
}

impl Deref for TableBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            TableBytes::OfFile(bytes) => bytes,
            TableBytes::Shared(bytes) => bytes,
        }
    }
}

/// One section of unwind tables. All addresses in this struct are svmas.
pub(super) struct Table<'a> {
    pub(super) bytes: TableBytes<'a>,
    pub(super) kind: Kind,
    pub(super) bases: BaseAddresses,
    pub(super) search: Option<SearchTable<'a>>,
    pub(super) index: OnceCell<Vec<Entry>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    EhFrame,
    DebugFrame,
}

/// The first address of a function, the address one past its last, and the offset of its entry in the section.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) start: u64,
    end: u64,
    pub(super) offset: usize,
}

impl Table<'_> {
    pub(super) fn row(
        &self,
        machine: Machine,
        svma: u64,
        context: &mut UnwindContext<usize>,
    ) -> Result<Option<Row>, String> {
        match self.kind {
            Kind::EhFrame => self.row_in(machine, &EhFrame::new(&self.bytes, LittleEndian), svma, context),
            Kind::DebugFrame => {
                let mut section = DebugFrame::new(&self.bytes, LittleEndian);
                section.set_address_size(8);
                self.row_in(machine, &section, svma, context)
            }
        }
    }

    fn row_in<'s, S>(
        &self,
        machine: Machine,
        section: &S,
        svma: u64,
        context: &mut UnwindContext<usize>,
    ) -> Result<Option<Row>, String>
    where
        S: UnwindSection<Slice<'s>>,
        S::Offset: gimli::UnwindOffset<usize>,
    {
        let searched = match &self.search {
            Some(table) => match table.find(svma) {
                Some((start, offset)) => section
                    .fde_from_offset(&self.bases, S::Offset::from(offset), S::cie_from_offset)
                    .ok()
                    .filter(|fde| fde.initial_address() == start),
                None => return Ok(None),
            },
            None => None,
        };
        let fde = match searched {
            Some(fde) if fde.contains(svma) => fde,
            // The address is between two functions: it is assembly without CFI.
            Some(_) => return Ok(None),
            // There is no search table, or it names a wrong entry: the section itself is the truth.
            None => {
                let index = self.index.get_or_init(|| self.build_index(section));
                let i = index.partition_point(|e| e.start <= svma);
                let Some(entry) = i.checked_sub(1).and_then(|i| index.get(i)).filter(|e| svma < e.end) else {
                    return Ok(None);
                };
                section
                    .fde_from_offset(&self.bases, S::Offset::from(entry.offset), S::cie_from_offset)
                    .map_err(|e| e.to_string())?
            }
        };
        let row = match fde.unwind_info_for_address(section, &self.bases, context, svma) {
            Ok(row) => row,
            Err(gimli::Error::NoUnwindInfoForAddress) => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        let rules = row.registers().filter_map(|(n, rule)| Some((machine.from_dwarf(n.0)?, rule.clone()))).collect();
        let return_address = fde.cie().return_address_register();
        Ok(Some(Row {
            source: 0,
            table: 0,
            start: fde.initial_address(),
            cfa: row.cfa().clone(),
            rules,
            return_address: machine
                .from_dwarf(return_address.0)
                .ok_or_else(|| format!("the return address is in register {}", return_address.0))?,
            encoding: fde.cie().encoding(),
            signal: fde.is_signal_trampoline(),
            sigreturn: false,
        }))
    }

    /// Does the work of [`CfiUnwinder::function_before`] with one table.
    pub(super) fn function_before(&self, svma: u64) -> Option<(u64, u64)> {
        match self.kind {
            Kind::EhFrame => self.function_in(&EhFrame::new(&self.bytes, LittleEndian), svma),
            Kind::DebugFrame => {
                let mut section = DebugFrame::new(&self.bytes, LittleEndian);
                section.set_address_size(8);
                self.function_in(&section, svma)
            }
        }
    }

    fn function_in<'s, S>(&self, section: &S, svma: u64) -> Option<(u64, u64)>
    where
        S: UnwindSection<Slice<'s>>,
        S::Offset: gimli::UnwindOffset<usize>,
    {
        if let Some((start, offset)) = self.search.as_ref().and_then(|table| table.find(svma)) {
            let fde = section.fde_from_offset(&self.bases, S::Offset::from(offset), S::cie_from_offset).ok();
            if let Some(fde) = fde.filter(|fde| fde.initial_address() == start) {
                return Some((start, fde.end_address()));
            }
        }
        let index = self.index.get_or_init(|| self.build_index(section));
        let i = index.partition_point(|e| e.start <= svma).checked_sub(1)?;
        index.get(i).map(|e| (e.start, e.end))
    }

    pub(super) fn build_index<'s, S>(&self, section: &S) -> Vec<Entry>
    where
        S: UnwindSection<Slice<'s>>,
        S::Offset: gimli::UnwindOffset<usize>,
    {
        let mut index = Vec::new();
        let mut cies = HashMap::new();
        let mut entries = section.entries(&self.bases);
        // The position of whatever follows an unreadable entry is not known, so the loop ends there.
        while let Ok(Some(entry)) = entries.next() {
            let gimli::CieOrFde::Fde(partial) = entry else { continue };
            let parsed = partial.parse(|section, bases, offset| {
                let key: usize = gimli::UnwindOffset::into(offset);
                let cie = cies.entry(key).or_insert_with(|| section.cie_from_offset(bases, offset));
                cie.clone()
            });
            let Ok(fde) = parsed else { continue };
            // Linkers leave 0 as the start address in the entries of functions that they dropped.
            if fde.initial_address() != 0 && fde.initial_address() < fde.end_address() {
                index.push(Entry { start: fde.initial_address(), end: fde.end_address(), offset: fde.offset() });
            }
            if index.len() >= limits::MAX_UNWIND_ENTRIES {
                break;
            }
        }
        index.sort_by_key(|e| e.start);
        index
    }
}

/// The binary search table of `.eh_frame_hdr`, in the only form that linkers write: pairs of 32-bit offsets from the
/// address of the header itself.
pub(super) struct SearchTable<'a> {
    pairs: &'a [[u8; 8]],
    header: u64,
    pub(super) eh_frame: u64,
}

impl<'a> SearchTable<'a> {
    /// Reads version 1 with `pcrel|sdata4` pointer, `udata4` count and `datarel|sdata4` table. In any other form
    /// there is no table.
    pub(super) fn parse(header: &'a [u8], svma: u64, eh_frame: Option<u64>) -> Option<SearchTable<'a>> {
        let (&[1, 0x1b, 0x03, 0x3b], rest) = header.split_first_chunk()? else { return None };
        let (pointer, rest) = rest.split_first_chunk::<4>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let pointed = svma.wrapping_add(4).wrapping_add_signed(i32::from_le_bytes(*pointer).into());
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let pairs = rest.as_chunks::<8>().0.get(..count)?;
        // If a file was edited after it was linked, its table may be older than its sections and point elsewhere.
        (eh_frame.is_none_or(|known| known == pointed) && !pairs.is_empty()).then_some(SearchTable {
            pairs,
            header: svma,
            eh_frame: pointed,
        })
    }

    fn pair(&self, pair: &[u8; 8]) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h] = *pair;
        let at = |word: [u8; 4]| self.header.wrapping_add_signed(i32::from_le_bytes(word).into());
        (at([a, b, c, d]), at([e, f, g, h]))
    }

    /// The last function that begins at or before `svma`: its start as an svma, and the offset of its entry in
    /// `.eh_frame`.
    fn find(&self, svma: u64) -> Option<(u64, usize)> {
        let i = self.pairs.partition_point(|p| self.pair(p).0 <= svma);
        let (start, entry) = self.pair(self.pairs.get(i.checked_sub(1)?)?);
        // A pointer to before the section becomes an offset far behind the section's end.
        Some((start, usize::try_from(entry.wrapping_sub(self.eh_frame)).ok()?))
    }
}
