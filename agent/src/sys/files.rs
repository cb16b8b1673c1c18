//! Files that may change under us.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells one content of a file from the next without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp(Option<(u64, u64, u64, i64, i64)>);

impl Stamp {
    /// Of the file now; symbolic links are followed, as Kubernetes mounts them.
    pub(crate) fn of(path: &Path) -> Self {
        let stamp = |m: fs::Metadata| (m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec());
        Self(fs::metadata(path).ok().map(stamp))
    }
}
