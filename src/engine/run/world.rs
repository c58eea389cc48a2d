//! The world of a run: files, models, memo and checkpoints, as the engine asks for them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{Options, RunError, same};
use crate::engine::compile::World;
use crate::engine::dispatch::{Dispatcher, Limits, Memory, Mode, Models};
use crate::engine::local::memory::LocalMemory;
use crate::engine::local::models::{self, LocalModels};
use crate::engine::local::trainings::{LocalTrainings, Told};
use crate::engine::rows::{Lineage, Rec, Rows};
use crate::engine::session::Source;
use crate::engine::train::{Held, Trainings};
use crate::model::openai::Profiles;
use crate::model::{Answer, Estimator, Trainer};
use crate::operators::{Predicate, read};
use crate::plan::Plan;
use crate::record::read::{Fingerprint, Stamped, fingerprint, read as read_files};
use crate::record::{Id, Relation};
use crate::spec::op::Read;
use crate::spec::{Backend, Model};
use crate::store::manifest::SourceFile;
use crate::store::{Checkpoints, Memo, Snapshot, Store};

/// The files, models, memo and checkpoints of a run.
pub(super) struct LocalWorld<'a> {
    plan: &'a Plan,
    options: &'a Options,
    memo: Arc<Memo>,
    rows: Arc<Rows>,
    /// Whether endpoints may be asked: a run asks, a plan does not.
    asks: bool,
    profiles: Arc<dyn Profiles>,
    /// Shared by all that open checkpoints, so that each is hashed once.
    checkpoints: Checkpoints,
    /// The snapshot before.
    pub(super) latest: Option<Snapshot>,
    /// The files read so far.
    sources: Mutex<Vec<SourceFile>>,
}

impl<'a> LocalWorld<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        options: &'a Options,
        store: &Store,
        memo: Arc<Memo>,
        asks: bool,
    ) -> Result<LocalWorld<'a>, RunError> {
        let latest = store.snapshots(&plan.pipeline().name).latest()?;
        let (rows, sources) = (Arc::default(), Mutex::default());
        let (checkpoints, profiles) = (store.checkpoints(), store.profiles());
        let profiles = Arc::new(profiles);
        Ok(LocalWorld { plan, options, memo, rows, asks, profiles, checkpoints, latest, sources })
    }

    pub(super) fn rows(&self) -> &Arc<Rows> {
        &self.rows
    }

    pub(super) fn sources(&self) -> Vec<SourceFile> {
        let mut sources = self.sources.lock().expect("no holder panics").clone();
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        sources.dedup();
        sources
    }

    pub(super) fn dispatcher(&self, mode: Mode, limits: Limits) -> Arc<Dispatcher> {
        let prices = prices(self.plan);
        let cost = Prices::clone(&prices);
        let memory = LocalMemory::new(
            Arc::clone(&self.memo),
            Box::new(move |model, answer| price(&prices, model, answer)),
        );
        let models = self.models();
        let (memory, models): (Arc<dyn Memory>, Arc<dyn Models>) =
            (Arc::new(memory), Arc::new(models));
        let cost = move |model: &str, answer: &Answer| price(&cost, model, answer).unwrap_or(0.0);
        Dispatcher::new(memory, models, mode, limits, Box::new(cost))
    }

    fn models(&self) -> LocalModels {
        let models = LocalModels::new(self.plan, self.checkpoints.clone());
        models.with_profiles(Arc::clone(&self.profiles))
    }

    pub(super) fn trainings(&self) -> Arc<dyn Trainings> {
        let checkpoint = |(name, model): (&crate::spec::Name, &Model)| {
            let path = model.checkpoint.as_ref()?;
            Some((name.value.clone(), path.path.clone()))
        };
        let progress = Arc::clone(&self.options.progress);
        let told: Told = Arc::new(move |node, told| progress.training(node, told));
        Arc::new(LocalTrainings {
            checkpoints: self.checkpoints.clone(),
            trainer: trainer(),
            folder: self.plan.loaded.pipeline_file().path.parent().map(Path::to_owned),
            entries: self.plan.pipeline().models.iter().filter_map(checkpoint).collect(),
            progress: told,
        })
    }

    fn saw(&self, path: &Path) -> Result<(), String> {
        let seen = fingerprint(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let stamp = same::stamp(path, self.options.now_ms);
        let seen = SourceFile { stamp, ..source(path, &seen) };
        self.sources.lock().expect("no holder panics").push(seen);
        Ok(())
    }
}

/// A file as the manifest remembers it.
pub(super) fn source(path: &Path, seen: &Fingerprint) -> SourceFile {
    SourceFile {
        path: path.display().to_string(),
        bytes: seen.bytes,
        mtime_ns: seen.modified_ns as i64,
        blake3: seen.hash.clone(),
        stamp: None,
    }
}

type Prices = Arc<std::collections::BTreeMap<String, crate::spec::model::Price>>;

fn prices(plan: &Plan) -> Prices {
    let models = plan.pipeline().models.iter();
    Arc::new(models.filter_map(|(name, model)| Some((name.value.clone(), model.price?))).collect())
}

fn price(prices: &Prices, model: &str, answer: &Answer) -> Option<f64> {
    let price = prices.get(model)?;
    let of = |tokens: i32, wasted: u32| f64::from(tokens) + f64::from(wasted);
    let read = of(answer.prompt_tokens, answer.wasted.prompt_tokens);
    let written = of(answer.completion_tokens, answer.wasted.completion_tokens);
    Some((read * price.input + written * price.output) / 1e6)
}

impl World for LocalWorld<'_> {
    fn read(&self, node: &str, op: &Read) -> Result<Arc<Source>, String> {
        let failed = |error: &dyn std::fmt::Display| format!("node \"{node}\": {error}");
        let inputs = read::inputs(op).map_err(|unknown| {
            let all: Vec<String> = unknown.iter().map(|one| failed(one)).collect();
            all.join("\n")
        })?;
        let rows = inputs.files.iter().map(|file| &file.path);
        rows.chain(&inputs.cards).try_for_each(|path| self.saw(path))?;
        let read = read_files(&inputs.files, &read::options(op, node));
        let read = read.map_err(|error| failed(&error))?;
        let rows = read.rows.into_iter().flat_map(|batch| adopt(&self.rows, batch)).collect();
        Ok(Arc::new(Source { rows, rejects: adopt(&self.rows, read.rejects) }))
    }

    fn fingerprint(&self, _name: &str, model: &Model) -> Result<Id, String> {
        if let Backend::Checkpoint(path) = model.backend()
            && let Ok(files) = std::fs::read_dir(&path.path)
        {
            for file in files.flatten().filter(|file| file.path().is_file()) {
                self.saw(&file.path())?;
            }
        }
        models::fingerprint_by(model, &|dir| self.checkpoints.weights_id(dir))
    }

    fn estimator(&self, name: &str, model: &Model) -> Result<Option<Estimator>, String> {
        let found = self.models().estimator(model, self.asks);
        found.map_err(|error| format!("model \"{name}\": {error}"))
    }

    fn predicate(&self, sql: &str, over: Relation) -> Result<Arc<dyn Predicate>, String> {
        self.options.predicates.predicate(sql, over)
    }

    fn last(&self, node: &str) -> Option<Held> {
        let entry = self.latest.as_ref()?.manifest().nodes.get(node)?;
        let checkpoint = entry.node.checkpoint.as_ref()?;
        let recipe = checkpoint.recipe.parse().ok()?;
        Some(Held { recipe, weights: checkpoint.weights })
    }
}

/// Takes rows of a file in, each the root of its own line of descent.
fn adopt(rows: &Rows, (batch, ids): Stamped) -> Vec<Rec> {
    for row in batch.iter() {
        let root = row.id("root_id").expect("root_id is not null");
        let parents = row.ids("parents");
        rows.descend(row.row_id(), || Lineage { root, parents, sibling: 0 });
    }
    rows.keep(batch, &ids)
}

#[cfg(feature = "torch")]
fn trainer() -> Arc<dyn Trainer> {
    Arc::new(crate::model::torch::TorchTrainer { threads: cores() })
}

/// The cores that this process may use.
#[cfg(feature = "torch")]
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Stands where a trainer would, in a build that has none.
#[cfg(not(feature = "torch"))]
fn trainer() -> Arc<dyn Trainer> {
    use crate::model::{TrainError, TrainJob, Trained};

    struct NoTrainer;

    impl Trainer for NoTrainer {
        fn train(&self, _job: TrainJob) -> Result<Trained, TrainError> {
            Err(TrainError::Data("this amend was built without the feature `torch`".to_owned()))
        }
    }
    Arc::new(NoTrainer)
}
