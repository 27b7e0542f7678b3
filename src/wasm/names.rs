//! Reads the name section (`name`) in such a way that a defect in it costs only the part it is in.
//!
//! Runtimes and tools ignore a broken name section, so modules with one run like any other. Here a name that is not
//! UTF-8 is read with replacement characters, and whatever cannot be read ends only the list that it is in.

use crate::bytes::Bytes;
use crate::limits::MAX_NAME_RESYNCS;
use std::borrow::Cow;

/// One name of the name section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Naming<'a> {
    /// The name of the module.
    Module(Cow<'a, str>),
    /// The name of a function, with the function's index.
    Function(u32, Cow<'a, str>),
    /// The name of a local, with the index of its function and the index of the local.
    Local(u32, u32, Cow<'a, str>),
}

/// The highest number of a known kind of subsection (`tag names`).
const LAST_ID: u8 = 11;

/// Calls `visit` for every name in the contents of a name section, in the order of the section.
pub fn read<'a>(section: &'a [u8], visit: &mut dyn FnMut(Naming<'a>)) {
    let mut at = 0;
    let mut is_whole = is_chain(section, 0);
    let mut left = MAX_NAME_RESYNCS;
    while let Some((id, body, declared)) = header(section, at) {
        let end = declared.min(section.len());
        // If a length lies, the entries themselves say where they end, so they may be read beyond that length.
        let read_to = if is_whole || left == 0 { end } else { section.len() };
        let Some(data) = section.get(body..read_to) else { return };
        let mut reader = Bytes::new(data);
        let read = subsection(id, &mut reader, visit);
        let found = body + reader.offset();
        at = end;
        if !is_whole && left > 0 && found != declared {
            left -= 1;
            if read.is_some() && is_chain(section, found) {
                (at, is_whole) = (found, true);
            }
        }
    }
}

/// Reads the header of the subsection at `at`: the subsection's number, the offset at which its contents begin, and
/// the offset at which they end according to the header.
fn header(section: &[u8], at: usize) -> Option<(u8, usize, usize)> {
    let mut b = Bytes::new(section.get(at..)?);
    let id = b.u8().ok()?;
    let len = number(&mut b)?;
    let body = at + b.offset();
    Some((id, body, body.saturating_add(len as usize)))
}

/// Whether the section consists, from `at` on to its end, of subsections that follow each other without a gap.
fn is_chain(section: &[u8], mut at: usize) -> bool {
    while at < section.len() {
        match header(section, at) {
            Some((id, _, end)) if id <= LAST_ID => at = end,
            _ => return false,
        }
    }
    at == section.len()
}

/// Reads the contents of a subsection. `None` if they could not be read to their end.
fn subsection<'a>(id: u8, b: &mut Bytes<'a>, visit: &mut dyn FnMut(Naming<'a>)) -> Option<()> {
    match id {
        0 => visit(Naming::Module(text(b)?)),
        1 => {
            for _ in 0..number(b)? {
                visit(Naming::Function(number(b)?, text(b)?));
            }
        }
        2 => {
            for _ in 0..number(b)? {
                let function = number(b)?;
                for _ in 0..number(b)? {
                    visit(Naming::Local(function, number(b)?, text(b)?));
                }
            }
        }
        _ => return None,
    }
    Some(())
}

fn text<'a>(b: &mut Bytes<'a>) -> Option<Cow<'a, str>> {
    let len = number(b)?;
    Some(String::from_utf8_lossy(b.take(len.into()).ok()?))
}

/// A number of 32 bits in LEB128.
fn number(b: &mut Bytes<'_>) -> Option<u32> {
    let mut value = 0u64;
    for shift in [0, 7, 14, 21, 28] {
        let byte = b.u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(value).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn leb(mut n: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while n > 0x7f {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out
    }

    fn name(bytes: &[u8]) -> Vec<u8> {
        [leb(bytes.len()), bytes.to_vec()].concat()
    }

    fn names(entries: &[(usize, &[u8])]) -> Vec<u8> {
        let entries = entries.iter().map(|(i, n)| [leb(*i), name(n)].concat());
        [vec![leb(entries.len())], entries.collect()].concat().concat()
    }

    /// A subsection. `declared` is added to its true length, and the header states the sum.
    fn sub(id: u8, body: Vec<u8>, declared: isize) -> Vec<u8> {
        [vec![id], leb(body.len().checked_add_signed(declared).unwrap()), body].concat()
    }

    fn all(section: &[u8]) -> BTreeSet<String> {
        let mut out = BTreeSet::new();
        read(section, &mut |naming| {
            out.insert(match naming {
                Naming::Module(name) => format!("m={name}"),
                Naming::Function(f, name) => format!("{f}={name}"),
                Naming::Local(f, l, name) => format!("{f}.{l}={name}"),
            });
        });
        out
    }

    /// Each defect in each subsection costs the part that it is in, and nothing else.
    #[test]
    fn a_defect_costs_itself() {
        let module = || sub(0, name(b"mod"), 0);
        let functions = || sub(1, names(&[(0, b"zero"), (1, b"one"), (2, b"two")]), 0);
        let of_functions = |f: &[(usize, Vec<u8>)]| {
            [vec![leb(f.len())], f.iter().map(|(i, n)| [leb(*i), n.clone()].concat()).collect()]
        };
        let locals = || {
            let body = of_functions(&[(0, names(&[(0, b"a"), (1, b"b")])), (1, names(&[(0, b"c")]))]).concat().concat();
            sub(2, body, 0)
        };
        let labels = || sub(3, of_functions(&[(0, names(&[(0, b"label")]))]).concat().concat(), 0);
        let types = || sub(4, names(&[(0, b"type")]), 0);
        let rest = || [labels(), types()].concat();
        let whole = ["m=mod", "0=zero", "1=one", "2=two", "0.0=a", "0.1=b", "1.0=c"];
        let but = |without: &[&str], with: &[&str]| -> BTreeSet<String> {
            let kept = whole.iter().filter(|n| !without.contains(n));
            kept.chain(with).map(|n| n.to_string()).collect()
        };
        let bad = b"\xff\xfe";
        let shown = "\u{fffd}\u{fffd}";
        let cases: Vec<(&str, Vec<u8>, BTreeSet<String>)> = vec![
            ("whole", [module(), functions(), locals(), rest()].concat(), but(&[], &[])),
            (
                "module's name",
                [sub(0, name(bad), 0), functions(), locals()].concat(),
                but(&["m=mod"], &[&format!("m={shown}")]),
            ),
            (
                "first function's name",
                [module(), sub(1, names(&[(0, bad), (1, b"one"), (2, b"two")]), 0), locals()].concat(),
                but(&["0=zero"], &[&format!("0={shown}")]),
            ),
            (
                "last function's name",
                [module(), sub(1, names(&[(0, b"zero"), (1, b"one"), (2, b"tw\xc3")]), 0), locals()].concat(),
                but(&["2=two"], &["2=tw\u{fffd}"]),
            ),
            (
                "a local's name",
                [
                    module(),
                    functions(),
                    sub(
                        2,
                        of_functions(&[(0, names(&[(0, bad), (1, b"b")])), (1, names(&[(0, b"c")]))]).concat().concat(),
                        0,
                    ),
                ]
                .concat(),
                but(&["0.0=a"], &[&format!("0.0={shown}")]),
            ),
            (
                "a label's name",
                [
                    module(),
                    sub(3, of_functions(&[(0, names(&[(0, bad)]))]).concat().concat(), 0),
                    functions(),
                    locals(),
                ]
                .concat(),
                but(&[], &[]),
            ),
            (
                "an unknown subsection",
                [module(), sub(9, vec![0xff; 9], 0), functions(), locals()].concat(),
                but(&[], &[]),
            ),
            (
                "an index that is out of range",
                [module(), sub(1, names(&[(0, b"zero"), (7_000_000, b"x"), (1, b"one"), (2, b"two")]), 0), locals()]
                    .concat(),
                but(&[], &["7000000=x"]),
            ),
            (
                "out of order",
                [module(), sub(1, names(&[(2, b"two"), (0, b"zero"), (1, b"one")]), 0), locals()].concat(),
                but(&[], &[]),
            ),
            ("subsections out of order", [locals(), functions(), module()].concat(), but(&[], &[])),
            (
                "a name whose length lies",
                [module(), sub(1, [vec![3, 0], name(b"zero"), vec![1, 99], b"one".to_vec()].concat(), 0), locals()]
                    .concat(),
                but(&["1=one", "2=two"], &[]),
            ),
            (
                "a count that is too large",
                [module(), sub(1, [vec![9, 0], name(b"zero")].concat(), 0), locals()].concat(),
                but(&["1=one", "2=two"], &[]),
            ),
            (
                "a count that is too small",
                [module(), sub(1, [vec![1, 0], name(b"zero"), vec![1], name(b"one")].concat(), 0), locals()].concat(),
                but(&["1=one", "2=two"], &[]),
            ),
            (
                "a number that does not end",
                [module(), sub(1, vec![0xff; 12], 0), locals()].concat(),
                but(&["0=zero", "1=one", "2=two"], &[]),
            ),
            (
                "a subsection that is longer than the section",
                [module(), sub(1, names(&[(0, b"zero"), (1, b"one"), (2, b"two")]), 1000), locals(), rest()].concat(),
                but(&[], &[]),
            ),
            (
                "a subsection that is longer than its contents",
                [module(), sub(1, names(&[(0, b"zero"), (1, b"one"), (2, b"two")]), 3), locals(), rest()].concat(),
                but(&[], &[]),
            ),
            (
                "a subsection that is shorter than its contents",
                [module(), sub(1, names(&[(0, b"zero"), (1, b"one"), (2, b"two")]), -4), locals(), rest()].concat(),
                but(&[], &[]),
            ),
            ("nothing", Vec::new(), BTreeSet::new()),
        ];
        for (what, section, expected) in cases {
            assert_eq!(all(&section), expected, "{what}");
        }
    }

    #[test]
    fn lengths_that_lie_are_made_up_for_so_often() {
        for (more, mended) in [(0, true), (1, false)] {
            // The numbers in these lists do not end, so nothing tells where the lists end.
            let broken: Vec<u8> = (0..MAX_NAME_RESYNCS - 1 + more).flat_map(|_| sub(1, vec![0xff; 6], 0)).collect();
            let last =
                [sub(1, names(&[(0, b"zero")]), 1000), sub(2, [leb(1), leb(0), names(&[(0, b"a")])].concat(), 0)];
            assert_eq!(all(&[broken, last.concat()].concat()).contains("0.0=a"), mended);
        }
    }

    #[test]
    fn any_cut_keeps_what_is_before_it() {
        let section = [sub(0, name(b"mod"), 0), sub(1, names(&[(0, b"zero"), (1, b"one")]), 0)].concat();
        let whole = all(&section);
        for cut in 0..section.len() {
            let found = all(&section[..cut]);
            assert!(found.is_subset(&whole), "{cut}: {found:?}");
            assert_eq!(found.contains("m=mod"), cut >= 6, "{cut}: {found:?}");
        }
    }
}
