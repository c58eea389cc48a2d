//! `train`: trainings in this process, by libtorch.
//!
//! `train-sl` learns from demonstrations, `train-pm` and `train-dpo` from comparisons, `ppo-update`
//! from what a preference model says of the policy's own answers. All are functions of settings, data
//! and init alone, at one number of threads: nothing is drawn from a global generator, and rows
//! come in an order that their ids decide.

mod best;
mod learner;
mod log;
mod lora;
mod loss;
mod optimizer;
mod order;
mod pack;
mod rows;
mod side_by_side;
mod state;
mod tokenizer;

mod sl;

mod calibration;
mod comparisons;
mod dpo;
mod pm;

mod advantage;
mod critic;
mod experience;
mod ppo;
mod report;
mod reward;
mod rollout;
mod update;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod golden_ppo;
#[cfg(test)]
mod invariants;
#[cfg(test)]
mod tests;

use crate::model::train::{TrainError, TrainJob, TrainSettings, Trained, Trainer};

/// Trains in this process.
#[derive(Clone, Copy, Debug)]
pub struct TorchTrainer {
    /// Threads of one operation, for trainings that state none. The same weights come out for the
    /// same number.
    pub threads: usize,
}

impl Default for TorchTrainer {
    fn default() -> TorchTrainer {
        TorchTrainer { threads: 1 }
    }
}

impl Trainer for TorchTrainer {
    fn train(&self, job: TrainJob) -> Result<Trained, TrainError> {
        // libtorch keeps the number by thread, and a training has a thread of its own.
        let threads = job.settings.compute().threads.unwrap_or(self.threads);
        tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
        match &job.settings {
            TrainSettings::TrainSl(settings) => sl::train(&job, settings),
            TrainSettings::TrainPm(settings) => pm::train(&job, settings),
            TrainSettings::TrainDpo(settings) => dpo::train(&job, settings),
            TrainSettings::PpoUpdate(settings) => ppo::train(&job, settings),
        }
    }
}
