//! Whether a file of rows is as it was, without reading it where that can be known.
//!
//! Size and time of change can be set back (`cp -p`, `rsync -t`, archives in which every file has one
//! time). The time of the last change of the inode cannot, and another file under the name has another
//! inode. Both are remembered of a file that had been still for a while when it was read: a clock tells
//! two changes within one of its ticks not apart.

use std::path::Path;

use super::world::source;
use crate::record::read::fingerprint;
use crate::store::manifest::{SourceFile, Stamp};

/// How long a file must not have been changed before a run begins for its stamp to tell of every change
/// after it: the coarsest clock of a file system ticks each 2 s.
const STILL_NS: i64 = 2_000_000_000;

/// What tells that a file is changed after a run that began at a time, milliseconds since 1970.
pub(super) fn stamp(path: &Path, began_ms: i64) -> Option<Stamp> {
    let stamp = stamp_of(&std::fs::metadata(path).ok()?)?;
    let began_ns = began_ms.checked_mul(1_000_000)?;
    (stamp.ctime_ns.checked_add(STILL_NS)? < began_ns).then_some(stamp)
}

#[cfg(unix)]
fn stamp_of(metadata: &std::fs::Metadata) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt as _;

    let ctime_ns =
        metadata.ctime().checked_mul(1_000_000_000)?.checked_add(metadata.ctime_nsec())?;
    Some(Stamp { ctime_ns, inode: metadata.ino() })
}

#[cfg(not(unix))]
fn stamp_of(_metadata: &std::fs::Metadata) -> Option<Stamp> {
    None
}

/// Whether a file is as it was: by size, times and inode, and where those cannot tell by its bytes.
pub(super) fn is_same(before: &SourceFile) -> bool {
    let path = Path::new(&before.path);
    let Ok(metadata) = std::fs::metadata(path) else { return false };
    let modified = metadata.modified().ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let mtime_ns = since.map_or(0, |since| since.as_nanos() as i64);
    let is_untouched = before.stamp.is_some() && before.stamp == stamp_of(&metadata);
    if metadata.len() == before.bytes && mtime_ns == before.mtime_ns && is_untouched {
        return true;
    }
    fingerprint(path).is_ok_and(|seen| source(path, &seen).blake3 == before.blake3)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// A file of some bytes, last modified at a moment that is always the same.
    fn write(path: &Path, bytes: &str) {
        fs::write(path, bytes).unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
    }

    /// What a run remembers that began so long after the file was written.
    fn remembered(path: &Path, later_ms: i64) -> SourceFile {
        let seen = source(path, &fingerprint(path).unwrap());
        let written = stamp_of(&fs::metadata(path).unwrap()).unwrap();
        SourceFile { stamp: stamp(path, written.ctime_ns / 1_000_000 + later_ms), ..seen }
    }

    #[test]
    fn another_text_of_the_same_size_and_time_is_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        for later_ms in [0, 60_000] {
            write(&path, "abc");
            let before = remembered(&path, later_ms);
            assert_eq!(before.stamp.is_some(), later_ms > 0);
            assert!(is_same(&before));
            // Another file under the name, and then the same one in place.
            let other = dir.path().join("other");
            write(&other, "xyz");
            fs::rename(&other, &path).unwrap();
            assert!(!is_same(&before), "another inode");
            write(&path, "abc");
            assert!(is_same(&before), "the bytes are what they were");
            let before = remembered(&path, 0);
            write(&path, "xyz");
            assert!(!is_same(&before), "within one tick of the clock");
        }
    }

    #[test]
    fn a_file_that_was_not_touched_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        write(&path, "abc");
        // Its hash is never looked at: it is that of nothing.
        let before = SourceFile { blake3: String::new(), ..remembered(&path, 60_000) };
        assert!(is_same(&before));
        assert!(!is_same(&SourceFile { stamp: None, ..before }), "without a stamp it is read");
    }
}
