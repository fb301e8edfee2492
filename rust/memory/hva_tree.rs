// SPDX-License-Identifier: GPL-2.0-only

//! What the notifier asks: which slots do these user addresses back?
//!
//! Slots may share user memory, so the ranges overlap. The kernel's interval tree finds those that
//! meet a range in logarithmic time each, and so are they added and removed.

use crate::memory::slots::Place;
use core::iter::successors;
use core::ptr::NonNull;
use kernel::bindings::{self, interval_tree_node};
use kernel::ffi::c_ulong;
use kernel::prelude::*;

/// The place of a slot, to be found by its user addresses.
#[repr(C)] // The tree knows nodes by their first field.
pub(crate) struct HvaNode {
    node: interval_tree_node,
    place: Place,
}

/// The places of all slots.
///
/// # Invariants
///
/// The nodes in the tree are the first fields of backings that came from boxes and belong to it.
pub(crate) struct HvaTree {
    tree: bindings::rb_root_cached,
}

// SAFETY: What it points to is its own.
unsafe impl Send for HvaTree {}

impl HvaNode {
    /// For the slot at `place`; may sleep.
    pub(crate) fn new(place: Place) -> Result<KBox<Self>> {
        let hvas = place.hvas();
        let node = interval_tree_node {
            start: hvas.start as c_ulong,
            last: hvas.end.wrapping_sub(1) as c_ulong,
            ..Default::default()
        };
        Ok(KBox::new(Self { node, place }, GFP_KERNEL_ACCOUNT)?)
    }
}

impl HvaTree {
    /// Creates an empty tree.
    pub(crate) fn new() -> Self {
        let tree = Default::default();
        Self { tree }
    }

    /// Adds one.
    pub(crate) fn insert(&mut self, new: KBox<HvaNode>) {
        let node = KBox::into_raw(new).cast();
        // SAFETY: The node is in no tree, and its box is ours. INVARIANT: It came from a box.
        unsafe { bindings::interval_tree_insert(node, &mut self.tree) };
    }

    /// Removes the one of the slot at `place`.
    pub(crate) fn remove(&mut self, place: Place) -> Option<KBox<HvaNode>> {
        let hvas = place.hvas();
        // SAFETY: The tree is borrowed, so its nodes stay.
        let is_it = |node: &NonNull<_>| unsafe { place_of(*node) }.gpas() == place.gpas();
        let node = self.nodes(hvas.start, hvas.end).find(is_it)?;
        // SAFETY: It was found in the tree.
        Some(unsafe { self.take(node) })
    }

    /// The places that have any of the user addresses from `start` to `end`, which is above it, in
    /// the order in which they begin.
    pub(crate) fn between(&self, start: u64, end: u64) -> impl Iterator<Item = Place> + '_ {
        // SAFETY: The tree is borrowed, so its nodes stay.
        self.nodes(start, end).map(|node| unsafe { place_of(node) })
    }

    fn nodes(
        &self,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = NonNull<interval_tree_node>> + '_ {
        let (start, last) = (start as c_ulong, end.wrapping_sub(1) as c_ulong);
        let tree = (&raw const self.tree).cast_mut();
        // SAFETY: This only reads the tree.
        let first = unsafe { bindings::interval_tree_iter_first(tree, start, last) };
        successors(NonNull::new(first), move |node| {
            // SAFETY: Likewise; the node is in the tree, which does not change while it is
            // borrowed.
            NonNull::new(unsafe { bindings::interval_tree_iter_next(node.as_ptr(), start, last) })
        })
    }

    /// Removes a node.
    ///
    /// # Safety
    ///
    /// It must be in the tree.
    unsafe fn take(&mut self, node: NonNull<interval_tree_node>) -> KBox<HvaNode> {
        // SAFETY: As promised by the caller; so by the invariant it is the beginning of a backing
        // from a box, which has no other owner from now on.
        unsafe {
            bindings::interval_tree_remove(node.as_ptr(), &mut self.tree);
            KBox::from_raw(node.cast().as_ptr())
        }
    }
}

impl Drop for HvaTree {
    fn drop(&mut self) {
        loop {
            let Some(node) = self.nodes(0, u64::MAX).next() else {
                return;
            };
            // SAFETY: It was found in the tree.
            drop(unsafe { self.take(node) });
        }
    }
}

/// The place of the backing that this node begins.
///
/// # Safety
///
/// It must be in the tree of [`HvaTree`] that are borrowed.
unsafe fn place_of(node: NonNull<interval_tree_node>) -> Place {
    // SAFETY: As promised by the caller; the place does not change.
    unsafe { (*node.cast::<HvaNode>().as_ptr()).place }
}
