//! Reads `BTreeMap`s with integer keys.
//!
//! The walk over a B-tree checks what must hold for it: a child is one level lower, a node has 1 to 11 keys, keys
//! ascend and stay between those of the parent, and the number of keys is the map's length. So a cycle or a wrong
//! layout cannot last: each step either uses up a key or is an error.

use super::memory::{Budgeted, StructureError, View};
use crate::limits;

/// Number of keys that one B-tree node can hold (`alloc::collections::btree::node::CAPACITY`).
const NODE_CAPACITY: u64 = 11;

/// Offsets of a `BTreeMap`'s fields in bytes, and its size.
#[derive(Clone, Copy)]
pub(crate) struct MapLayout {
    /// Size of the map itself.
    pub size: u64,
    /// Offset of the pointer to the root node.
    pub node: u64,
    /// Offset of the root's height.
    pub height: u64,
    /// Offset of the number of entries.
    pub len: u64,
}

/// Offsets and sizes, in bytes, in the nodes of one kind of B-tree.
pub(crate) struct Node {
    /// What errors call such a node.
    pub what: &'static str,
    /// Size of a leaf.
    pub size: u64,
    /// Offset of the values.
    pub vals: u64,
    /// Offset of the keys.
    pub keys: u64,
    /// Offset of the number of keys.
    pub len: u64,
    /// Offset of the edges in an inner node, which is also where a leaf ends.
    pub edges: u64,
    /// Size of a value.
    pub value_size: u64,
}

/// A node that was read: its bytes (with the edges, if it is not a leaf) and its keys.
struct NodeBytes {
    address: u64,
    bytes: Vec<u8>,
    keys: Vec<u64>,
}

type Visit<'v> = dyn FnMut(u64, View<'_>) -> Result<(), StructureError> + 'v;

/// The B-trees in a target's memory.
pub(crate) struct BTrees<'h, 'a> {
    /// The memory, and how much of it may be read.
    pub heap: &'h Budgeted<'a>,
    /// The layout of the maps.
    pub layout: MapLayout,
}

impl BTrees<'_, '_> {
    /// Address of the root node, height and length of the `BTreeMap` at offset `at` of `map`; `None` if the map is
    /// empty.
    fn root(&self, map: View<'_>, at: u64, max: usize) -> Result<Option<(u64, u64, u64)>, StructureError> {
        let map = map.inner("BTreeMap", at, self.layout.size)?;
        let len = map.u64(self.layout.len)?;
        let node = map.u64(self.layout.node)?;
        if len > max as u64 {
            return Err(map.bad("length", len));
        }
        if len == 0 {
            return Ok(None);
        }
        let height = map.u64(self.layout.height)?;
        if height > limits::MAX_TREE_HEIGHT {
            return Err(map.bad("height", height));
        }
        if node == 0 {
            return Err(map.bad("root", node));
        }
        Ok(Some((node, height, len)))
    }

    /// Reads one node and checks its keys: they must ascend and satisfy `low <= key <= high`.
    fn node(&self, node: &Node, address: u64, height: u64, low: u64, high: u64) -> Result<NodeBytes, StructureError> {
        let size = if height == 0 { node.size } else { node.edges + 8 * (NODE_CAPACITY + 1) };
        if !address.is_multiple_of(8) {
            return Err(StructureError::Implausible { what: node.what, address, field: "address", value: address });
        }
        let bytes = self.heap.read(node.what, address, size)?;
        let view = View::new(node.what, address, &bytes);
        let len = u64::from(view.u16(node.len)?);
        if len == 0 || len > NODE_CAPACITY {
            return Err(view.bad("number of keys", len));
        }
        let mut keys: Vec<u64> = Vec::with_capacity(len as usize);
        for i in 0..len {
            let key = view.u64(node.keys + 8 * i)?;
            if key < low || key > high || keys.last().is_some_and(|last| key <= *last) {
                return Err(view.bad("key", key));
            }
            keys.push(key);
        }
        Ok(NodeBytes { address, bytes, keys })
    }

    fn edge(&self, node: &Node, of: &NodeBytes, index: usize) -> Result<u64, StructureError> {
        View::new(node.what, of.address, &of.bytes).u64(node.edges + 8 * index as u64)
    }

    fn value<'b>(
        &self,
        node: &Node,
        of: &'b NodeBytes,
        index: usize,
        what: &'static str,
    ) -> Result<View<'b>, StructureError> {
        View::new(node.what, of.address, &of.bytes).inner(
            what,
            node.vals + node.value_size * index as u64,
            node.value_size,
        )
    }

    /// Visits every entry of the map at offset `at` in order.
    pub fn visit(
        &self,
        map: View<'_>,
        at: u64,
        node: &Node,
        max: usize,
        visit: &mut Visit<'_>,
    ) -> Result<(), StructureError> {
        let Some((root, height, len)) = self.root(map, at, max)? else { return Ok(()) };
        let mut left = len;
        self.subtree(node, root, height, 0, u64::MAX, &mut left, visit)?;
        match left {
            0 => Ok(()),
            missing => Err(map.bad("keys missing", missing)),
        }
    }

    #[allow(clippy::too_many_arguments)] // The bounds are the point: they make the recursion finite.
    fn subtree(
        &self,
        node: &Node,
        address: u64,
        height: u64,
        low: u64,
        high: u64,
        left: &mut u64,
        visit: &mut Visit<'_>,
    ) -> Result<(), StructureError> {
        let here = self.node(node, address, height, low, high)?;
        let mut low = low;
        for (i, &key) in here.keys.iter().enumerate() {
            if height > 0 {
                let below = key.checked_sub(1).ok_or(View::new(node.what, address, &here.bytes).bad("key", key))?;
                self.subtree(node, self.edge(node, &here, i)?, height - 1, low, below, left, visit)?;
            }
            let value = self.value(node, &here, i, "value")?;
            *left = left.checked_sub(1).ok_or(value.bad("more keys than the map's length", key))?;
            visit(key, value)?;
            low = key.saturating_add(1);
        }
        if height > 0 {
            self.subtree(node, self.edge(node, &here, here.keys.len())?, height - 1, low, high, left, visit)?;
        }
        Ok(())
    }

    /// The smallest key of the map at offset `at`.
    pub fn first(&self, map: View<'_>, at: u64, node: &Node) -> Result<Option<u64>, StructureError> {
        let Some((mut address, mut height, _)) = self.root(map, at, limits::MAX_FUNCTIONS)? else { return Ok(None) };
        let mut high = u64::MAX;
        loop {
            let here = self.node(node, address, height, 0, high)?;
            let Some(&key) = here.keys.first() else { return Ok(None) };
            if height == 0 {
                return Ok(Some(key));
            }
            high = key.saturating_sub(1);
            address = self.edge(node, &here, 0)?;
            height -= 1;
        }
    }

    /// The largest key of the map at offset `at`.
    pub fn last(&self, map: View<'_>, at: u64, node: &Node) -> Result<Option<u64>, StructureError> {
        let Some((mut address, mut height, _)) = self.root(map, at, limits::MAX_FUNCTIONS)? else { return Ok(None) };
        let mut low = 0;
        loop {
            let here = self.node(node, address, height, low, u64::MAX)?;
            let Some(&key) = here.keys.last() else { return Ok(None) };
            if height == 0 {
                return Ok(Some(key));
            }
            low = key.saturating_add(1);
            address = self.edge(node, &here, here.keys.len())?;
            height -= 1;
        }
    }
}
