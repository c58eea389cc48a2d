//! The lab: a pipeline in memory with fakes for the outside, to test the engine by itself.
//!
//! The model is a fake that answers as a function of the request; the trainer is a fake whose
//! weights are a hash of what it was given; the memo is a map. The dataflow is the real one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use amend::engine::compile::{World, compile};
use amend::engine::dispatch::{
    Dispatcher, Durable, Finished, Limits, Memory, Mode, Models, Outcome,
};
use amend::engine::rows::Rows;
use amend::engine::session::{Desired, Session, Source};
use amend::engine::train::{Held, Recipe, Training, Trainings};
use amend::model::{Answer, Backend, CallError, Done, Estimator, Prompt, Request, Task, Trained};
use amend::operators::{ModelRef, Predicate};
use amend::plan::Plan;
use amend::record::{BatchBuilder, CallKey, Cell, Id, IdMap, KeyHasher, Message, Origin, Relation};
use amend::spec::Model;
use amend::spec::op::Read;

/// The answer of the fake model: words that are a function of the request.
pub fn fake_answer(model: &ModelRef, request: &Request) -> Result<Answer, CallError> {
    let hash = request.key(model.fingerprint).id();
    let text = match &request.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => messages.last().unwrap().content.clone(),
    };
    if text.contains("[[fail]]") {
        let message = "the fake refuses this".to_owned();
        return Err(CallError::Permanent { status: Some(400), message, too_long: false });
    }
    let mut answer = Answer { attempts: 1, completion_tokens: 3, ..Answer::default() };
    match &request.task {
        Task::Generate(_) => answer.text = format!("words {:08x}", hash.low() as u32),
        Task::Score { choices, .. } => {
            let score = |at: usize| -1.0 - (hash.low() >> (8 * at) & 0xff) as f64 / 64.0;
            answer.choice_logprobs = Some((0..choices.len()).map(score).collect());
        }
    }
    Ok(answer)
}

/// The weights that the fake trainer gives.
pub fn fake_weights(training: &Training, rows: &[(Id, Id)]) -> Id {
    let mut hasher = KeyHasher::new("amend/fake-weights/1");
    hasher.add_id(training.settings);
    for model in training.models.iter().flatten() {
        hasher.add_id(model.fingerprint);
    }
    for (row, content) in rows {
        hasher.add_id(*row);
        hasher.add_id(*content);
    }
    hasher.id()
}

/// The weights that it gives where it goes on from others.
pub fn fake_warm(weights: Id, from: Id) -> Id {
    KeyHasher::new("amend/fake-warm/1").with(weights).with(from).id()
}

/// A memo in memory.
#[derive(Default)]
pub struct FakeMemo(Mutex<IdMap<CallKey, Outcome>>);

impl FakeMemo {
    pub fn keys(&self) -> BTreeSet<CallKey> {
        self.0.lock().unwrap().keys().copied().collect()
    }
}

impl Memory for FakeMemo {
    fn recall(&self, key: &CallKey) -> Option<Outcome> {
        self.0.lock().unwrap().get(key).cloned()
    }

    fn remember(&self, finished: Finished, durable: Durable) {
        let outcome = match finished.outcome {
            Ok(answer) => Outcome::Answer(answer),
            Err((_, message, too_long)) => Outcome::Permanent { message, too_long },
        };
        let before = self.0.lock().unwrap().insert(finished.key, outcome);
        assert!(before.is_none(), "a call is made once");
        durable(Ok(()));
    }
}

/// What a fake model answers to a request.
pub type Answering = fn(&ModelRef, &Request) -> Result<Answer, CallError>;

/// A model in this process that answers at once, or when it is let.
pub struct FakeModel {
    pub answering: Answering,
    made: AtomicU64,
    /// While this is set, each request is answered by a thread of its own: in any order.
    pub later: AtomicBool,
    pub max_in_flight: AtomicUsize,
    /// While this is set, requests are kept.
    pub held: AtomicBool,
    kept: Mutex<Vec<(ModelRef, Arc<Request>, Done)>>,
    in_flight_max: AtomicU64,
}

impl FakeModel {
    fn new(answering: Answering) -> FakeModel {
        FakeModel {
            answering,
            made: AtomicU64::new(0),
            later: AtomicBool::new(false),
            max_in_flight: AtomicUsize::new(64),
            held: AtomicBool::new(false),
            kept: Mutex::default(),
            in_flight_max: AtomicU64::new(0),
        }
    }

    pub fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// Answers everything that was kept, and from now on at once.
    pub fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
        let kept: Vec<_> = self.kept.lock().unwrap().drain(..).collect();
        for (model, request, done) in kept {
            done((self.answering)(&model, &request));
        }
    }

    pub fn kept(&self) -> usize {
        self.kept.lock().unwrap().len()
    }
}

struct FakeBackend {
    of: Arc<FakeModel>,
    model: ModelRef,
}

impl Backend for FakeBackend {
    fn submit(&self, request: Arc<Request>, done: Done) {
        self.of.made.fetch_add(1, Ordering::SeqCst);
        if self.of.held.load(Ordering::SeqCst) {
            let mut kept = self.of.kept.lock().unwrap();
            kept.push((self.model.clone(), request, done));
            self.of.in_flight_max.fetch_max(kept.len() as u64, Ordering::SeqCst);
            return;
        }
        let (answering, model) = (self.of.answering, self.model.clone());
        match self.of.later.load(Ordering::SeqCst) {
            true => drop(std::thread::spawn(move || done(answering(&model, &request)))),
            false => done(answering(&model, &request)),
        }
    }

    fn max_in_flight(&self) -> usize {
        self.of.max_in_flight.load(Ordering::SeqCst)
    }
}

struct FakeModels(Arc<FakeModel>);

impl Models for FakeModels {
    fn backend(&self, model: &ModelRef) -> Result<Arc<dyn Backend>, String> {
        Ok(Arc::new(FakeBackend { of: Arc::clone(&self.0), model: model.clone() }))
    }
}

/// A trainer whose weights are a hash.
#[derive(Default)]
pub struct FakeTrainings {
    done: Mutex<BTreeMap<Id, Arc<Trained>>>,
    /// The rows that each recipe was trained on.
    datasets: Mutex<BTreeMap<Id, Vec<(Id, Id)>>>,
    trained: AtomicU64,
    /// While this is set, no training ends.
    pub held: AtomicBool,
    /// While this is set, every training panics.
    pub panics: AtomicBool,
    /// Each recipe that was looked up, in order.
    recalled: Mutex<Vec<Id>>,
}

impl FakeTrainings {
    pub fn trained(&self) -> u64 {
        self.trained.load(Ordering::SeqCst)
    }

    /// How often the recipe that was looked up first was looked up.
    pub fn recalled_first(&self) -> usize {
        let recalled = self.recalled.lock().unwrap();
        recalled.iter().filter(|recipe| Some(*recipe) == recalled.first()).count()
    }

    /// The weights of everything that was trained.
    pub fn weights(&self) -> BTreeSet<Id> {
        self.done.lock().unwrap().values().map(|trained| trained.weights).collect()
    }
}

impl Trainings for FakeTrainings {
    fn recall(&self, recipe: Id) -> Option<Arc<Trained>> {
        self.recalled.lock().unwrap().push(recipe);
        self.done.lock().unwrap().get(&recipe).cloned()
    }

    fn resumes(&self, _recipe: Id) -> bool {
        false
    }

    fn dataset(&self, recipe: Id) -> Option<Vec<(Id, Id)>> {
        self.datasets.lock().unwrap().get(&recipe).cloned()
    }

    fn train(&self, recipe: Recipe) -> Result<Arc<Trained>, String> {
        self.trained.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.load(Ordering::SeqCst), "the fake trainer panics");
        while self.held.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let rows: Vec<(Id, Id)> =
            recipe.rows.iter().map(|(row, slot)| (*row, slot.row().content_hash())).collect();
        let mut weights = fake_weights(&recipe.training, &rows);
        if let Some(from) = recipe.warm {
            weights = fake_warm(weights, from);
        }
        let kind = "lm".to_owned();
        let basis = Some(recipe.basis());
        let trained = Arc::new(Trained { weights, kind, basis, ..Trained::default() });
        self.datasets.lock().unwrap().insert(recipe.id, recipe.data);
        self.done.lock().unwrap().insert(recipe.id, Arc::clone(&trained));
        Ok(trained)
    }
}

/// The files of a pipeline, by path: `pipeline.yaml`, `constitution.yaml`; prompts by node.
#[derive(Clone, Debug, Default)]
pub struct Files {
    pub pipeline: String,
    pub constitution: String,
    pub prompts: BTreeMap<String, Vec<String>>,
}

impl Files {
    /// The plan of these files.
    pub fn plan(&self) -> Plan {
        self.try_plan().unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }

    /// The plan of these files, or what is wrong with them.
    pub fn try_plan(&self) -> Result<Plan, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pipeline.yaml"), &self.pipeline).unwrap();
        std::fs::write(dir.path().join("constitution.yaml"), &self.constitution).unwrap();
        let path = dir.path().join("pipeline.yaml");
        let plan = amend::plan::load(&path, &[], &|_: &str| None);
        plan.map_err(|mistakes| mistakes.to_string())
    }
}

/// A chain of one critique and revision over so many prompts, under sixteen principles.
pub fn sixteen(rows: usize) -> Files {
    let pipeline = r#"
name: sixteen
seed: 17
constitution: constitution.yaml
models:
  assistant: { endpoint: "http://127.0.0.1:9", name: fake, format: transcript }
nodes:
  red: { read: { path: red.jsonl } }
  drafts: { sample: { from: red, model: assistant } }
  critiques: { critique: { from: drafts, model: assistant } }
  revisions: { revise: { from: critiques, model: assistant } }
"#;
    let principle = |n| {
        format!(
            "  - {{ id: p{n}, critique: \"what breaks rule {n}?\", revise: \"keep rule {n}\" }}\n"
        )
    };
    let principles: Vec<String> = (0..16).map(principle).collect();
    let prompts = (0..rows).map(|n| format!("red{n}|question {n}: how does one do it?")).collect();
    Files {
        pipeline: pipeline.to_owned(),
        constitution: format!("principles:\n{}", principles.concat()),
        prompts: [("red".to_owned(), prompts)].into(),
    }
}

/// A pipeline in memory.
pub struct Lab {
    pub rows: Arc<Rows>,
    pub memo: Arc<FakeMemo>,
    pub model: Arc<FakeModel>,
    pub trainings: Arc<FakeTrainings>,
    pub session: Session,
    pub held: BTreeMap<String, Held>,
    pub chunk: usize,
    read_before: ReadBefore,
}

impl Lab {
    pub fn new(workers: usize) -> Lab {
        Lab::answering(workers, fake_answer)
    }

    /// A lab whose model answers in its own way.
    pub fn answering(workers: usize, answering: Answering) -> Lab {
        Lab::made_of(workers, Arc::default(), Arc::default(), Mode::Live, answering)
    }

    /// A plan over the memo and the trainings of this lab, which it leaves as they are.
    pub fn foresight(&self) -> Lab {
        let (memo, trainings) = (Arc::clone(&self.memo), Arc::clone(&self.trainings));
        let mut lab = Lab::made_of(1, memo, trainings, Mode::Plan, self.model.answering);
        lab.held.clone_from(&self.held);
        lab
    }

    /// A lab of another process, over the memo and the trainings of this one.
    pub fn again(&self, workers: usize) -> Lab {
        let (memo, trainings) = (Arc::clone(&self.memo), Arc::clone(&self.trainings));
        Lab::made_of(workers, memo, trainings, Mode::Live, self.model.answering)
    }

    fn made_of(
        workers: usize,
        memo: Arc<FakeMemo>,
        trainings: Arc<FakeTrainings>,
        mode: Mode,
        answering: Answering,
    ) -> Lab {
        let (rows, model) = (Arc::<Rows>::default(), Arc::new(FakeModel::new(answering)));
        let models: Arc<dyn Models> = Arc::new(FakeModels(Arc::clone(&model)));
        let memory: Arc<dyn Memory> = Arc::<FakeMemo>::clone(&memo);
        let free = Box::new(|_: &str, _: &Answer| 0.0);
        let dispatcher = Dispatcher::new(memory, models, mode, Limits::default(), free);
        let trainer: Arc<dyn Trainings> = Arc::<FakeTrainings>::clone(&trainings);
        let session = Session::new(workers, Arc::clone(&rows), dispatcher, trainer);
        let (held, read_before) = Default::default();
        Lab { rows, memo, model, trainings, session, held, chunk: 64, read_before }
    }

    /// What files ask of the dataflow.
    pub fn desired(&self, files: &Files) -> Desired {
        let plan = files.plan();
        let world = LabWorld { rows: &self.rows, read: &self.read_before, files, held: &self.held };
        let mut desired = compile(&plan, &world, &[]).unwrap_or_else(|error| panic!("{error}"));
        desired.chunk = self.chunk;
        desired
    }
}

/// The prompts of each node as they were read last, by their texts.
type ReadBefore = RefCell<BTreeMap<String, (Vec<String>, Arc<Source>)>>;

struct LabWorld<'a> {
    rows: &'a Rows,
    read: &'a ReadBefore,
    files: &'a Files,
    held: &'a BTreeMap<String, Held>,
}

impl World for LabWorld<'_> {
    fn read(&self, node: &str, _read: &Read) -> Result<Arc<Source>, String> {
        let texts = &self.files.prompts[node];
        if let Some((_, source)) = self.read.borrow().get(node).filter(|(of, _)| of == texts) {
            return Ok(Arc::clone(source));
        }
        let mut builder = BatchBuilder::new(Relation::Prompts);
        for text in texts {
            // `id|text|category`: a row keeps its id when its text is edited.
            let (id, text) = text.split_once('|').unwrap_or((text, text));
            let (text, category) =
                text.split_once('|').map_or((text, None), |(text, of)| (text, Some(of)));
            let row = KeyHasher::new("amend/row/1").text(id).id();
            let origin = Origin { row_id: row, root_id: row, parents: vec![], call_keys: vec![] };
            builder.push(
                &origin,
                &[
                    ("prompt", Cell::messages(vec![Message::user(text)])),
                    ("conversation_id", Cell::id(row)),
                    ("turn", Cell::Int(0)),
                    ("category", Cell::or_null(category, Cell::text)),
                    ("tags", Cell::Texts(vec![])),
                    ("source", Cell::text("lab")),
                    ("source_line", Cell::Int(0)),
                ],
            );
        }
        let (batch, _) = builder.finish();
        let source = Arc::new(Source { rows: self.rows.adopt(batch), rejects: Vec::new() });
        self.read.borrow_mut().insert(node.to_owned(), (texts.clone(), Arc::clone(&source)));
        Ok(source)
    }

    fn fingerprint(&self, name: &str, _model: &Model) -> Result<Id, String> {
        Ok(KeyHasher::new("amend/fake-model/1").text(name).id())
    }

    fn estimator(&self, _name: &str, _model: &Model) -> Result<Option<Estimator>, String> {
        Ok(None)
    }

    fn predicate(&self, _sql: &str, _over: Relation) -> Result<Arc<dyn Predicate>, String> {
        Err("the lab has no SQL".to_owned())
    }

    fn last(&self, node: &str) -> Option<Held> {
        self.held.get(node).copied()
    }
}
