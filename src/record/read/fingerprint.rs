//! Fingerprints: what a file is, so that a change of it can be seen.

use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::open;

/// What a file is, so that a change can be seen: without reading it by size and time, surely by
/// its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Bytes.
    pub bytes: u64,
    /// Nanoseconds since 1970 when it was last changed; 0 where that is not known.
    pub modified_ns: u64,
    /// The blake3 hash of its bytes.
    pub hash: String,
}

/// The fingerprint of a file.
pub fn fingerprint(path: &Path) -> io::Result<Fingerprint> {
    let mut file = open(path)?;
    let metadata = file.metadata()?;
    let modified = metadata.modified().ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            bytes => hasher.update(&buffer[..bytes]),
        };
    }
    Ok(Fingerprint {
        bytes: metadata.len(),
        modified_ns: since.map_or(0, |since| since.as_nanos() as u64),
        hash: hasher.finalize().to_hex().to_string(),
    })
}
