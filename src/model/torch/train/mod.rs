//! `train`: trainings in this process, by libtorch.
//!
//! `train-sl` learns from demonstrations, `train-pm` from comparisons, `ppo-update` from what a
//! preference model says of the policy's own answers. All three are functions of settings, data
//! and init alone, at one number of threads: nothing is drawn from a global generator, and rows
//! come in an order that their ids decide.

mod learner;
mod log;
mod loss;
mod optimizer;
mod order;
mod rows;
mod tokenizer;

mod sl;

mod calibration;
mod pm;

mod advantage;
mod experience;
mod ppo;
mod rollout;
mod update;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use crate::model::train::{TrainError, TrainJob, TrainSettings, Trained, Trainer};

/// Trains in this process.
#[derive(Clone, Copy, Debug)]
pub struct TorchTrainer {
    /// Threads of one operation. The same weights come out for the same number.
    pub threads: usize,
}

impl Default for TorchTrainer {
    fn default() -> TorchTrainer {
        TorchTrainer { threads: 1 }
    }
}

impl Trainer for TorchTrainer {
    fn train(&self, job: TrainJob) -> Result<Trained, TrainError> {
        tch::set_num_threads(i32::try_from(self.threads.max(1)).unwrap_or(i32::MAX));
        match &job.settings {
            TrainSettings::TrainSl(settings) => sl::train(&job, settings),
            TrainSettings::TrainPm(settings) => pm::train(&job, settings),
            TrainSettings::PpoUpdate(settings) => ppo::train(&job, settings),
        }
    }
}
