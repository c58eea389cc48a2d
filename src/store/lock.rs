//! The lock: one run at a time writes a store. Readers never take it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::{io, process};

use arrow::temporal_conversions::timestamp_us_to_datetime;
use serde::{Deserialize, Serialize};

use super::error::{At, Result, StoreError};

/// Held while a run writes the store; the system takes it back when the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Who holds the lock, as written in it.
#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
    pipeline: String,
    started_at_us: i64,
}

impl Lock {
    /// Takes the lock for a run of a pipeline that started at a time, microseconds since 1970.
    /// Does not wait: [`StoreError::Locked`] names who holds it. A symbolic link in its place is
    /// refused: the file that it names would be emptied.
    pub(super) fn take(store: &Path, pipeline: &str, started_at_us: i64) -> Result<Lock> {
        let path = store.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&path).map_err(|error| refused(&path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = holder(&mut file);
                return Err(StoreError::Locked { path: store.to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(error).at("lock", &path),
        }
        let pipeline = pipeline.to_owned();
        let holder = Holder { pid: process::id(), pipeline, started_at_us };
        let text = serde_json::to_string(&holder).expect("a holder has keys of text");
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).at("write", &path)?;
        Ok(Lock { file })
    }
}

impl Drop for Lock {
    /// Empties the file, so that it names nobody who is gone, and lets go of the lock.
    fn drop(&mut self) {
        drop(self.file.set_len(0).and_then(|()| self.file.unlock()));
    }
}

fn refused(path: &Path, error: io::Error) -> StoreError {
    if error.raw_os_error() == Some(libc::ELOOP) {
        let help = "remove the link: amend makes the file anew";
        return StoreError::corrupt(path, "it is a symbolic link", help);
    }
    StoreError::io("open", path, error)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let holder = read.ok().and_then(|_| serde_json::from_str::<Holder>(&text).ok());
    let Some(Holder { pid, pipeline, started_at_us }) = holder else {
        return "another process".to_owned();
    };
    let since = timestamp_us_to_datetime(started_at_us)
        .map_or_else(String::new, |at| format!(" since {} UTC", at.format("%Y-%m-%d %H:%M:%S")));
    format!("process {pid}, which runs pipeline \"{pipeline}\"{since}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_told_who_holds_the_store() {
        let dir = tempfile::TempDir::new().unwrap();
        let lock = Lock::take(dir.path(), "cai", 1_700_000_000_000_000).unwrap();
        let error = Lock::take(dir.path(), "other", 0).unwrap_err().to_string();
        let pid = process::id();
        assert_eq!(
            error,
            format!(
                "the store \"{}\" is in use by process {pid}, which runs pipeline \"cai\" since \
                 2023-11-14 22:13:20 UTC; wait for it to end, or name another --store",
                dir.path().display()
            )
        );
        drop(lock);
        Lock::take(dir.path(), "other", 0).unwrap();
    }

    #[test]
    fn a_lock_that_is_a_link_is_refused_and_what_it_names_keeps_its_bytes() {
        let dir = tempfile::TempDir::new().unwrap();
        let precious = dir.path().join("thesis.txt");
        std::fs::write(&precious, "years of work").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join("lock")).unwrap();
        let error = Lock::take(dir.path(), "cai", 0).unwrap_err().to_string();
        assert!(error.contains("it is a symbolic link; remove the link"), "{error}");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "years of work");
    }
}
