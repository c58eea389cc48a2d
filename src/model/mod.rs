//! `model`: what a model can be asked, and those who answer: a checkpoint in this process or an
//! endpoint.

pub mod answer;
pub mod backend;
pub mod bounded;
pub mod openai;
pub mod panics;
pub mod request;
#[cfg(feature = "torch")]
pub mod torch;
pub mod train;

pub use answer::{Answer, Billed, CallError, Finish};
pub use backend::{Backend, CacheBytes, Done, Meter, Unmetered, Waiting, told_once};
pub use request::{Estimator, Prompt, Request, Sampling, Task};
pub use train::{Example, Init, TrainError, TrainJob, TrainSettings, Trained, Trainer};
