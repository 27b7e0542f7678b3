//! Decides which of the user's `.wasm` files belongs to which module.
//!
//! Modules of one shape (the same declarations, functions and points) are told apart by the contents of their code. A
//! file goes to the module that it fits best, and the result is the same in whatever order the files are named. Where
//! nothing decides, no file is chosen.

use super::immediates::{Immediates, is_common};
use super::{Fit, Key, Provider};
use crate::limits::MAX_COMPARED_CODE;
use crate::process::Memory;
use crate::wasm::WasmModule;
use crate::wasm::constants::Constant;
use crate::wasm::file::CoreModule;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

/// What was decided about a module. Files and modules are given by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No file fits the module.
    Nothing,
    /// The module was made from this file.
    File(usize),
    /// These files fit the module equally well.
    Either(Vec<usize>),
    /// This file fits the module, and equally well these modules, whose code is different.
    Torn(usize, Vec<usize>),
    /// This file fits the module, but fits the other module (the second number) better.
    Elsewhere(usize, usize),
}

/// What is known about files and the modules that they fit.
pub(super) trait Evidence {
    /// Whether module `module` was made from file `a` rather than from `b` (true), or the other way round (false).
    /// `None` if that cannot be told.
    fn better_file(&mut self, module: usize, a: usize, b: usize) -> Option<bool>;
    /// Whether `file` was made into module `a` rather than into `b` (true), or the other way round (false). `None` if
    /// that cannot be told.
    fn better_module(&mut self, file: usize, a: usize, b: usize) -> Option<bool>;
    /// Whether the two modules cannot have been made from one file.
    fn are_others(&mut self, a: usize, b: usize) -> bool;
}

/// Decides about each module. `fits` has for each module the files that do not contradict it, `known` the files that
/// were decided before.
pub(super) fn decide(fits: &[BTreeSet<usize>], known: &[Option<usize>], evidence: &mut dyn Evidence) -> Vec<Verdict> {
    let mut open: Vec<BTreeSet<usize>> = Vec::new();
    for (module, files) in fits.iter().enumerate() {
        open.push(match known.get(module).copied().flatten() {
            Some(file) => BTreeSet::from([file]),
            None => unbeaten(module, files, evidence),
        });
    }
    let mut verdicts: Vec<Verdict> = vec![Verdict::Nothing; fits.len()];
    loop {
        for (verdict, files) in verdicts.iter_mut().zip(&open) {
            if *verdict == Verdict::Nothing || matches!(verdict, Verdict::Either(_)) {
                *verdict = match files.len() {
                    0 => Verdict::Nothing,
                    1 => files.first().map_or(Verdict::Nothing, |file| Verdict::File(*file)),
                    _ => Verdict::Either(files.iter().copied().collect()),
                };
            }
        }
        tear(&mut verdicts, known, evidence);
        // A file that was given to another module is not this module's too, if the two cannot be made from one file.
        let mut changed = false;
        for module in 0..open.len() {
            if !matches!(verdicts[module], Verdict::Either(_)) {
                continue;
            }
            let taken: BTreeMap<usize, usize> = owners(&verdicts);
            let left: BTreeSet<usize> = open[module]
                .iter()
                .copied()
                .filter(|file| !taken.get(file).is_some_and(|owner| evidence.are_others(module, *owner)))
                .collect();
            if !left.is_empty() && left.len() < open[module].len() {
                changed = true;
                open[module] = left;
            }
        }
        if !changed {
            return verdicts;
        }
    }
}

/// Returns, for each file that some module was given, one of these modules.
fn owners(verdicts: &[Verdict]) -> BTreeMap<usize, usize> {
    let files = verdicts.iter().enumerate().filter_map(|(module, verdict)| match verdict {
        Verdict::File(file) => Some((*file, module)),
        _ => None,
    });
    files.collect()
}

/// The files of a module without those that another of its files is better than.
fn unbeaten(module: usize, files: &BTreeSet<usize>, evidence: &mut dyn Evidence) -> BTreeSet<usize> {
    let mut beaten = BTreeSet::new();
    for a in files {
        for b in files.range(a + 1..) {
            match evidence.better_file(module, *a, *b) {
                Some(true) => _ = beaten.insert(*b),
                Some(false) => _ = beaten.insert(*a),
                None => {}
            }
        }
    }
    let left: BTreeSet<usize> = files.difference(&beaten).copied().collect();
    if left.is_empty() { files.clone() } else { left }
}

/// Changes the verdicts of modules that were given the same file though they cannot all be made from it.
fn tear(verdicts: &mut [Verdict], known: &[Option<usize>], evidence: &mut dyn Evidence) {
    let mut of_file: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (module, verdict) in verdicts.iter().enumerate() {
        if let Verdict::File(file) = verdict {
            of_file.entry(*file).or_default().push(module);
        }
    }
    for (file, modules) in of_file {
        // Modules that may be made from one file are of one kind, and the first of a kind stands for all of them.
        let mut kinds: Vec<Vec<usize>> = Vec::new();
        for module in modules {
            let kind = kinds.iter_mut().find(|kind| kind.first().is_some_and(|m| !evidence.are_others(*m, module)));
            match kind {
                Some(kind) => kind.push(module),
                None => kinds.push(vec![module]),
            }
        }
        let first = |kind: &[usize]| kind.first().copied();
        let mut lost: BTreeMap<usize, usize> = BTreeMap::new();
        let mut torn: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for a in 0..kinds.len() {
            for b in a + 1..kinds.len() {
                let (Some(x), Some(y)) = (first(&kinds[a]), first(&kinds[b])) else { continue };
                match evidence.better_module(file, x, y) {
                    Some(true) => _ = lost.insert(b, x),
                    Some(false) => _ = lost.insert(a, y),
                    None => {
                        torn.entry(a).or_default().push(y);
                        torn.entry(b).or_default().push(x);
                    }
                }
            }
        }
        for (number, kind) in kinds.iter().enumerate() {
            let verdict = match (lost.get(&number), torn.get(&number)) {
                (Some(better), _) => Verdict::Elsewhere(file, *better),
                // A module is not torn with one that a third module is better than.
                (None, Some(others)) => {
                    let lost: BTreeSet<usize> = lost.keys().filter_map(|k| first(&kinds[*k])).collect();
                    let others: Vec<usize> = others.iter().copied().filter(|o| !lost.contains(o)).collect();
                    if others.is_empty() { continue } else { Verdict::Torn(file, others) }
                }
                (None, None) => continue,
            };
            for module in kind.iter().filter(|m| known.get(**m).copied().flatten().is_none()) {
                verdicts[*module] = verdict.clone();
            }
        }
    }
}

/// A core module from one of the user's files.
pub(super) struct Candidate {
    /// Number of the file that it is from.
    pub file: usize,
    /// The core module itself.
    pub core: CoreModule,
}

/// The evidence that the code of modules gives. Modules are numbered across all providers.
pub(super) struct ByCode<'a> {
    pub providers: &'a [Box<dyn Provider>],
    pub places: &'a [(usize, usize)],
    pub candidates: &'a [Candidate],
    pub fits: &'a HashMap<(usize, usize), Fit>,
    pub memory: &'a dyn Memory,
    pub keys: HashMap<usize, Option<Key>>,
    pub code: HashMap<(usize, u32), Option<Rc<Immediates>>>,
    /// Number of bytes of code that may still be read.
    pub left: u64,
}

impl<'a> ByCode<'a> {
    pub fn new(
        providers: &'a [Box<dyn Provider>],
        places: &'a [(usize, usize)],
        candidates: &'a [Candidate],
        fits: &'a HashMap<(usize, usize), Fit>,
        memory: &'a dyn Memory,
    ) -> ByCode<'a> {
        let (keys, code) = (HashMap::new(), HashMap::new());
        ByCode { providers, places, candidates, fits, memory, keys, code, left: MAX_COMPARED_CODE }
    }

    fn wasm(&self, candidate: usize) -> Option<&'a WasmModule> {
        self.candidates.get(candidate).map(|c| &*c.core.wasm)
    }

    fn provider(&self, module: usize) -> Option<(&'a dyn Provider, usize)> {
        let &(provider, local) = self.places.get(module)?;
        Some((&**self.providers.get(provider)?, local))
    }

    pub fn code(&mut self, module: usize, function: u32) -> Option<Rc<Immediates>> {
        if let Some(known) = self.code.get(&(module, function)) {
            return known.clone();
        }
        let read = self.provider(module).and_then(|(p, local)| p.code(local, function, self.memory));
        let read = read.filter(|code| code.len() as u64 <= self.left);
        self.left -= read.as_ref().map_or(0, |code| code.len() as u64);
        let code = read.map(|code| Rc::new(Immediates::of(&code)));
        self.code.insert((module, function), code.clone());
        code
    }

    fn own_name(&self, module: usize, function: u32) -> Option<String> {
        let (provider, local) = self.provider(module)?;
        provider.own_name(local, function)
    }
}

/// What speaks for each of two files or modules, `a` and `b`.
#[derive(Default)]
struct Votes {
    a: usize,
    b: usize,
    /// For `a` and `b`: how many constants have at least left a trace that an optimizer may have made of them.
    traces: (usize, usize),
    /// How many constants of `a` and of `b` could have been found.
    most: (usize, usize),
}

impl Votes {
    /// The side that the votes decide for (true for `a`), if nothing or next to nothing speaks for the other side.
    fn decided(&self) -> Option<bool> {
        let clear = |own: usize, most: usize, other: usize, most_other: usize| {
            (own > 0 && other == 0) || (own >= 4 && own * 2 >= most && other * 8 <= most_other)
        };
        let (a, b) = (
            clear(self.a, self.most.0, self.traces.1, self.most.1),
            clear(self.b, self.most.1, self.traces.0, self.most.0),
        );
        if a == b { None } else { Some(a) }
    }
}

fn bits(constants: &[Constant]) -> HashSet<(u64, bool)> {
    constants.iter().map(|c| (c.bits, c.wide)).collect()
}

impl Evidence for ByCode<'_> {
    fn better_file(&mut self, module: usize, a: usize, b: usize) -> Option<bool> {
        let exact = |candidate: usize| self.fits.get(&(module, candidate)).map_or(0, |fit| fit.exact);
        if exact(a) != exact(b) {
            return Some(exact(a) > exact(b));
        }
        let (wasm_a, wasm_b) = (self.wasm(a)?, self.wasm(b)?);
        let mut votes = Votes::default();
        for function in 0..wasm_a.defined_functions().min(wasm_b.defined_functions()) {
            let (own, other) = (wasm_a.constants(function), wasm_b.constants(function));
            if own == other {
                continue;
            }
            let Some(code) = self.code(module, function) else { continue };
            let (all_own, all_other) = (bits(&own), bits(&other));
            let only = |list: &[Constant], others: &HashSet<(u64, bool)>| -> Vec<Constant> {
                let mut seen = HashSet::new();
                let new = |c: &&Constant| !others.contains(&(c.bits, c.wide)) && seen.insert((c.bits, c.wide));
                list.iter().filter(new).copied().collect()
            };
            for constant in only(&own, &all_other) {
                votes.most.0 += 1;
                votes.a += usize::from(code.has(&constant) && !is_common(&constant));
                votes.traces.0 += usize::from(code.has_trace(&constant));
            }
            for constant in only(&other, &all_own) {
                votes.most.1 += 1;
                votes.b += usize::from(code.has(&constant) && !is_common(&constant));
                votes.traces.1 += usize::from(code.has_trace(&constant));
            }
        }
        votes.decided().or_else(|| self.by_names(module, wasm_a, wasm_b))
    }

    fn better_module(&mut self, candidate: usize, a: usize, b: usize) -> Option<bool> {
        let exact = |module: usize| self.fits.get(&(module, candidate)).map_or(0, |fit| fit.exact);
        if exact(a) != exact(b) {
            return Some(exact(a) > exact(b));
        }
        let wasm = self.wasm(candidate)?;
        let (mut votes, mut names) = (Votes::default(), (0, 0));
        for function in 0..wasm.defined_functions() {
            let index = wasm.imported_functions().saturating_add(function);
            if let Some(name) = wasm.own_name(index) {
                let is = |theirs: Option<String>| theirs.is_some_and(|theirs| is_name(name, &theirs));
                let (x, y) = (is(self.own_name(a, index)), is(self.own_name(b, index)));
                names = (names.0 + usize::from(x && !y), names.1 + usize::from(y && !x));
            }
            let (Some(x), Some(y)) = (self.code(a, function), self.code(b, function)) else { continue };
            if x == y {
                continue;
            }
            for constant in wasm.constants(function) {
                let counts = !is_common(&constant);
                votes.a += usize::from(counts && x.has(&constant) && !y.has_trace(&constant));
                votes.b += usize::from(counts && y.has(&constant) && !x.has_trace(&constant));
            }
        }
        (votes.traces, votes.most) = ((votes.a, votes.b), (votes.a, votes.b));
        votes.decided().or(match names {
            (1.., 0) => Some(true),
            (0, 1..) => Some(false),
            _ => None,
        })
    }

    fn are_others(&mut self, a: usize, b: usize) -> bool {
        let mut key = |module: usize| {
            if let Some(known) = self.keys.get(&module) {
                return *known;
            }
            let of = self.provider(module).and_then(|(p, local)| p.key(local, &mut self.left, self.memory));
            // Keys of different providers cannot be compared with each other.
            self.keys.insert(module, of);
            of
        };
        let (Some(x), Some(y)) = (key(a), key(b)) else { return false };
        let same_provider = self.places.get(a).map(|p| p.0) == self.places.get(b).map(|p| p.0);
        same_provider && x.build == y.build && x.content != y.content
    }
}

impl ByCode<'_> {
    fn by_names(&self, module: usize, a: &WasmModule, b: &WasmModule) -> Option<bool> {
        let mut votes = (0, 0);
        for function in 0..a.defined_functions().saturating_add(a.imported_functions()) {
            let (name_a, name_b) = (a.own_name(function), b.own_name(function));
            if name_a == name_b {
                continue;
            }
            let Some(theirs) = self.own_name(module, function) else { continue };
            let is = |name: Option<&str>| usize::from(name.is_some_and(|name| is_name(name, &theirs)));
            votes = (votes.0 + is(name_a), votes.1 + is(name_b));
        }
        match votes {
            (1.., 0) => Some(true),
            (0, 1..) => Some(false),
            _ => None,
        }
    }
}

/// Whether `theirs`, a name in the process, is `name`. The process's name may have been cut, and cleaned of
/// characters.
fn is_name(name: &str, theirs: &str) -> bool {
    let clean = |text: &str| -> String {
        let mut out = String::new();
        for c in text.chars() {
            match c.is_ascii_graphic() {
                true => out.push(c),
                false if out.ends_with('?') => {}
                false => out.push('?'),
            }
        }
        out
    };
    let (name, theirs) = (clean(name), clean(theirs));
    // Wasmtime's `obj.rs` cuts the names of symbols.
    name == theirs || (theirs.len() >= 90 && name.starts_with(&theirs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Either, Elsewhere, File, Nothing, Torn};

    /// Evidence given as lists.
    #[derive(Default)]
    struct Told<'a> {
        /// Each entry: a module, then two of its files, the first of which is better.
        files: &'a [(usize, usize, usize)],
        /// Each entry: a file, then two modules that it fits, the first of which is better.
        modules: &'a [(usize, usize, usize)],
        /// Pairs of modules that cannot be made from one file.
        others: &'a [(usize, usize)],
    }

    impl Evidence for Told<'_> {
        fn better_file(&mut self, module: usize, a: usize, b: usize) -> Option<bool> {
            let is = |x, y| self.files.contains(&(module, x, y));
            if is(a, b) { Some(true) } else { is(b, a).then_some(false) }
        }
        fn better_module(&mut self, file: usize, a: usize, b: usize) -> Option<bool> {
            let is = |x, y| self.modules.contains(&(file, x, y));
            if is(a, b) { Some(true) } else { is(b, a).then_some(false) }
        }
        fn are_others(&mut self, a: usize, b: usize) -> bool {
            self.others.contains(&(a, b)) || self.others.contains(&(b, a))
        }
    }

    #[test]
    fn each_module_gets_its_file_or_it_is_open() {
        /// Name of the case, the files that fit each module, the other evidence, and the expected verdict for each
        /// module.
        type Case<'a> = (&'a str, &'a [&'a [usize]], Told<'a>, &'a [Verdict]);
        let cases: [Case<'_>; 11] = [
            ("nothing fits", &[&[]], Told::default(), &[Nothing]),
            ("one each", &[&[1], &[0]], Told::default(), &[File(1), File(0)]),
            ("one file for two modules of it", &[&[0], &[0]], Told::default(), &[File(0), File(0)]),
            ("nothing decides", &[&[0, 1]], Told::default(), &[Either(vec![0, 1])]),
            ("one is better", &[&[0, 1]], Told { files: &[(0, 1, 0)], ..Told::default() }, &[File(1)]),
            (
                "best of three, and two are left of three",
                &[&[0, 1, 2], &[0, 1, 2]],
                Told { files: &[(0, 1, 0), (0, 1, 2), (1, 1, 0)], ..Told::default() },
                &[File(1), Either(vec![1, 2])],
            ),
            (
                "what is another's is not this one's",
                &[&[0, 1], &[1]],
                Told { others: &[(0, 1)], ..Told::default() },
                &[File(0), File(1)],
            ),
            ("unless it may be both", &[&[0, 1], &[1]], Told::default(), &[Either(vec![0, 1]), File(1)]),
            (
                "one leads to the next",
                &[&[0, 1, 2], &[1, 2], &[2]],
                Told { others: &[(0, 1), (0, 2), (1, 2)], ..Told::default() },
                &[File(0), File(1), File(2)],
            ),
            (
                "one file, two modules that are different",
                &[&[0], &[0], &[0]],
                Told { others: &[(0, 1), (1, 2)], ..Told::default() },
                &[Torn(0, vec![1]), Torn(0, vec![0]), Torn(0, vec![1])],
            ),
            (
                "and it fits one of them better",
                &[&[0], &[0], &[0]],
                Told { others: &[(0, 1), (1, 2)], modules: &[(0, 1, 0)], ..Told::default() },
                &[Elsewhere(0, 1), File(0), Elsewhere(0, 1)],
            ),
        ];
        for (what, fits, mut told, expected) in cases {
            let fits: Vec<BTreeSet<usize>> = fits.iter().map(|files| files.iter().copied().collect()).collect();
            assert_eq!(decide(&fits, &[], &mut told), expected, "{what}");
            // The same case with the files numbered the other way round.
            let turned: Vec<BTreeSet<usize>> = fits.iter().map(|f| f.iter().map(|file| 9 - file).collect()).collect();
            let files: Vec<_> = told.files.iter().map(|(m, a, b)| (*m, 9 - a, 9 - b)).collect();
            let modules: Vec<_> = told.modules.iter().map(|(f, a, b)| (9 - f, *a, *b)).collect();
            let mut told = Told { files: &files, modules: &modules, others: told.others };
            let back = decide(&turned, &[], &mut told).into_iter().map(|verdict| match verdict {
                File(file) => File(9 - file),
                Either(files) => Either(files.into_iter().rev().map(|file| 9 - file).collect()),
                Torn(file, others) => Torn(9 - file, others),
                Elsewhere(file, better) => Elsewhere(9 - file, better),
                Nothing => Nothing,
            });
            assert_eq!(back.collect::<Vec<_>>(), expected, "{what}, turned");
        }
        // What was decided before stays decided.
        let fits = [BTreeSet::new(), BTreeSet::from([0, 1])];
        let mut told = Told { others: &[(0, 1)], ..Told::default() };
        assert_eq!(decide(&fits, &[Some(0)], &mut told), [File(0), File(1)]);
    }

    #[test]
    fn votes_decide_where_one_side_has_none() {
        let votes = |a, b, traces, most| Votes { a, b, traces, most }.decided();
        assert_eq!(votes(1, 0, (1, 0), (1, 1)), Some(true));
        assert_eq!(votes(0, 2, (0, 2), (1, 2)), Some(false));
        assert_eq!(votes(1, 0, (1, 1), (1, 1)), None, "what the optimizer may have made of the other's");
        assert_eq!(votes(0, 0, (0, 0), (3, 3)), None);
        assert_eq!(votes(1, 1, (1, 1), (1, 1)), None);
        assert_eq!(votes(20, 0, (22, 2), (24, 24)), Some(true), "next to nothing");
        assert_eq!(votes(3, 0, (3, 1), (24, 24)), None);
    }

    #[test]
    fn names_that_were_cleaned_are_the_same() {
        assert!(is_name("f", "f") && is_name("a b\u{e9}c", "a?b?c") && !is_name("f", "g"));
        let long = "x".repeat(120);
        assert!(is_name(&long, &long[..96]) && !is_name(&long, &long[..20]));
    }
}
