//! A checkpoint as a backend: a thread owns the model and answers what comes through a channel.
//!
//! Several threads may, each with a replica of the model: an answer is the same bits whoever gives it.
//! Where products are small, two replicas of one thread do more than two threads that wait for each
//! other in every operation. Nobody who waits turns in a loop for longer than a gap between two
//! operations (ADR 0020): threads without work sleep.
//!
//! What is queued is gathered into batches: scores are read together by length, and prompts join
//! the rows that are being continued as slots become free. The model is loaded when the first
//! request comes, so a run whose answers are all in the memo loads nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Map, Value};
use tch::{Device, Kind};

use super::chat::ChatTemplate;
use super::checkpoint::{Checkpoint, read_tokenizer_files};
use super::config::{Head, TransformerConfig};
use super::error::TorchError;
use super::generate::CACHE_BYTES;
use super::listen::{Input, Listener, PromptDone, Told};
use super::tokenizer::{TOKENIZER_FILE, TextTokenizer};
use super::transformer::Transformer;
use super::worker::{Asked, Job, Watched, Worker};
use crate::model::panics::caught;
use crate::model::{Backend, CacheBytes, CallError, Done, Request, Sampling};

/// How long a worker that was idle waits for more requests to read with the first.
const GATHER: Duration = Duration::from_millis(1);

/// Without being told, there are no more replicas than have so many of the requests in flight each:
/// a step of fewer rows reads as many weights.
const REPLICA_ROWS_MIN: usize = 32;

/// How a checkpoint is run.
#[derive(Clone, Debug)]
pub struct TorchOptions {
    /// The model's name in the pipeline, for messages and the thread's name.
    pub name: String,
    /// Threads inside an operation. Bits are the same for the same number only.
    pub threads: usize,
    /// Replicas of the model, each at work on rows of its own; on a GPU there is one. By default
    /// one for each core, as long as each has a share of the requests in flight.
    pub replicas: Option<usize>,
    /// Where it runs.
    pub device: DeviceChoice,
    /// What it computes in; by default what it is stored in, on a CPU f32.
    pub dtype: Option<Precision>,
    /// The most requests to have in flight, and rows in a step.
    pub max_in_flight: usize,
    /// About how many bytes keys and values take, of all replicas: half for rows, half for shared
    /// prefixes.
    pub cache_bytes: usize,
    /// A chat template instead of the checkpoint's own.
    pub chat_template: Option<String>,
    /// Arguments of the chat template.
    pub template_args: Map<String, Value>,
}

impl Default for TorchOptions {
    fn default() -> TorchOptions {
        TorchOptions {
            name: "model".to_owned(),
            threads: 1,
            replicas: None,
            device: DeviceChoice::Auto,
            dtype: None,
            max_in_flight: 128,
            cache_bytes: CACHE_BYTES,
            chat_template: None,
            template_args: Map::new(),
        }
    }
}

/// The number format of weights and activations; on a CPU, where there are kernels, of weights alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
}

impl Precision {
    fn kind(self) -> Kind {
        match self {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        }
    }
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that libtorch sees, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// That GPU.
    Cuda(usize),
}

impl DeviceChoice {
    /// The device, if this machine has it.
    pub fn device(self) -> Result<Device, TorchError> {
        match self {
            DeviceChoice::Auto => Ok(Device::cuda_if_available()),
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(index) if int_below(index, tch::Cuda::device_count()) => {
                Ok(Device::Cuda(index))
            }
            DeviceChoice::Cuda(index) => Err(TorchError::Options(format!(
                "device \"cuda:{index}\" is not there: libtorch sees {} GPUs; use \"cpu\", or a \
                 libtorch with CUDA (LIBTORCH)",
                tch::Cuda::device_count()
            ))),
        }
    }
}

fn int_below(index: usize, count: i64) -> bool {
    i64::try_from(index).is_ok_and(|index| index < count)
}

/// A checkpoint run by libtorch in a thread of this process.
pub struct TorchBackend {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    max_in_flight: usize,
    has_chat_template: bool,
}

/// What the model's threads share with who asks.
struct Shared {
    stopping: AtomicBool,
    /// Bytes of keys and values, by replica.
    held: Vec<AtomicUsize>,
    most: usize,
    /// The threads that answer.
    threads: Mutex<Vec<ThreadId>>,
}

impl Shared {
    /// A thread that answers says that it is one.
    fn enter(&self) {
        self.threads.lock().expect("no holder panics").push(std::thread::current().id());
    }
}

impl TorchBackend {
    /// Opens a checkpoint's directory. Its config is checked now, its weights are read when the
    /// first request comes.
    pub fn open(dir: &Path, options: TorchOptions) -> Result<TorchBackend, TorchError> {
        TransformerConfig::read(dir)?;
        let tokenizer = dir.join(TOKENIZER_FILE);
        if !tokenizer.is_file() {
            let message = "is not there: a checkpoint needs its tokenizer beside its weights";
            return Err(TorchError::content(&tokenizer, message));
        }
        let files = read_tokenizer_files(dir)?;
        let given = options.chat_template.as_deref();
        let has_chat_template = ChatTemplate::of(&files, given, &options.template_args)?.is_some();
        let (jobs, queue) = unbounded();
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            held: (0..replicas(&options)).map(|_| AtomicUsize::new(0)).collect(),
            most: options.cache_bytes,
            threads: Mutex::default(),
        });
        let max_in_flight = options.max_in_flight.max(1);
        let (dir, of_thread) = (dir.to_owned(), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name(format!("torch {}", options.name))
            .spawn(move || serve(&dir, &options, &queue, &of_thread))
            .map_err(TorchError::file("a thread for the model"))?;
        Ok(TorchBackend {
            jobs: Some(jobs),
            thread: Some(thread),
            shared,
            max_in_flight,
            has_chat_template,
        })
    }
}

impl TorchBackend {
    /// Begins an answer that is told as it is written, with so many of the likeliest tokens at each
    /// step.
    pub fn listen(
        &self,
        input: Input,
        sampling: Sampling,
        alternatives_max: usize,
        listener: Listener,
    ) {
        let told = Told::default();
        let watched = Watched { input, sampling, alternatives_max, listener, told };
        self.send(Job::new(Asked::Watched(watched)));
    }

    /// Whether it answers conversations; else it reads texts only.
    pub fn has_chat_template(&self) -> bool {
        self.has_chat_template
    }

    /// Gives each token of a prompt with its log-probability, and so many of the likeliest in its
    /// place.
    pub fn read_prompt(&self, input: Input, alternatives_max: usize, done: PromptDone) {
        self.send(Job::new(Asked::Tokens(input, alternatives_max, done)));
    }

    fn send(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("the channel is open until the backend is dropped");
        if let Err(refused) = jobs.send(job) {
            refused
                .into_inner()
                .fail(CallError::Outage { message: "the model's thread is gone".to_owned() });
        }
    }
}

impl Backend for TorchBackend {
    fn submit(&self, request: Arc<Request>, done: Done) {
        self.send(Job::new(Asked::Answer(request, done)));
    }

    fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }

    fn cache_bytes(&self) -> CacheBytes {
        let held = self.shared.held.iter().map(|held| held.load(Ordering::Relaxed)).sum();
        CacheBytes { held, most: self.shared.most }
    }
}

impl Drop for TorchBackend {
    /// Stops after the step that is being done; what is not answered is told so.
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.jobs = None;
        let here = std::thread::current().id();
        // An answer's receiver may be what drops the backend, in a thread that then goes on.
        let is_own = self.shared.threads.lock().is_ok_and(|threads| threads.contains(&here));
        if let Some(thread) = self.thread.take().filter(|_| !is_own) {
            let _ = thread.join();
        }
    }
}

/// The number format in which a checkpoint computes where none is asked for: on a CPU `f32`, else what
/// it is stored in.
pub fn usual_format(device: DeviceChoice, dir: impl FnOnce() -> PathBuf) -> &'static str {
    // A device that is not there, or a config that cannot be read, is said to be so by the run.
    let is_gpu = device.device().is_ok_and(|device| device != Device::Cpu);
    let config = is_gpu.then(|| TransformerConfig::read(&dir()).ok()).flatten();
    match config.map(|config| config.dtype) {
        Some(Kind::BFloat16) => "bf16",
        Some(Kind::Half) => "f16",
        _ => "f32",
    }
}

/// How many replicas there are on a CPU: by default one of one thread for each core.
///
/// Measured on two cores by `benches/local_models.rs`, against one replica of one thread: two replicas
/// sample 1.5 to 1.6 times as much with 30 M parameters and 1.3 to 2.1 times with the 0.4 M of the
/// demo, and judge 1.4 to 1.6 and 1.6 to 1.7 times as much. Two threads instead do as much with 30 M,
/// and where few pairs share a long beginning, which each replica reads for itself, up to a quarter
/// more; with 0.4 M they do 0.8 to 1.0 and 1.0 to 1.2 times as much. Two replicas of two threads do
/// less than two of one.
fn replicas(options: &TorchOptions) -> usize {
    let usual = || {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (cores / options.threads.max(1)).min(options.max_in_flight / REPLICA_ROWS_MIN)
    };
    options.replicas.unwrap_or_else(usual).max(1)
}

/// What the threads need of a checkpoint.
struct Loaded {
    /// One for each replica.
    models: Vec<Transformer>,
    tokenizer: TextTokenizer,
    chat: Option<ChatTemplate>,
}

impl Loaded {
    fn read(dir: &Path, options: &TorchOptions) -> Result<Loaded, TorchError> {
        let device = options.device.device()?;
        let checkpoint = Checkpoint::read(dir)?;
        let (config, weights) = (&checkpoint.config, &checkpoint.weights);
        let kind = match options.dtype {
            Some(precision) => precision.kind(),
            None if device == Device::Cpu => Kind::Float,
            None => config.dtype,
        };
        let replicas = if device == Device::Cpu { replicas(options) } else { 1 };
        let model = Transformer::new(config, weights, kind, device)?.stacked();
        // What is stacked is shared with those that are stacked again.
        let mut models: Vec<Transformer> = (1..replicas).map(|_| model.stacked()).collect();
        models.push(model);
        if config.head == Head::Lm && !models[0].ignores_neighbours() {
            let model = &options.name;
            tracing::warn!(model, "on this machine an answer's last bits depend on its neighbours");
        }
        let given = options.chat_template.as_deref();
        let chat = ChatTemplate::of(&checkpoint.tokenizer_files, given, &options.template_args)?;
        Ok(Loaded { models, tokenizer: checkpoint.tokenizer()?, chat })
    }
}

/// The life of the model's thread: it reads the model when the first request comes, and begins a
/// thread for each further replica.
fn serve(dir: &Path, options: &TorchOptions, queue: &Receiver<Job>, shared: &Shared) {
    shared.enter();
    let Ok(first) = queue.recv() else { return };
    let guard = tch::no_grad_guard();
    tch::set_num_threads(i32::try_from(options.threads.max(1)).unwrap_or(i32::MAX));
    let loaded = match catch(|| Loaded::read(dir, options)) {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => return refuse(Some(first), queue, &error.to_string()),
        Err(message) => return refuse(Some(first), queue, &message),
    };
    drop(guard);
    let Loaded { mut models, tokenizer, chat } = loaded;
    let (replicas, chat) = (models.len(), chat.as_ref());
    let served = Served { tokenizer: &tokenizer, chat, options, queue, shared, replicas };
    let own = models.swap_remove(0);
    std::thread::scope(|scope| {
        for (at, model) in models.into_iter().enumerate() {
            let served = &served;
            scope.spawn(move || {
                served.shared.enter();
                served.replica(at + 1, model, None);
            });
        }
        served.replica(0, own, Some(first));
    });
}

/// What all replicas of a model have.
struct Served<'a> {
    tokenizer: &'a TextTokenizer,
    chat: Option<&'a ChatTemplate>,
    options: &'a TorchOptions,
    queue: &'a Receiver<Job>,
    shared: &'a Shared,
    replicas: usize,
}

/// Why a worker ended.
enum Ended {
    Closed,
    Broken,
}

impl Served<'_> {
    /// The life of a replica.
    fn replica(&self, replica: usize, model: Transformer, mut first: Option<Job>) {
        let _guard = tch::no_grad_guard();
        tch::set_num_threads(i32::try_from(self.options.threads.max(1)).unwrap_or(i32::MAX));
        loop {
            let rows_max = self.options.max_in_flight.div_ceil(self.replicas);
            let cache_bytes = self.options.cache_bytes / self.replicas;
            let begun = || Worker::new(&model, self.tokenizer, self.chat, rows_max, cache_bytes);
            let worker = match catch(begun) {
                Ok(worker) => worker,
                Err(message) => return refuse(first, self.queue, &message),
            };
            match self.work(worker, &mut first, &self.shared.held[replica]) {
                Ended::Closed => return,
                Ended::Broken => {
                    tracing::warn!(model = self.options.name, "the model begins afresh");
                }
            }
        }
    }

    fn work(&self, mut worker: Worker<'_>, first: &mut Option<Job>, held: &AtomicUsize) -> Ended {
        loop {
            // What was just taken is told by who waits for it: nobody else has it any more.
            let is_open = match catch(|| self.gather(&mut worker, first)) {
                Ok(is_open) => is_open,
                Err(message) => {
                    worker.fail_all(&CallError::Outage { message });
                    return Ended::Broken;
                }
            };
            if self.shared.stopping.load(Ordering::Relaxed) {
                self.queue.try_iter().for_each(|job| worker.accept(job));
                worker.fail_all(&stopped());
                return Ended::Closed;
            }
            if let Err(message) = catch(|| worker.step()) {
                worker.fail_all(&CallError::Outage { message });
                return Ended::Broken;
            }
            held.store(worker.cache_bytes(), Ordering::Relaxed);
            if !is_open && worker.is_idle() {
                return Ended::Closed;
            }
        }
    }

    /// Takes what is queued; waits for it if there is nothing else to do. False when no more can
    /// come.
    fn gather(&self, worker: &mut Worker<'_>, first: &mut Option<Job>) -> bool {
        if worker.is_idle() {
            let Some(job) = first.take().or_else(|| self.queue.recv().ok()) else { return false };
            worker.accept(job);
            while !worker.is_full() {
                let Ok(job) = self.queue.recv_timeout(GATHER) else { break };
                worker.accept(job);
            }
        }
        // One alone takes all, for rows of like length to be read together; of several each leaves
        // to the others what it could not begin at once.
        while self.replicas == 1 || !worker.is_full() {
            let Ok(job) = self.queue.try_recv() else { break };
            worker.accept(job);
        }
        true
    }
}

/// Answers everything with the reason why the model is not there.
fn refuse(first: Option<Job>, queue: &Receiver<Job>, message: &str) {
    for job in first.into_iter().chain(queue.iter()) {
        job.fail(CallError::Outage { message: message.to_owned() });
    }
}

fn stopped() -> CallError {
    CallError::Transient { message: "the run is being stopped".to_owned(), attempts: 0 }
}

/// libtorch's refusals are panics in most of tch: here they become messages.
fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    caught(run).map_err(|message| format!("libtorch: {message}"))
}

/// Whether the checkpoint in a directory is a preference model.
pub fn is_preference_model(dir: &Path) -> Result<bool, TorchError> {
    Ok(TransformerConfig::read(dir)?.head == Head::Score)
}
