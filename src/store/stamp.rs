//! What tells whether a file is as it was when its bytes were hashed: size, times and inode.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// A file by what the file system says of it. Whoever changes its bytes changes its `ctime`, which no
/// program can set back; other things change it too, so where a stamp differs the bytes decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its size in bytes.
    bytes: u64,
    /// When its bytes were changed, nanoseconds since 1970.
    mtime_ns: i64,
    /// When anything of it was changed, nanoseconds since 1970.
    ctime_ns: i64,
    /// Which file it is.
    inode: u64,
}

/// The stamps of the files of a directory, by name.
pub type Stamps = BTreeMap<String, Stamp>;

impl Stamp {
    /// The stamp of a file.
    pub fn of(path: &Path) -> io::Result<Stamp> {
        Ok(Stamp::of_metadata(&fs::metadata(path)?))
    }

    fn of_metadata(metadata: &Metadata) -> Stamp {
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Stamp {
            bytes: metadata.size(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }

    /// Those of the files in a directory, without what lies in directories below.
    pub fn of_dir(dir: &Path) -> io::Result<Stamps> {
        let mut stamps = Stamps::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = fs::metadata(entry.path())?;
            if metadata.is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                stamps.insert(name, Stamp::of_metadata(&metadata));
            }
        }
        Ok(stamps)
    }

    /// Whether the file was changed before another file was. A file system's clock has ticks: what
    /// was changed in the tick in which it was read may have been changed again since, unseen.
    pub fn is_before(&self, later: &Stamp) -> bool {
        self.ctime_ns < later.mtime_ns
    }
}
