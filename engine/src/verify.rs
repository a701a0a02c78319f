//! Checks a whole store: every page reachable or free exactly once, every checksum, every order.

use crate::batch::TreeInfo;
use crate::catalog::Tree;
use crate::core::Core;
use crate::error::{Damage, Result};
use crate::ids::UNIT_BYTES;
use crate::page::leaf::BodyAt;
use crate::space::{Extent, FreeSpace};
use crate::tree::{self, PageSource, Reached};

/// What was checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Trees.
    pub trees: u64,
    /// Pages, branches and leaves.
    pub pages: u64,
    /// Overflow extents, read whole.
    pub extents: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Checks every tree as of its last checkpoint. `progress` is told each tree before it is read.
/// Checkpoints of a tree wait while it is checked.
pub(crate) fn verify(core: &Core, progress: &mut dyn FnMut(&str, &TreeInfo)) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    for space in core.catalog.spaces() {
        let info = space.info();
        for (tree, tree_info) in space.trees.iter().zip(&info.trees) {
            progress(&space.name, tree_info);
            if core.options.read_only && tree.emptied {
                // What its file holds is nobody's, and stays as it is.
                report.trees += 1;
                continue;
            }
            verify_tree(tree, &mut report)?;
        }
    }
    Ok(report)
}

fn verify_tree(tree: &Tree, report: &mut VerifyReport) -> Result<()> {
    let room = tree.room.lock();
    let published = tree.published();
    let file = &*tree.file;
    file.open()?;
    let mut used = vec![Extent { unit: 0, units: 1 }];
    let damaged = |ptr: crate::ids::PagePtr, damage| file.damaged(ptr.unit, damage);
    let shape = tree::reach(file, published.root, &damaged, &mut |reached| {
        match reached {
            Reached::Page(extent) | Reached::Overflow(extent) => used.push(extent),
            Reached::Entry(entry) => {
                if let BodyAt::There(extent) = entry.body {
                    file.extent(extent)?;
                }
            }
        }
        Ok(())
    })?;
    used.extend(room.pending.extents());
    used.extend(&room.building);
    if room.free.is_known() {
        used.extend(room.free.extents());
    }
    let mut accounted = FreeSpace::unknown(room.free.end());
    let twice = |extent: Extent| {
        file.damaged(extent.unit, Damage::Malformed { what: "a unit is used twice, or is used and free" })
    };
    accounted.learn(&mut used).map_err(twice)?;
    if room.free.is_known()
        && let Some(lost) = accounted.extents().next()
    {
        return Err(file.damaged(lost.unit, Damage::Malformed { what: "a unit is neither reached nor free" }));
    }
    report.trees += 1;
    report.pages += shape.leaves + shape.branches;
    report.extents += shape.extents;
    report.entries += shape.entries;
    report.bytes += u64::from(room.free.end()) * UNIT_BYTES as u64;
    Ok(())
}
