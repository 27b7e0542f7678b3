//! Works out which instance each frame runs in.
//!
//! A function gets its instance as its first argument and need not keep it. Where the compiler did not keep it, the
//! frame itself no longer has it. But the frame's caller passed it, its callee was passed one, and its store has a
//! list of its instances. So frames are kept as a chain while a stack is walked, and what is known of one frame
//! decides the next:
//!
//! - the frame's own code says where the instance is ([`super::flow`]), or its callee is a trampoline, which kept the
//!   instance of its caller;
//! - a function that passes on what it was passed runs in the same instance as its callee;
//! - a function that passes a word of its own instance (the word of an import) calls into the instance that this word
//!   names;
//! - where the trampoline's registers are lost, the store still knows where its last exit was ([`super::exit`]);
//! - all frames between an entry from the host and the next exit belong to one store, and if only one instance of
//!   that store can be meant, they run in this instance.

use super::flow::Held;
use crate::arch::x64;
use crate::limits::{MAX_ELIMINATION_ROUNDS, MAX_INSTANCE_CHECKS, MAX_KNOWN_INSTANCES};
use crate::process::Memory;
use crate::runtime::wasmtime::Wasmtime;
use crate::runtime::wasmtime::instance::offsets::VMCONTEXT_STORE;
use crate::runtime::wasmtime::instance::store;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

/// What identifies a frame: its pc and its stack pointer.
pub type Key = (u64, u64);

/// What a frame passed to its callee as the instance to run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// The frame's own instance.
    Own,
    /// The word at this byte offset in the frame's own instance.
    Word(i64),
}

/// A call, as the code of the caller describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is passed as the instance to run in.
    pub passed: Passed,
    /// Byte offset of the word in the caller's instance that holds the address of the called code. `None` if the call
    /// itself names the called code, and this is the callee's. A callee that was called otherwise, by a tail call of
    /// the function that was called here, got nothing from this caller.
    pub target: Option<i64>,
}

impl Call {
    /// The call with this first argument and this called address. `direct` says that the call itself names its callee. `None` if
    /// the argument is neither the caller's instance nor a word of it, or the called address is no such word.
    pub fn new(argument: Option<Held>, target: Option<Held>, direct: bool) -> Option<Call> {
        let passed = match argument? {
            Held::Entry(x64::RDI) => Passed::Own,
            Held::Loaded(offset) => Passed::Word(offset),
            _ => return None,
        };
        let target = match target {
            _ if direct => None,
            Some(Held::Loaded(offset)) => Some(offset),
            _ => return None,
        };
        Some(Call { passed, target })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    /// Number of the module whose code the frame runs, as the runtime counts modules.
    module: usize,
    /// Address of the function's first byte.
    start: u64,
    /// The instance that the frame runs in, as the frame itself says.
    own: Option<u64>,
    /// The instance that the frame runs in, as a trampoline says that the frame called.
    told: Option<u64>,
    /// An instance of the store that the frame belongs to, if no more is known than the store.
    of_store: Option<u64>,
    /// The Wasm frame or entry trampoline that called this frame, and the call, if it is known.
    caller: Option<(Key, Option<Call>)>,
}

impl Node {
    fn instance(&self) -> Option<u64> {
        match (self.own, self.told) {
            // They disagree, so one of them is wrong, and none is taken.
            (Some(own), Some(told)) if own != told => None,
            (own, told) => own.or(told),
        }
    }
}

/// The frames of all walks.
#[derive(Default)]
pub struct Chain {
    nodes: HashMap<Key, Node>,
    /// What follows from the frames. It is dropped when a frame is added or changed.
    solved: Option<Rc<Solved>>,
}

/// What follows from the frames about their instances and stores.
#[derive(Default)]
pub struct Solved {
    frames: HashMap<Key, u64>,
    /// The store of each frame, as the address of the store's context.
    stores: HashMap<Key, u64>,
    /// The instances of each store, each with the modules that it can be an instance of. The key is the address of
    /// the store's context.
    pub lists: BTreeMap<u64, Vec<(u64, Vec<usize>)>>,
    /// Whether there were too many instances and modules to compare them.
    pub cut: bool,
}

impl Solved {
    /// The instance that a frame runs in, if it is known.
    pub fn instance(&self, frame: Key) -> Option<u64> {
        self.frames.get(&frame).copied()
    }

    /// The instance of a module in a frame's store, if there is only one.
    pub fn only(&self, frame: Key, module: usize) -> Option<u64> {
        let list = self.lists.get(self.stores.get(&frame)?)?;
        let mut fit = list.iter().filter(|(_, modules)| modules.contains(&module)).map(|(v, _)| *v);
        fit.next().filter(|_| fit.next().is_none())
    }

    /// All instances that frames run in.
    pub fn instances(&self) -> BTreeSet<u64> {
        self.frames.values().copied().collect()
    }
}

impl Chain {
    /// Takes a frame: its module, where its function begins, and the instance that it runs in, as the frame itself
    /// says.
    pub fn add(&mut self, key: Key, module: usize, start: u64, own: Option<u64>) {
        self.change(key, |node| (node.module, node.start, node.own) = (module, start, own));
    }

    /// Takes who called a frame. `None` if the host called it.
    pub fn called_by(&mut self, key: Key, caller: Option<(Key, Option<Call>)>) {
        self.change(key, |node| node.caller = caller);
    }

    /// Takes the instance of a frame, as a trampoline that the frame called tells it.
    pub fn told(&mut self, key: Key, told: Option<u64>) {
        self.change(key, |node| node.told = told);
    }

    /// Takes an instance of the store that a frame belongs to. The frame may run in another instance of the store.
    pub fn of_store(&mut self, key: Key, instance: Option<u64>) {
        self.change(key, |node| node.of_store = instance);
    }

    fn change(&mut self, key: Key, change: impl FnOnce(&mut Node)) {
        let before = self.nodes.get(&key);
        if before.is_none() && self.nodes.len() >= MAX_KNOWN_INSTANCES {
            return;
        }
        let mut node = before.cloned().unwrap_or_default();
        change(&mut node);
        if before != Some(&node) {
            self.nodes.insert(key, node);
            self.solved = None;
        }
    }

    /// What follows from all frames so far.
    pub fn solve(&mut self, runtime: &Wasmtime, memory: &dyn Memory) -> Rc<Solved> {
        if let Some(solved) = &self.solved {
            return Rc::clone(solved);
        }
        let mut solver = Solver {
            runtime,
            memory,
            nodes: &self.nodes,
            fits: HashMap::new(),
            work: MAX_INSTANCE_CHECKS,
            comparisons: MAX_INSTANCE_CHECKS,
            out: Solved::default(),
        };
        solver.run();
        let solved = Rc::new(solver.out);
        self.solved = Some(Rc::clone(&solved));
        solved
    }
}

struct Solver<'a> {
    runtime: &'a Wasmtime,
    memory: &'a dyn Memory,
    nodes: &'a HashMap<Key, Node>,
    /// Whether the instance at an address can be one of a module, for all pairs that were asked for.
    fits: HashMap<(usize, u64), bool>,
    /// How many more comparisons of frames with instances may be made.
    work: usize,
    /// How many more comparisons of instances with modules may be made.
    comparisons: usize,
    out: Solved,
}

/// Repeats `round` while it decides something. Returns how many rounds did.
fn rounds(mut round: impl FnMut() -> bool) -> usize {
    (0..MAX_ELIMINATION_ROUNDS).take_while(|_| round()).count()
}

impl Solver<'_> {
    fn run(&mut self) {
        let mut callees: HashMap<Key, Key> = HashMap::new();
        for (key, node) in self.nodes {
            if let Some((caller, _)) = node.caller.filter(|(caller, _)| self.nodes.contains_key(caller)) {
                callees.insert(caller, *key);
            }
        }
        // Each chain is followed from its youngest frame on. In a damaged stack a chain may be a circle, which has no
        // youngest frame.
        let mut youngest: Vec<Key> = self.nodes.keys().copied().filter(|k| !callees.contains_key(k)).collect();
        youngest.sort_unstable();
        for first in youngest {
            let mut chain = vec![first];
            let mut links = Vec::new();
            let mut at = first;
            while let Some((caller, passed)) = self.nodes.get(&at).and_then(|n| n.caller)
                && callees.get(&caller) == Some(&at)
                && self.nodes.contains_key(&caller)
            {
                chain.push(caller);
                links.push(passed);
                at = caller;
            }
            self.chain(&chain, &links);
        }
    }

    fn module(&self, key: &Key) -> Option<usize> {
        self.nodes.get(key).map(|n| n.module)
    }

    fn fits(&mut self, module: usize, vmctx: u64) -> bool {
        let (runtime, memory) = (self.runtime, self.memory);
        *self.fits.entry((module, vmctx)).or_insert_with(|| runtime.can_be_instance(module, vmctx, memory))
    }

    fn store_of(&self, vmctx: u64) -> Option<u64> {
        self.memory.read_u64(vmctx.checked_add(VMCONTEXT_STORE)?).ok()
    }

    /// Decides the frames of one stay in Wasm. `chain` has them youngest first, and `links[i]` is how `chain[i + 1]`
    /// called `chain[i]`.
    fn chain(&mut self, chain: &[Key], links: &[Option<Call>]) {
        let mut known: Vec<Option<u64>> = chain.iter().map(|k| self.nodes.get(k)?.instance()).collect();
        self.spread(chain, links, &mut known);
        // All frames of a stay belong to one store. In a damaged stack they may not, and then nothing more follows.
        let members: Vec<u64> =
            known.iter().copied().chain(chain.iter().map(|k| self.nodes.get(k)?.of_store)).flatten().collect();
        let stores: BTreeSet<u64> = members.iter().filter_map(|v| self.store_of(*v)).collect();
        if let (Some(store), 1) = (stores.first().copied(), stores.len()) {
            self.out.stores.extend(chain.iter().map(|key| (*key, store)));
            if let Some(any) = members.first() {
                self.list(store, *any);
            }
            // Each frame that is decided can decide another one.
            rounds(|| {
                let more = self.eliminate(store, chain, links, &mut known);
                if more {
                    self.spread(chain, links, &mut known);
                }
                more
            });
        }
        for (key, instance) in chain.iter().zip(known) {
            if let Some(instance) = instance {
                self.out.frames.insert(*key, instance);
            }
        }
    }

    /// Carries instances that are known from frame to frame, in both directions.
    fn spread(&mut self, chain: &[Key], links: &[Option<Call>], known: &mut [Option<u64>]) {
        // Towards the oldest frame, only an instance that was passed on unchanged can be carried.
        for i in 0..links.len() {
            if known[i + 1].is_none()
                && let Some(callee) = known[i]
                && links[i].is_some_and(|l| l.passed == Passed::Own)
                && self.fits_call(callee, &chain[i], links[i], callee)
                && let Some(module) = self.module(&chain[i + 1])
                && self.fits(module, callee)
            {
                known[i + 1] = Some(callee);
            }
        }
        for i in (0..links.len()).rev() {
            let (None, Some(caller), Some(link)) = (known[i], known[i + 1], links[i]) else { continue };
            let found = match link.passed {
                Passed::Own => Some(caller),
                Passed::Word(offset) => self.word(caller, offset),
            };
            if let (Some(found), Some(module)) = (found, self.module(&chain[i]))
                && self.fits_call(caller, &chain[i], links[i], found)
                && self.fits(module, found)
            {
                known[i] = Some(found);
            }
        }
    }

    /// Whether a frame that runs in `caller` can have called `callee`, a frame that runs in `instance`.
    fn fits_call(&self, caller: u64, callee: &Key, link: Option<Call>, instance: u64) -> bool {
        let (Some(link), Some(node)) = (link, self.nodes.get(callee)) else { return false };
        let passed = match link.passed {
            Passed::Own => caller == instance,
            Passed::Word(offset) => self.word(caller, offset) == Some(instance),
        };
        passed && link.target.is_none_or(|offset| self.word(caller, offset) == Some(node.start))
    }

    fn word(&self, vmctx: u64, offset: i64) -> Option<u64> {
        self.memory.read_u64(vmctx.checked_add_signed(offset)?).ok()
    }

    fn list(&mut self, store: u64, known: u64) {
        if self.out.lists.contains_key(&store) {
            return;
        }
        let list = store::instances(store, known, self.memory).unwrap_or_default();
        let (runtime, memory, left) = (self.runtime, self.memory, &mut self.comparisons);
        let of = |v: u64| Some((v, runtime.modules_of_instance(v, memory, left)?));
        // Nothing follows from a part of the list, because a frame may run in one of the other instances.
        let list = list.into_iter().map(of).collect::<Option<_>>();
        self.out.cut |= list.is_none();
        self.out.lists.insert(store, list.unwrap_or_default());
    }

    /// Decides the frames that can run in only one of the store's instances. Returns whether there was one.
    fn eliminate(&mut self, store: u64, chain: &[Key], links: &[Option<Call>], known: &mut [Option<u64>]) -> bool {
        let Some(list) = self.out.lists.get(&store) else { return false };
        let mut more = false;
        for i in 0..chain.len() {
            let (None, Some(module)) = (known[i], self.module(&chain[i])) else { continue };
            let Some(left) = self.work.checked_sub(list.len()) else { return more };
            self.work = left;
            let fits = |v: &u64| {
                // If it is known how this frame called its callee, the callee's instance must be what `v` would have
                // passed.
                let below = i.checked_sub(1).and_then(|below| Some((&chain[below], links[below]?, known[below]?)));
                // After a tail call the callee on the stack is not the function that this frame called, and it
                // excludes no instance.
                below.is_none_or(|(callee, link, instance)| {
                    link.target.is_some_and(|offset| self.word(*v, offset) != self.nodes.get(callee).map(|n| n.start))
                        || self.fits_call(*v, callee, Some(link), instance)
                })
            };
            let mut candidates =
                list.iter().filter(|(_, modules)| modules.contains(&module)).map(|(v, _)| *v).filter(fits);
            if let (Some(only), None) = (candidates.next(), candidates.next()) {
                known[i] = Some(only);
                more = true;
            }
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::testing::Pieces;

    fn key(n: u64) -> Key {
        (0x1000 + n, 0x7ffd_0000_0000 + 16 * n)
    }

    /// In a damaged stack a chain may lead back to where it began, two frames may have the same caller, and a caller
    /// may be missing.
    #[test]
    fn chains_that_are_none_end() {
        let passed = Some(Call { passed: Passed::Own, target: None });
        let (runtime, memory) = (Wasmtime::default(), Pieces::default());
        for links in [vec![(0, 1), (1, 2), (2, 0)], vec![(0, 0)], vec![(0, 2), (1, 2), (2, 3)], vec![(0, 9)]] {
            let mut chain = Chain::default();
            for (callee, caller) in links {
                chain.add(key(callee), 7, 0x1000, None);
                chain.called_by(key(callee), Some((key(caller), passed)));
                chain.told(key(callee), Some(u64::MAX));
                chain.of_store(key(callee), Some(u64::MAX - 3));
            }
            let solved = chain.solve(&runtime, &memory);
            assert!(solved.lists.is_empty());
            assert_eq!(solved.only(key(0), 7), None);
        }
    }

    /// If not all instances of a store can be compared, nothing follows.
    #[test]
    fn so_many_instances_are_compared_with_modules() {
        let mut runtime = Wasmtime::default();
        let bytes = crate::runtime::wasmtime::testing::fixture("48-default");
        let slice = crate::runtime::wasmtime::image::SliceMemory::new(0, &bytes);
        for _ in 0..3 {
            let image = crate::runtime::wasmtime::image::Image::from_bytes(&bytes).unwrap();
            runtime.add(crate::runtime::wasmtime::tables::code::Code::load(image, None, &slice));
        }
        let memory = Pieces::default();
        let mut left = 7;
        for (instances, compared) in [(1, true), (2, true), (3, false)] {
            let modules = runtime.modules_of_instance(0x1000 * instances, &memory, &mut left);
            assert_eq!(modules, compared.then(Vec::new), "{instances}");
        }
        assert_eq!(left, 1);
    }

    /// What a frame says of itself and what its callee says of it have to agree.
    #[test]
    fn two_that_disagree_are_none() {
        let mut chain = Chain::default();
        chain.add(key(0), 0, 0x1000, Some(0x10));
        chain.told(key(0), Some(0x20));
        chain.add(key(1), 0, 0x1000, Some(0x30));
        let solved = chain.solve(&Wasmtime::default(), &Pieces::default());
        assert_eq!((solved.instance(key(0)), solved.instance(key(1))), (None, Some(0x30)));
        chain.told(key(0), Some(0x10));
        let solved = chain.solve(&Wasmtime::default(), &Pieces::default());
        assert_eq!(solved.instance(key(0)), Some(0x10));
    }

    #[test]
    fn frames_are_counted() {
        let mut chain = Chain::default();
        for n in 0..MAX_KNOWN_INSTANCES as u64 + 10 {
            chain.add(key(n), 0, 0x1000, Some(0x10));
        }
        assert_eq!(chain.nodes.len(), MAX_KNOWN_INSTANCES);
    }

    #[test]
    fn deciding_has_an_end() {
        assert_eq!(rounds(|| true), MAX_ELIMINATION_ROUNDS);
        // Two frames can only run in the first of many instances. The second list is so long that looking at all of
        // it twice is too much.
        let (mut chain, runtime, memory) = (Chain::default(), Wasmtime::default(), Pieces::default());
        let keys = [key(0), key(1)];
        keys.iter().for_each(|key| chain.add(*key, 7, 0x1000, None));
        for (others, expected) in
            [(MAX_INSTANCE_CHECKS / 2 - 1, [Some(1), Some(1)]), (MAX_INSTANCE_CHECKS / 2, [Some(1), None])]
        {
            let list = std::iter::once((1, vec![7])).chain(vec![(2, vec![]); others]).collect();
            let mut solver = Solver {
                runtime: &runtime,
                memory: &memory,
                nodes: &chain.nodes,
                fits: HashMap::new(),
                work: MAX_INSTANCE_CHECKS,
                comparisons: 0,
                out: Solved { lists: [(0x10, list)].into(), ..Solved::default() },
            };
            let mut known = [None; 2];
            solver.eliminate(0x10, &keys, &[None], &mut known);
            assert_eq!(known, expected);
        }
    }
}
