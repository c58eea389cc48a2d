//! `disk`: the few ways in which the store changes files, so that a test can take the power away.
//!
//! Only changes go through the trait; readers open files directly. What the store relies on, and
//! what a test's disk may take away, is: the bytes of a file are safe once it is synced, a name in a
//! directory is safe once the directory is synced, and nothing else is.
//!
//! Local files use `std::fs` and not `object_store`: its local backend neither syncs nor appends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::{env, fmt, process, thread};

/// A place whose files can be changed.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes a directory; its parent exists, and so may the directory.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a file that must not exist.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>>;
    /// Opens a file to add to its end, after cutting it to a length.
    fn reopen(&self, path: &Path, len: u64) -> io::Result<Box<dyn Output>>;
    /// Gives a file or a directory another name, in place of what had that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must not exist: the one operation that decides a race.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes a symbolic link.
    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()>;
    /// Removes a file, a symbolic link, or a directory with all that is in it.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Forbids writing to a file.
    fn protect(&self, path: &Path) -> io::Result<()>;
    /// Makes the bytes of a file safe that somebody else wrote.
    fn sync_file(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory safe.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub trait Output: Send {
    /// Adds bytes to the end.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes the bytes safe.
    fn sync(&mut self) -> io::Result<()>;
}

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(OpenOptions::new().append(true).create_new(true).open(path)?))
    }

    fn reopen(&self, path: &Path, len: u64) -> io::Result<Box<dyn Output>> {
        // What a symbolic link names is no file of the store, and is not to be cut.
        let flags = libc::O_NOFOLLOW;
        let file = OpenOptions::new().append(true).custom_flags(flags).open(path)?;
        file.set_len(len)?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, link)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if fs::symlink_metadata(path)?.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        }
    }

    fn protect(&self, path: &Path) -> io::Result<()> {
        let mut permissions = fs::metadata(path)?.permissions();
        permissions.set_readonly(true);
        fs::set_permissions(path, permissions)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl Output for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl dyn Disk + '_ {
    /// Makes a directory and those above it that are missing, each safe when it returns.
    pub fn create_dirs(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dirs(parent)?;
        }
        self.create_dir(path)?;
        self.sync_dir(parent.unwrap_or(Path::new(".")))
    }

    /// Writes a new file whose bytes are safe when it returns; its name is not yet.
    pub fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(path)?;
        file.append(bytes)?;
        file.sync()
    }

    /// Makes the bytes of files and the names in directories safe, in no order: side by side, which
    /// the system makes one commit of its journal where it can.
    pub fn sync_all(&self, files: &[PathBuf], dirs: &[PathBuf]) -> io::Result<()> {
        const THREADS: usize = 16;
        let work: Vec<(&PathBuf, bool)> = files
            .iter()
            .map(|file| (file, false))
            .chain(dirs.iter().map(|dir| (dir, true)))
            .collect();
        let sync = |share: &[(&PathBuf, bool)]| {
            share.iter().try_for_each(|(path, is_dir)| {
                if *is_dir { self.sync_dir(path) } else { self.sync_file(path) }
            })
        };
        thread::scope(|scope| {
            let shares = work.chunks(work.len().div_ceil(THREADS).max(1));
            let threads: Vec<_> = shares.map(|share| scope.spawn(move || sync(share))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("syncing does not panic"))
        })
    }

    /// Writes a file as a whole or not at all, in place of what had its name, safe when it returns.
    pub fn write_atomically(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let aside = aside(path);
        self.remove_if_there(&aside)?;
        self.write_new(&aside, bytes)?;
        self.rename(&aside, path)?;
        self.sync_dir(parent(path))
    }

    /// Writes a file in place of what had its name. It is not safe when it returns, and may be torn
    /// after a crash: it is for what is only ever a short cut.
    pub fn note(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let aside = aside(path);
        self.remove_if_there(&aside)?;
        self.create(&aside)?.append(bytes)?;
        self.rename(&aside, path)
    }

    /// Points a symbolic link elsewhere in one step; safe when the directory is synced.
    pub fn point(&self, link: &Path, target: &Path) -> io::Result<()> {
        let aside = aside(link);
        self.remove_if_there(&aside)?;
        self.symlink(target, &aside)?;
        self.rename(&aside, link)
    }

    /// Removes what may not be there.
    pub fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        match self.remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// The name under which a file is written before it gets its own: `.tmp-` before the name.
pub(crate) fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().expect("a file of the store has a name").to_string_lossy();
    path.with_file_name(format!("{ASIDE}{name}"))
}

/// How the names of unfinished files begin: whoever opens the store for writing removes them.
pub(crate) const ASIDE: &str = ".tmp-";

/// The directory of a file.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().expect("a file of the store is in a directory")
}

/// Ends the process here when a test asks for it, as if it was killed.
///
/// Tests that kill a run at a defined point set `AMEND_CRASH_AT` to the point's name, such as
/// `snapshot:before_manifest`. Builds without debug assertions do not look.
pub(crate) fn crash_point(name: &str) {
    if cfg!(debug_assertions) && env::var_os("AMEND_CRASH_AT").is_some_and(|at| at == name) {
        process::abort();
    }
}
