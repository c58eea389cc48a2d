//! A disk under test from which the power can be taken: what was not synced may be gone.
//!
//! It changes real files, so that readers see what a running process sees, and keeps a record of
//! the changes. [`CrashDisk::crash`] makes another directory of what could be left if the power had
//! gone after any of them: of each directory the names when it was last synced and some of the changes
//! since, in order or not, of each file the bytes when it was last synced and some of those added since, or
//! zeros in their place.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::disk::{Disk, LocalDisk, Output};
use crate::record::KeyHasher;

/// A change, or the word that something is safe.
#[derive(Clone, Debug)]
enum Event {
    CreateDir(PathBuf),
    Create(PathBuf),
    Append(PathBuf, Vec<u8>),
    Cut(PathBuf, usize),
    /// The bytes of a file are these and safe, whoever wrote it.
    SyncFile(PathBuf, Vec<u8>),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(PathBuf),
    Acknowledge(u64),
}

/// The disk; clones are the same disk.
#[derive(Clone, Debug)]
pub(super) struct CrashDisk {
    root: PathBuf,
    events: Arc<Mutex<Vec<Event>>>,
}

impl CrashDisk {
    /// A disk of a directory; what is in it is safe.
    pub(super) fn new(root: &Path) -> CrashDisk {
        let disk = CrashDisk { root: root.to_owned(), events: Arc::default() };
        disk.load(root);
        disk
    }

    fn load(&self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_symlink() {
                self.record(Event::Symlink(fs::read_link(&path).unwrap(), path));
            } else if kind.is_dir() {
                self.record(Event::CreateDir(path.clone()));
                self.load(&path);
            } else {
                self.record(Event::SyncFile(path.clone(), fs::read(path).unwrap()));
            }
        }
        self.record(Event::SyncDir(dir.to_owned()));
    }

    fn record(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }

    /// Says that the caller was told that this is safe.
    pub(super) fn acknowledge(&self, what: u64) {
        self.record(Event::Acknowledge(what));
    }

    /// How many events there were.
    pub(super) fn len(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    /// Writes to an empty directory what is left if the power goes after so many events; the seed
    /// chooses what of the unsynced is. Gives what was acknowledged by then.
    pub(super) fn crash(&self, after: usize, seed: u64, to: &Path) -> Vec<u64> {
        let mut model = Model::new(&self.root);
        let mut acknowledged = Vec::new();
        for event in &self.events.lock().unwrap()[..after] {
            match event {
                Event::Acknowledge(what) => acknowledged.push(*what),
                event => model.apply(event),
            }
        }
        model.survive(0, to, &mut Chance { seed, drawn: 0 });
        acknowledged
    }
}

impl Disk for CrashDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if !path.is_dir() {
            LocalDisk.create_dir(path)?;
            self.record(Event::CreateDir(path.to_owned()));
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        let output = LocalDisk.create(path)?;
        self.record(Event::Create(path.to_owned()));
        Ok(Box::new(CrashOutput { disk: self.clone(), path: path.to_owned(), output }))
    }

    fn reopen(&self, path: &Path, len: u64) -> io::Result<Box<dyn Output>> {
        let output = LocalDisk.reopen(path, len)?;
        self.record(Event::Cut(path.to_owned(), len as usize));
        Ok(Box::new(CrashOutput { disk: self.clone(), path: path.to_owned(), output }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalDisk.rename(from, to)?;
        self.record(Event::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalDisk.link(from, to)?;
        self.record(Event::Link(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn symlink(&self, target: &Path, link: &Path) -> io::Result<()> {
        LocalDisk.symlink(target, link)?;
        self.record(Event::Symlink(target.to_owned(), link.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove(path)?;
        self.record(Event::Remove(path.to_owned()));
        Ok(())
    }

    fn protect(&self, path: &Path) -> io::Result<()> {
        LocalDisk.protect(path)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.record(Event::SyncFile(path.to_owned(), fs::read(path)?));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.record(Event::SyncDir(path.to_owned()));
        Ok(())
    }
}

struct CrashOutput {
    disk: CrashDisk,
    path: PathBuf,
    output: Box<dyn Output>,
}

impl Output for CrashOutput {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.append(bytes)?;
        self.disk.record(Event::Append(self.path.clone(), bytes.to_vec()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.sync_file(&self.path)
    }
}

/// Choices that a seed makes.
struct Chance {
    seed: u64,
    drawn: u64,
}

impl Chance {
    /// A number up to `most`.
    fn up_to(&mut self, most: usize) -> usize {
        self.drawn += 1;
        let hash = KeyHasher::new("amend/test/1").u64(self.seed).u64(self.drawn).id();
        (hash.low() % (most as u64 + 1)) as usize
    }
}

/// The file system as the events made it, with what of it is safe.
struct Model {
    root: PathBuf,
    nodes: Vec<Node>,
}

enum Node {
    File { bytes: Vec<u8>, synced: Vec<u8> },
    Symlink(PathBuf),
    Dir(Dir),
}

#[derive(Default)]
struct Dir {
    names: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    /// The changes since the last sync: names that got another node, or none.
    since: Vec<Change>,
}

type Change = Vec<(String, Option<usize>)>;

impl Dir {
    fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
        for (name, node) in change {
            match node {
                Some(node) => names.insert(name.clone(), *node),
                None => names.remove(name),
            };
        }
    }

    /// The names that survive: the first changes, or any.
    fn survive(&self, chance: &mut Chance) -> BTreeMap<String, usize> {
        let (mut names, first) = (self.synced.clone(), chance.up_to(self.since.len()));
        let in_order = chance.up_to(1) == 0;
        for (at, change) in self.since.iter().enumerate() {
            if if in_order { at < first } else { chance.up_to(1) == 0 } {
                Dir::apply(&mut names, change);
            }
        }
        names
    }
}

impl Model {
    fn new(root: &Path) -> Model {
        Model { root: root.to_owned(), nodes: vec![Node::Dir(Dir::default())] }
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::CreateDir(path) => self.add(path, Node::Dir(Dir::default())),
            Event::Create(path) => {
                self.add(path, Node::File { bytes: Vec::new(), synced: Vec::new() });
            }
            Event::Append(path, more) => self.file(path).0.extend(more),
            Event::Cut(path, len) => self.file(path).0.truncate(*len),
            Event::SyncFile(path, all) => match self.find(path) {
                Some(_) => {
                    let (bytes, synced) = self.file(path);
                    assert_eq!(bytes, all, "the file is as the disk wrote it");
                    synced.clone_from(all);
                }
                None => self.add(path, Node::File { bytes: all.clone(), synced: all.clone() }),
            },
            Event::Rename(from, to) => {
                assert_eq!(from.parent(), to.parent(), "renamed within a directory");
                let node = self.find(from).expect("what is renamed is there");
                self.change(to, vec![(name(from), None), (name(to), Some(node))]);
            }
            Event::Link(from, to) => {
                let node = self.find(from).expect("what is linked is there");
                self.change(to, vec![(name(to), Some(node))]);
            }
            Event::Symlink(target, link) => self.add(link, Node::Symlink(target.clone())),
            Event::Remove(path) => self.change(path, vec![(name(path), None)]),
            Event::SyncDir(path) => {
                let dir = self.find(path).expect("a directory that is synced is there");
                let Node::Dir(dir) = &mut self.nodes[dir] else { panic!("{path:?} is a file") };
                dir.synced = dir.names.clone();
                dir.since.clear();
            }
            Event::Acknowledge(_) => {}
        }
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let path = path.strip_prefix(&self.root).expect("a path of the store");
        let mut at = 0;
        for name in path {
            let Node::Dir(dir) = &self.nodes[at] else { return None };
            at = *dir.names.get(name.to_str().unwrap())?;
        }
        Some(at)
    }

    fn file(&mut self, path: &Path) -> (&mut Vec<u8>, &mut Vec<u8>) {
        let at = self.find(path).expect("a file that is written is there");
        match &mut self.nodes[at] {
            Node::File { bytes, synced } => (bytes, synced),
            _ => panic!("{path:?} is no file"),
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        let at = self.nodes.len() - 1;
        self.change(path, vec![(name(path), Some(at))]);
    }

    fn change(&mut self, path: &Path, change: Change) {
        let parent = self.find(path.parent().unwrap()).expect("its directory is there");
        let Node::Dir(dir) = &mut self.nodes[parent] else { panic!("{path:?} is in a file") };
        Dir::apply(&mut dir.names, &change);
        dir.since.push(change);
    }

    /// Writes what survives of a node.
    fn survive(&self, node: usize, to: &Path, chance: &mut Chance) {
        match &self.nodes[node] {
            Node::Symlink(target) => LocalDisk.symlink(target, to).unwrap(),
            Node::File { bytes, synced } => {
                let survived = if bytes.starts_with(synced) {
                    let mut survived =
                        bytes[..synced.len() + chance.up_to(bytes.len() - synced.len())].to_vec();
                    if chance.up_to(3) == 0 {
                        survived[synced.len()..].fill(0);
                    }
                    survived
                } else if chance.up_to(1) == 0 {
                    bytes.clone()
                } else {
                    synced.clone()
                };
                LocalDisk.create(to).unwrap().append(&survived).unwrap();
            }
            Node::Dir(dir) => {
                LocalDisk.create_dir(to).unwrap();
                for (name, node) in dir.survive(chance) {
                    self.survive(node, &to.join(name), chance);
                }
            }
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

mod tests;
