//! Versions of a file.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// Tells one version of a file from another, and the younger from the older.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// A file that becomes readable changes only here.
    status_changed: (i64, i64),
    size: u64,
    inode: u64,
}

impl Stamp {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            modified: (meta.mtime(), meta.mtime_nsec()),
            status_changed: (meta.ctime(), meta.ctime_nsec()),
            size: meta.size(),
            inode: meta.ino(),
        }
    }

    /// Whether the file was not written to in between. Its status also changes when another takes its name.
    pub(super) fn is_as_long_and_old_as(&self, other: &Self) -> bool {
        (self.modified, self.size, self.inode) == (other.modified, other.size, other.inode)
    }

    pub(super) fn is_younger_than(&self, other: &Self) -> bool {
        self.modified > other.modified
    }
}
