//! Looking at every byte of a store: what is not as it was written, and putting in order what can be
//! made again of what is there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::disk::{aside, parent};
use super::error::{At, Result, StoreError};
use super::manifest::Part;
use super::memo::Memo;
use super::snapshot::{MANIFEST, Snapshot};
use super::{Store, table};

/// What a look at a store found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// What was looked at.
    pub checked: Checked,
    /// What is not as it was written, in the order in which it was found.
    pub faults: Vec<Fault>,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Snapshots of all pipelines.
    pub snapshots: u64,
    /// Files of tables and of ids; one that several snapshots share counts once.
    pub files: u64,
    /// Models.
    pub checkpoints: u64,
    /// Records of trainings.
    pub trainings: u64,
    /// Segments and archives of the memo.
    pub calls: u64,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// What it is: `manifest`, `table`, `ids`, `checkpoint`, `training` or `calls`.
    pub kind: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What does not hold.
    pub what: String,
    /// Whether it was put in order.
    pub repaired: bool,
    /// What can be done about it.
    pub help: String,
}

/// What was found of files so far, by their inodes and by their hashes.
#[derive(Default)]
struct Files {
    hashes: BTreeMap<(u64, u64), String>,
    sound: BTreeMap<String, PathBuf>,
}

/// A file of a table that is not as it was written.
struct Broken {
    fault: Fault,
    blake3: String,
}

impl Verified {
    /// Whether all is as it was written, or was put in order.
    pub fn is_whole(&self) -> bool {
        self.faults.iter().all(|fault| fault.repaired)
    }
}

impl Store {
    /// Looks at every byte of the store: snapshots, models, records of trainings, the memo. Nothing
    /// that is remembered of a file stands for its bytes. To `repair`, the caller holds the lock: then
    /// what other files have is restored, and what is lost is set aside.
    pub fn verify(&self, repair: bool) -> Result<Verified> {
        let mut found = Verified::default();
        self.verify_pipelines(repair, &mut found)?;
        self.verify_checkpoints(repair, &mut found)?;
        self.verify_memo(repair, &mut found)?;
        Ok(found)
    }

    fn verify_pipelines(&self, repair: bool, found: &mut Verified) -> Result<()> {
        let (mut files, mut broken) = (Files::default(), Vec::new());
        for pipeline in self.pipelines()? {
            let snapshots = self.dir.join(&pipeline).join("snapshots");
            let dirs = list(&snapshots)?;
            let dirs = dirs.into_iter().filter(|dir| dir.join(MANIFEST).exists());
            let dirs: Vec<PathBuf> = dirs.filter(|dir| number(dir).is_some()).collect();
            for (at, dir) in dirs.iter().enumerate() {
                found.checked.snapshots += 1;
                let is_last = at + 1 == dirs.len();
                match Snapshot::open(dir) {
                    Ok(Some(snapshot)) => {
                        files.look(&snapshot, is_last, found, &mut broken)?;
                        if is_last {
                            self.verify_models(&snapshot, found);
                        }
                    }
                    Ok(None) => {}
                    Err(error) => found.faults.push(fault("manifest", &dir.join(MANIFEST), error)?),
                }
            }
        }
        for Broken { mut fault, blake3 } in broken {
            if repair && let Some(sound) = files.sound.get(&blake3) {
                self.copy(sound, &fault.path)?;
                fault.repaired = true;
                "it was made again of a file with the same bytes".clone_into(&mut fault.help);
            }
            found.faults.push(fault);
        }
        if repair { self.mend_ids(found) } else { Ok(()) }
    }

    /// Makes ids again of the rows that they are about.
    fn mend_ids(&self, found: &mut Verified) -> Result<()> {
        let broken = found.faults.iter_mut().filter(|fault| fault.kind == "ids" && !fault.repaired);
        for fault in broken {
            // <pipeline>/snapshots/000017/ids/<node>/<part>.ids
            let Some(dir) = fault.path.ancestors().nth(3) else { continue };
            let Ok(Some(snapshot)) = Snapshot::open(dir) else { continue };
            let Some(bytes) = snapshot.ids_file(&fault.path) else { continue };
            let temp = aside(&fault.path);
            self.disk.create_dirs(parent(&temp)).at("make", &temp)?;
            self.disk.remove_if_there(&temp).at("remove", &temp)?;
            self.disk.write_new(&temp, &bytes).at("write", &temp)?;
            self.disk.protect(&temp).at("protect", &temp)?;
            self.disk.rename(&temp, &fault.path).at("rename", &temp)?;
            self.disk.sync_dir(parent(&temp)).at("sync", &temp)?;
            fault.repaired = true;
            "it was made again of the rows".clone_into(&mut fault.help);
        }
        Ok(())
    }

    /// Gives a file that is as it was written a name in place of one that is not.
    fn copy(&self, sound: &Path, to: &Path) -> Result<()> {
        let temp = aside(to);
        self.disk.create_dirs(parent(to)).at("make", to)?;
        self.disk.remove_if_there(&temp).at("remove", &temp)?;
        self.disk.link(sound, &temp).at("link", sound)?;
        self.disk.rename(&temp, to).at("rename", &temp)?;
        self.disk.sync_dir(parent(to)).at("sync", to)
    }

    /// The models that the last snapshot names are there.
    fn verify_models(&self, snapshot: &Snapshot, found: &mut Verified) {
        let checkpoints = self.checkpoints();
        for (name, entry) in &snapshot.manifest().nodes {
            let weights = entry.node.checkpoint.as_ref().map(|checkpoint| checkpoint.weights);
            for weights in weights.into_iter().filter(|weights| !checkpoints.exists(*weights)) {
                found.faults.push(Fault {
                    kind: "checkpoint",
                    path: checkpoints.dir(weights),
                    what: format!("the model of node \"{name}\" is not there"),
                    repaired: false,
                    help:
                        "run its pipeline again, which trains it again, or restore it from a copy"
                            .to_owned(),
                });
            }
        }
    }

    fn verify_checkpoints(&self, repair: bool, found: &mut Verified) -> Result<()> {
        let checkpoints = self.checkpoints();
        for weights in checkpoints.all()? {
            found.checked.checkpoints += 1;
            if let Err(error) = checkpoints.verify_bytes(weights) {
                found.faults.push(fault("checkpoint", &checkpoints.dir(weights), error)?);
            }
        }
        for recipe in checkpoints.recipes()? {
            found.checked.trainings += 1;
            let record = checkpoints.get_training::<Value>(&recipe).err();
            let dataset = checkpoints.get_dataset(&recipe).err();
            for error in record.into_iter().chain(dataset) {
                let mut fault = fault("training", &self.dir.join("trainings"), error)?;
                if repair {
                    let kept = checkpoints.set_aside(&fault.path)?;
                    fault.help = format!(
                        "it is kept as \"{}\": a run that needs this training does it again",
                        kept.display()
                    );
                }
                found.faults.push(fault);
            }
        }
        Ok(())
    }

    fn verify_memo(&self, repair: bool, found: &mut Verified) -> Result<()> {
        let files = match Memo::look(&self.calls()) {
            Err(error) => {
                found.faults.push(fault("calls", &self.calls(), error)?);
                return Ok(());
            }
            Ok(files) => files,
        };
        let is_damaged = files.iter().any(|(_, lost)| lost.is_some());
        if repair && is_damaged {
            // Whoever opens it for writing sets damaged files aside.
            drop(self.memo()?);
        }
        for (path, lost) in files {
            found.checked.calls += 1;
            found.faults.extend(lost.map(|lost| Fault {
                kind: "calls",
                path,
                what: format!("{}; {}", lost.what, lost.counted()),
                repaired: false,
                help: "what is whole stays, the file is kept in calls/damaged/, and a run asks again \
                       for the lost calls that it needs"
                    .to_owned(),
            }));
        }
        Ok(())
    }

    /// The pipelines that have snapshots, sorted.
    fn pipelines(&self) -> Result<Vec<String>> {
        let dirs = list(&self.dir)?.into_iter();
        let dirs = dirs.filter(|dir| dir.join("snapshots").is_dir());
        Ok(dirs.filter_map(|dir| Some(dir.file_name()?.to_str()?.to_owned())).collect())
    }
}

impl Files {
    /// Hashes the files of a snapshot.
    fn look(
        &mut self,
        snapshot: &Snapshot,
        is_last: bool,
        found: &mut Verified,
        broken: &mut Vec<Broken>,
    ) -> Result<()> {
        for (node, entry) in &snapshot.manifest().nodes {
            let place = snapshot.place(node);
            for part in &entry.table.parts {
                let hashes = [&part.blake3, &part.ids_blake3];
                for ((path, expected), kind) in
                    place.files(part).into_iter().zip(hashes).zip(["table", "ids"])
                {
                    let what = match self.hash(&path, &mut found.checked.files)? {
                        Some(is) if is == *expected => {
                            self.sound.entry(is).or_insert(path);
                            continue;
                        }
                        Some(_) => "its bytes have another hash",
                        None => "it is not there",
                    };
                    let (what, help) = (what.to_owned(), help_of(is_last).to_owned());
                    let fault = Fault { kind, path, what, repaired: false, help };
                    broken.push(Broken { fault, blake3: expected.clone() });
                }
            }
        }
        Ok(())
    }

    /// The blake3 of a file; nothing where there is none.
    fn hash(&mut self, path: &Path, count: &mut u64) -> Result<Option<String>> {
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            metadata => metadata.at("read", path)?,
        };
        // Names with the same inode are names of the same bytes.
        let file = (metadata.dev(), metadata.ino());
        if let Some(hash) = self.hashes.get(&file) {
            return Ok(Some(hash.clone()));
        }
        *count += 1;
        let hash = table::hash(path).at("read", path)?;
        self.hashes.insert(file, hash.clone());
        Ok(Some(hash))
    }
}

fn help_of(is_last: bool) -> &'static str {
    if is_last {
        "run its pipeline again, which makes it again from the memo"
    } else {
        "restore it from a copy, or remove this snapshot if nobody needs it"
    }
}

/// An error about damage as a fault; another error ends the look.
fn fault(kind: &'static str, path: &Path, error: StoreError) -> Result<Fault> {
    let (path, what, help) = match error {
        StoreError::Corrupt { path, what, help } => (path, what, help),
        StoreError::Format { .. } => {
            let help = "use the amend that wrote it".to_owned();
            (path.to_owned(), error.to_string(), help)
        }
        error => return Err(error),
    };
    Ok(Fault { kind, path, what, repaired: false, help })
}

/// What is in a directory, sorted; nothing where there is none.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", dir)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.at("list", dir)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The number that the name of a snapshot's directory is.
fn number(dir: &Path) -> Option<u64> {
    dir.file_name()?.to_str()?.parse().ok()
}

impl Snapshot {
    /// The bytes of a file of ids, of the rows that it is about; nothing where those are damaged too.
    fn ids_file(&self, path: &Path) -> Option<Vec<u8>> {
        let nodes = self.manifest().nodes.iter();
        let parts = nodes.flat_map(|(node, entry)| {
            entry.table.parts.iter().map(move |part: &Part| (node.as_str(), part))
        });
        let mut of_path = parts.filter(|(node, part)| self.place(node).files(part)[1] == path);
        let (node, part) = of_path.next()?;
        Some(table::ids_bytes(&self.ids_of_rows(node, part)?))
    }
}
