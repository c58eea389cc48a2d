//! Models in Hugging Face layout, a directory each, named by what they are: their weights id.
//! Beside them, what each training gave.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::disk::{ASIDE, Disk, crash_point};
use super::error::{At, Result, StoreError};
use super::seal;
use super::sound::{self, Known};
use crate::record::{CallKey, Id};

/// What begins a file of the rows that a recipe was trained on; its length tells it from what
/// earlier versions wrote, which has neither it nor a checksum.
const ROWS: &[u8; 16] = b"amend/rows/2\0\0\0\0";
/// The bytes of a checksum.
const SUM: usize = 32;

/// The checkpoints and trainings of a store. Clones share what they know of them.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    models: PathBuf,
    trainings: PathBuf,
    disk: Arc<dyn Disk>,
    known: Known,
}

impl Checkpoints {
    /// Those of a store; its directory need not exist.
    pub(super) fn new(store: &Path, disk: Arc<dyn Disk>) -> Checkpoints {
        let (models, trainings) = (store.join("checkpoints"), store.join("trainings"));
        Checkpoints { models, trainings, disk, known: Known::default() }
    }

    /// Where the model of a weights id is, if it is there.
    pub fn dir(&self, weights: Id) -> PathBuf {
        self.models.join(weights.to_string())
    }

    /// Whether the model is there, in whatever state.
    pub fn exists(&self, weights: Id) -> bool {
        self.dir(weights).is_dir()
    }

    /// Checks that the files of a model make its weights id. They are hashed once, as long as their
    /// sizes, times and inodes stay as they were.
    pub fn verify(&self, weights: Id) -> Result<()> {
        let (dir, note) = (self.dir(weights), self.note(weights));
        let is = self.known.weights_id(&dir, Some((&note, &*self.disk)));
        judge(&dir, weights, is)
    }

    /// The same, by the bytes of its files whatever is remembered of them.
    pub fn verify_bytes(&self, weights: Id) -> Result<()> {
        let dir = self.dir(weights);
        judge(&dir, weights, sound::hash(&dir))
    }

    /// Whether a model is there and its files make its weights id. What is damaged is said, once.
    pub fn is_sound(&self, weights: Id) -> bool {
        if !self.exists(weights) {
            return false;
        }
        let found = self.verify(weights);
        if let Err(error) = &found
            && self.known.is_first_told(weights)
        {
            tracing::warn!("{error}");
        }
        found.is_ok()
    }

    /// The weights id of a directory in Hugging Face layout, in the store or not.
    pub fn weights_id(&self, dir: &Path) -> std::result::Result<Id, String> {
        self.known.weights_id(dir, None)
    }

    /// Checks that the files of a directory make a weights id that was found for it before.
    pub fn verify_dir(&self, dir: &Path, weights: Id) -> Result<()> {
        if dir == self.dir(weights) {
            return self.verify(weights);
        }
        match self.weights_id(dir) {
            Ok(is) if is == weights => Ok(()),
            Ok(is) => {
                let what = format!("its files make the weights id {is}, and made {weights} before");
                Err(StoreError::corrupt(
                    dir,
                    what,
                    "leave it as it is while a run uses it, and run again",
                ))
            }
            Err(error) => Err(StoreError::corrupt(dir, error, "restore it from a copy")),
        }
    }

    /// The file that remembers what a model's files were like when they were hashed.
    fn note(&self, weights: Id) -> PathBuf {
        self.models.join(format!("{weights}.verified"))
    }

    /// Keeps a damaged record under another name, under which nobody reads it.
    pub(super) fn set_aside(&self, record: &Path) -> Result<PathBuf> {
        let name = record.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kept = record.with_file_name(format!("{name}.damaged"));
        self.disk.rename(record, &kept).at("rename", record)?;
        self.disk.sync_dir(&self.trainings).at("sync", &self.trainings)?;
        Ok(kept)
    }

    /// The models of the store, by weights id.
    pub(super) fn all(&self) -> Result<Vec<Id>> {
        names(&self.models, |name| name.parse().ok())
    }

    /// The recipes of which there is a record or a dataset.
    pub(super) fn recipes(&self) -> Result<Vec<CallKey>> {
        let mut recipes = names(&self.trainings, |name| {
            let stem = name.strip_suffix(".json").or_else(|| name.strip_suffix(".rows"))?;
            stem.parse().ok()
        })?;
        recipes.dedup();
        Ok(recipes)
    }

    /// An empty directory to train into, for a recipe. What an earlier training left there is
    /// removed.
    pub fn stage(&self, recipe: &CallKey) -> Result<PathBuf> {
        let dir = self.models.join(format!("{ASIDE}{recipe}"));
        self.disk.remove_if_there(&dir).at("remove", &dir)?;
        self.disk.create_dirs(&dir).at("make", &dir)?;
        Ok(dir)
    }

    /// The directory that the training of a recipe keeps its state in, beside the staged one. It is
    /// there until [`Checkpoints::forget_state`], through any number of tries.
    pub fn state(&self, recipe: &CallKey) -> Result<PathBuf> {
        let dir = self.state_dir(recipe);
        self.disk.create_dirs(&dir).at("make", &dir)?;
        Ok(dir)
    }

    /// Whether the training of a recipe left a file of that name in its state.
    pub fn has_state(&self, recipe: &CallKey, file: &str) -> bool {
        self.state_dir(recipe).join(file).exists()
    }

    /// Removes the state of a training that is done.
    pub fn forget_state(&self, recipe: &CallKey) -> Result<()> {
        let dir = self.state_dir(recipe);
        self.disk.remove_if_there(&dir).at("remove", &dir)
    }

    fn state_dir(&self, recipe: &CallKey) -> PathBuf {
        self.models.join(format!("{ASIDE}{recipe}.state"))
    }

    /// Gives a staged directory its name: a model is there as a whole or not at all. A model that is
    /// there already stays, and the staged one is removed; but for one that is damaged, in whose
    /// place the staged one comes.
    pub fn publish(&self, staged: &Path, weights: Id) -> Result<PathBuf> {
        let dir = self.dir(weights);
        if self.is_sound(weights) {
            self.disk.remove_if_there(staged).at("remove", staged)?;
            return Ok(dir);
        }
        self.sync_all(staged)?;
        crash_point("checkpoint:before_rename");
        let damaged = self.models.join(format!("{ASIDE}{weights}.damaged"));
        self.disk.remove_if_there(&damaged).at("remove", &damaged)?;
        if self.exists(weights) {
            self.disk.rename(&dir, &damaged).at("rename", &dir)?;
        }
        self.disk.rename(staged, &dir).at("rename", staged)?;
        self.disk.sync_dir(&self.models).at("sync", &self.models)?;
        self.disk.remove_if_there(&damaged).at("remove", &damaged)?;
        Ok(dir)
    }

    /// Makes the files under a directory safe: a trainer wrote them, and not through the disk.
    fn sync_all(&self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).at("list", dir)? {
            let path = entry.at("list", dir)?.path();
            if path.is_dir() {
                self.sync_all(&path)?;
            } else {
                self.disk.sync_file(&path).at("sync", &path)?;
            }
        }
        self.disk.sync_dir(dir).at("sync", dir)
    }

    /// Keeps what a training gave, safe when this returns: before the memo's entry, after the model.
    pub fn put_training<T: Serialize>(&self, recipe: &CallKey, trained: &T) -> Result<()> {
        let path = self.training(recipe);
        let text = serde_json::to_string(trained)
            .map_err(|error| StoreError::io("write", &path, error.into()))?;
        self.disk.create_dirs(&self.trainings).at("make", &self.trainings)?;
        self.disk.write_atomically(&path, seal::seal(&text).as_bytes()).at("write", &path)
    }

    /// Keeps the rows that a recipe is trained on: their ids, and those of what they say. It is safe
    /// when this returns: before what the training gave.
    pub fn put_dataset(&self, recipe: &CallKey, rows: &[(Id, Id)]) -> Result<()> {
        let path = self.dataset(recipe);
        let bytes = |id: Id| id.bits().to_le_bytes();
        let rows: Vec<u8> = rows
            .iter()
            .flat_map(|(row, content)| [bytes(*row), bytes(*content)])
            .flatten()
            .collect();
        let bytes = [&ROWS[..], blake3::hash(&rows).as_bytes(), &rows].concat();
        self.disk.create_dirs(&self.trainings).at("make", &self.trainings)?;
        self.disk.write_atomically(&path, &bytes).at("write", &path)
    }

    /// The rows that a recipe was trained on, if they were kept.
    pub fn get_dataset(&self, recipe: &CallKey) -> Result<Option<Vec<(Id, Id)>>> {
        let path = self.dataset(recipe);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.at("read", &path)?,
        };
        let damage = |what: &str| {
            let help = "remove it: the rows are taken for changed";
            StoreError::corrupt(&path, what, help)
        };
        let rows = match bytes.split_first_chunk::<16>() {
            Some((ROWS, rest)) => match rest.split_at_checked(SUM) {
                Some((sum, rows)) if blake3::hash(rows).as_bytes() == sum => rows,
                _ => return Err(damage("its bytes have another checksum")),
            },
            _ => &bytes[..],
        };
        let (ids, rest) = rows.as_chunks::<16>();
        if !rest.is_empty() || !ids.len().is_multiple_of(2) {
            return Err(damage("it was cut"));
        }
        let id = |bytes: &[u8; 16]| Id::from_bits(u128::from_le_bytes(*bytes));
        Ok(Some(ids.chunks_exact(2).map(|pair| (id(&pair[0]), id(&pair[1]))).collect()))
    }

    /// What the training of a recipe gave, if it was kept.
    pub fn get_training<T: DeserializeOwned>(&self, recipe: &CallKey) -> Result<Option<T>> {
        let path = self.training(recipe);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.at("read", &path)?,
        };
        let damage = |what: String| {
            StoreError::corrupt(&path, what, "the training counts as not done, and is done again")
        };
        let text = String::from_utf8(bytes).map_err(|error| damage(error.to_string()))?;
        let opened = seal::open(&text).map_err(|what| damage(what.to_owned()))?;
        let parsed = serde_json::from_str(opened);
        parsed.map(Some).map_err(|error| damage(error.to_string()))
    }

    fn training(&self, recipe: &CallKey) -> PathBuf {
        self.trainings.join(format!("{recipe}.json"))
    }

    fn dataset(&self, recipe: &CallKey) -> PathBuf {
        self.trainings.join(format!("{recipe}.rows"))
    }
}

/// What is wrong with a model of the store, if its files do not make its weights id.
fn judge(dir: &Path, weights: Id, is: std::result::Result<Id, String>) -> Result<()> {
    let help = "run its pipeline again, which trains it again unless it is held, or restore its files from a copy";
    match is {
        Ok(is) if is == weights => Ok(()),
        Ok(is) => {
            let what = format!("its files make the weights id {is}, which is not its name");
            Err(StoreError::corrupt(dir, what, help))
        }
        // Nothing is asked of a model by a program that cannot tell.
        Err(_) if cfg!(not(feature = "torch")) => Ok(()),
        Err(error) => Err(StoreError::corrupt(dir, error, help)),
    }
}

/// What the names in a directory stand for, in order; nothing where there is no directory.
fn names<T: Ord>(dir: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", dir)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry.at("list", dir)?.file_name().to_str().and_then(&parse));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Trained;
    use crate::record::KeyHasher;
    use crate::store::disk::LocalDisk;

    #[test]
    fn a_checkpoint_is_published_once_and_what_was_trained_reads_back() {
        let dir = tempfile::TempDir::new().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), Arc::new(LocalDisk));
        let recipe = KeyHasher::new("amend/test/1").call_key();
        let weights = recipe.id();
        for _ in 0..2 {
            let staged = checkpoints.stage(&recipe).unwrap();
            assert_eq!(fs::read_dir(&staged).unwrap().count(), 0);
            LocalDisk.create(&staged.join("config.json")).unwrap();
            let published = checkpoints.publish(&staged, weights).unwrap();
            assert!(published.join("config.json").exists() && !staged.exists());
        }
        assert!(checkpoints.get_dataset(&recipe).unwrap().is_none());
        let rows = vec![(weights, Id::ZERO), (Id::ZERO, weights)];
        checkpoints.put_dataset(&recipe, &rows).unwrap();
        assert_eq!(checkpoints.get_dataset(&recipe).unwrap(), Some(rows));
        let trained = Trained { weights, steps: 3, ..Trained::default() };
        assert!(checkpoints.get_training::<Trained>(&recipe).unwrap().is_none());
        checkpoints.put_training(&recipe, &trained).unwrap();
        let read = checkpoints.get_training::<Trained>(&recipe).unwrap().unwrap();
        assert_eq!((read.weights, read.steps), (weights, 3));
    }

    #[test]
    fn the_state_of_a_training_outlives_its_tries_and_goes_when_it_is_done() {
        let dir = tempfile::TempDir::new().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), Arc::new(LocalDisk));
        let recipe = KeyHasher::new("amend/test/1").call_key();
        assert!(!checkpoints.has_state(&recipe, "state"));
        let state = checkpoints.state(&recipe).unwrap();
        assert!(!checkpoints.has_state(&recipe, "state"), "nothing was written yet");
        LocalDisk.create(&state.join("state")).unwrap();
        for _ in 0..2 {
            checkpoints.stage(&recipe).unwrap();
            assert_eq!(checkpoints.state(&recipe).unwrap(), state);
            assert!(checkpoints.has_state(&recipe, "state"));
        }
        checkpoints.forget_state(&recipe).unwrap();
        assert!(!checkpoints.has_state(&recipe, "state"));
    }
}
