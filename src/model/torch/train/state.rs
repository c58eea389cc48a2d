//! The state of a training: what a killed one goes on from, in one file that is there as a whole or
//! not at all.
//!
//! What a step does is a function of the settings, the data and its number, and nothing is drawn
//! from a global generator. So weights, moments and the number of the step are all there is to a
//! training, and one that goes on reaches the same bits as one that was never killed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::learner::refused;
use super::log::Log;
use super::optimizer::AdamW;
use crate::model::torch::Weights;
use crate::model::train::{Compute, Kept, Progress, Rollout, STATE_FILE, TrainError, TrainJob};

/// Raised when the file is written otherwise.
const VERSION: u32 = 1;

/// Where a training is.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Position {
    /// Steps done; of `ppo-update`, batches learnt from.
    pub(super) step: u64,
    /// Tokens read.
    pub(super) n_tokens: f64,
    /// What was logged.
    pub(super) log: Log,
    /// The episodes so far.
    pub(super) rollouts: Vec<Rollout>,
    /// The policies on the way that were kept.
    pub(super) snapshots: Vec<Kept>,
    /// The step of the model that will be kept, where it may not be the last, and its number: a
    /// policy's KL to the reference, or a loss.
    pub(super) best: Option<(u64, f64)>,
    /// The weight of the KL divergence now, where it follows the divergence.
    #[serde(default)]
    pub(super) kl_coef: Option<f64>,
}

impl Position {
    /// Tells how far the training is.
    pub(super) fn tell(&mut self, job: &TrainJob, line: &str, all: u64) {
        let (done, tokens) = (self.step, self.n_tokens);
        (job.progress)(&Progress { line, done, all, tokens, metrics: self.log.untold() });
    }
}

/// What precedes the tensors in the file.
#[derive(Serialize, Deserialize)]
struct Header<P> {
    version: u32,
    position: P,
    /// Steps of each optimizer.
    optimizer_steps: BTreeMap<String, i32>,
}

/// The place of a training's state.
pub(super) struct State {
    path: PathBuf,
    every: u64,
}

impl State {
    /// That of a job.
    pub(super) fn of(job: &TrainJob, compute: &Compute) -> State {
        State { path: job.state.join(STATE_FILE), every: compute.save_steps }
    }

    /// Whether the state is written after so many steps of all.
    pub(super) fn is_due(&self, step: u64, total: u64) -> bool {
        self.every > 0 && step.is_multiple_of(self.every) && step < total
    }

    /// Writes the state: position, optimizers with their weights, and more tensors.
    ///
    /// The file is written aside, synced and renamed: what was there before stays until then, also
    /// when the disk is full.
    pub(super) fn write(
        &self,
        position: &Position,
        optimizers: &[(&str, &AdamW)],
        more: &BTreeMap<String, Tensor>,
    ) -> Result<(), TrainError> {
        let _guard = tch::no_grad_guard();
        let optimizer_steps =
            optimizers.iter().map(|(name, adamw)| ((*name).to_owned(), adamw.steps())).collect();
        let header = Header { version: VERSION, position, optimizer_steps };
        let header = serde_json::to_vec(&header).expect("its keys are text");
        let tensors = optimizers.iter().flat_map(|(name, adamw)| adamw.tensors(name));
        let more = more.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        let tensors = Weights(tensors.chain(more).collect()).to_safetensors().map_err(refused)?;

        let mut body = (header.len() as u64).to_le_bytes().to_vec();
        body.extend(header);
        body.extend(tensors);
        replace(&self.path, &[blake3::hash(&body).as_bytes(), &body])
            .map_err(|source| TrainError::File { path: self.path.clone(), source })
    }

    /// Where a job goes on: at the state that an earlier try left, which is said, or at the beginning.
    pub(super) fn resume(
        &self,
        job: &TrainJob,
        optimizers: &mut [(&str, &mut AdamW)],
        total: u64,
    ) -> Result<(Position, BTreeMap<String, Tensor>), TrainError> {
        let Some((mut at, more)) = self.read(optimizers)? else { return Ok(Default::default()) };
        // The try before told of what is in the log.
        let _ = at.log.untold();
        at.tell(job, "goes on where it was", total);
        Ok((at, more))
    }

    /// Reads the state that an earlier try left, if any, into the optimizers and their weights.
    /// Gives the position and the other tensors.
    fn read(
        &self,
        optimizers: &mut [(&str, &mut AdamW)],
    ) -> Result<Option<(Position, BTreeMap<String, Tensor>)>, TrainError> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => {
                bytes.map_err(|source| TrainError::File { path: self.path.clone(), source })?
            }
        };
        let wrong = |what: &str| {
            TrainError::Data(format!(
                "{}: {what}; remove it, and the training begins again",
                self.path.display()
            ))
        };
        let (header, mut tensors) = parse(&bytes).map_err(wrong)?;
        for (name, adamw) in optimizers {
            let steps = header.optimizer_steps.get(*name).ok_or_else(|| wrong("is of another"))?;
            adamw.restore(name, *steps, &mut tensors).map_err(|what| wrong(&what))?;
        }
        Ok(Some((header.position, tensors)))
    }
}

fn write_synced(mut file: File, parts: &[&[u8]]) -> io::Result<()> {
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()
}

/// Puts bytes into a file as a whole or not at all; they are safe when this returns.
fn replace(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let aside = path.with_extension("new");
    // Not through a link to a file elsewhere.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write_synced(File::create_new(&aside)?, parts)?;
    fs::rename(&aside, path)?;
    File::open(path.parent().expect("a state is in a directory"))?.sync_all()
}

/// The header and the tensors of a file.
fn parse(bytes: &[u8]) -> Result<(Header<Position>, BTreeMap<String, Tensor>), &'static str> {
    let damaged = "is damaged";
    let (hash, body) = bytes.split_at_checked(blake3::OUT_LEN).ok_or(damaged)?;
    if blake3::hash(body).as_bytes() != hash {
        return Err(damaged);
    }
    let (len, rest) = body.split_first_chunk::<8>().ok_or(damaged)?;
    let (header, tensors) =
        rest.split_at_checked(u64::from_le_bytes(*len) as usize).ok_or(damaged)?;
    let header: Header<Position> =
        serde_json::from_slice(header).map_err(|_| "was written by another amend")?;
    if header.version != VERSION {
        return Err("was written by another amend");
    }
    let file = SafeTensors::deserialize(tensors).map_err(|_| damaged)?;
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        (name, Tensor::from_data_size(view.data(), &shape, Kind::Float))
    };
    Ok((header, file.tensors().into_iter().map(tensor).collect()))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::model::train::Optim;

    fn adamw(weight: &Tensor) -> AdamW {
        AdamW::new([weight.shallow_clone()], &Optim::default())
    }

    fn weight() -> Tensor {
        (Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]) + 1.0).set_requires_grad(true)
    }

    fn step(weight: &mut Tensor, adamw: &mut AdamW) {
        weight.square().sum(Kind::Float).backward();
        adamw.step(0.1);
        *weight = adamw.renewed().remove(0);
    }

    fn state(dir: &Path) -> State {
        State { path: dir.join(STATE_FILE), every: 2 }
    }

    #[test]
    fn a_training_goes_on_with_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        let (state, mut first) = (state(dir.path()), weight());
        let mut optimizer = adamw(&first);
        assert!(state.read(&mut [("m", &mut optimizer)]).unwrap().is_none());
        step(&mut first, &mut optimizer);
        let mut log = Log::default();
        log.add("loss", f64::NAN, 1.0);
        let position = Position { step: 1, log, best: Some((1, 0.25)), ..Position::default() };
        let more = BTreeMap::from([("kept/0".to_owned(), Tensor::from_slice(&[0.5_f32]))]);
        state.write(&position, &[("m", &optimizer)], &more).unwrap();
        step(&mut first, &mut optimizer);

        let mut second = weight();
        let mut optimizer = adamw(&second);
        let (position, more) = state.read(&mut [("m", &mut optimizer)]).unwrap().unwrap();
        assert_eq!((position.step, position.best), (1, Some((1, 0.25))));
        assert_eq!(more.keys().collect::<Vec<_>>(), ["kept/0"]);
        step(&mut second, &mut optimizer);
        assert!(first.equal(&second), "{first} is not {second}");
    }

    #[test]
    fn a_state_is_due_between_the_beginning_and_the_end() {
        let state = state(Path::new("/nowhere"));
        let due: Vec<u64> = (1..=6).filter(|&step| state.is_due(step, 6)).collect();
        assert_eq!(due, [2, 4], "at the end there is the checkpoint");
        let never = State { every: 0, ..state };
        assert!(!never.is_due(2, 6));
    }

    #[test]
    fn a_full_disk_is_said_and_leaves_the_state_before() {
        let dir = tempfile::tempdir().unwrap();
        let (state, weight) = (state(dir.path()), weight());
        let mut optimizer = adamw(&weight);
        let write = |step: u64, optimizer: &AdamW| {
            let position = Position { step, ..Position::default() };
            state.write(&position, &[("m", optimizer)], &BTreeMap::new())
        };
        write(1, &optimizer).unwrap();
        // Every write to this device ends as on a full disk.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = write_synced(full, &[b"state"]).unwrap_err();
        assert!(error.to_string().contains("No space left on device"), "{error}");
        // A folder of that name cannot be written either.
        fs::create_dir(dir.path().join("state.new")).unwrap();
        let error = write(2, &optimizer).unwrap_err();
        assert!(matches!(error, TrainError::File { .. }), "{error}");
        assert!(error.to_string().contains("state"), "{error}");
        let (position, _) = state.read(&mut [("m", &mut optimizer)]).unwrap().unwrap();
        assert_eq!(position.step, 1);
    }

    #[test]
    fn a_damaged_state_is_named_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (state, weight) = (state(dir.path()), weight());
        let mut optimizer = adamw(&weight);
        state.write(&Position::default(), &[("m", &optimizer)], &BTreeMap::new()).unwrap();
        let good = fs::read(&state.path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bytes in [flipped, good[..good.len() / 2].to_vec(), Vec::new()] {
            fs::write(&state.path, bytes).unwrap();
            let error = state.read(&mut [("m", &mut optimizer)]).unwrap_err();
            assert!(error.to_string().contains("state: is damaged; remove it"), "{error}");
        }
    }
}
