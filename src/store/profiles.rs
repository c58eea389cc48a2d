//! Profiles of endpoints: what was learnt of each, a small file beside the memo.

use std::path::PathBuf;
use std::sync::Arc;

use super::disk::Disk;
use crate::model::openai::Profiles;

/// The largest profile that is read.
const BYTES_MAX: u64 = 1 << 20;

/// The profiles of a store. They save questions and decide no answer: a lost one is learnt again.
pub struct StoredProfiles {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
}

impl StoredProfiles {
    pub(super) fn new(dir: PathBuf, disk: Arc<dyn Disk>) -> StoredProfiles {
        StoredProfiles { dir, disk }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }
}

impl Profiles for StoredProfiles {
    fn load(&self, name: &str) -> Option<String> {
        let path = self.path(name);
        let file = std::fs::symlink_metadata(&path).ok()?;
        (file.is_file() && file.len() <= BYTES_MAX).then(|| std::fs::read_to_string(path).ok())?
    }

    fn save(&self, name: &str, text: &str) {
        let path = self.path(name);
        let disk = self.disk.as_ref();
        let saved = disk
            .create_dirs(&self.dir)
            .and_then(|()| disk.write_atomically(&path, text.as_bytes()));
        if let Err(error) = saved {
            tracing::warn!(
                "{}: the profile of an endpoint cannot be kept: {error}",
                path.display()
            );
        }
    }
}
