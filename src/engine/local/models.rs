//! Models of a local run: entries of `models`, and checkpoints that nodes trained.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indexmap::IndexMap;

use crate::engine::dispatch::Models;
use crate::model::openai::{Dialect, OpenAi, OpenAiOptions, Profiles, Secret, Thinking as Thinks};
#[cfg(feature = "torch")]
use crate::model::torch::{DeviceChoice, Precision};
use crate::model::{Backend, Estimator};
use crate::operators::ModelRef;
use crate::operators::train::Chat;
use crate::plan::{ModelEdge, Plan, Step};
use crate::record::{Id, KeyHasher};
use crate::spec::model::{Api, Format, Scoring, Thinking};
#[cfg(feature = "torch")]
use crate::spec::model::{Device, Dtype};
use crate::spec::{Backend as Behind, Limits, Model, Name};
use crate::store::Checkpoints;

/// The models of a plan, opened when they are first asked.
pub struct LocalModels {
    limits: Limits,
    /// By the name of the entry, or of the node that trains it.
    entries: BTreeMap<String, Model>,
    checkpoints: Checkpoints,
    open: Mutex<IndexMap<(Arc<str>, Id), Arc<dyn Backend>>>,
    given: BTreeMap<String, Arc<dyn Backend>>,
    profiles: Option<Arc<dyn Profiles>>,
}

impl LocalModels {
    /// The models of a plan; `checkpoints` has the trained ones.
    pub fn new(plan: &Plan, checkpoints: Checkpoints) -> LocalModels {
        let written = plan.pipeline().models.iter();
        let mut entries: BTreeMap<String, Model> =
            written.map(|(name, model)| (name.value.clone(), model.clone())).collect();
        for (at, node) in plan.nodes.iter().enumerate() {
            if let Step::Train { .. } = node.step {
                let entry = plan.entry(&ModelEdge::Node(at)).cloned();
                entries.insert(node.name.clone(), entry.unwrap_or_else(Model::from_scratch));
            }
        }
        LocalModels {
            limits: plan.pipeline().limits.clone(),
            entries,
            checkpoints,
            open: Mutex::default(),
            given: BTreeMap::new(),
            profiles: None,
        }
    }

    /// Keeps the profiles of endpoints between runs.
    #[must_use]
    pub fn with_profiles(mut self, profiles: Arc<dyn Profiles>) -> LocalModels {
        self.profiles = Some(profiles);
        self
    }

    /// How label log-probabilities are had from an entry with `scoring: auto`: the best that its
    /// endpoint offers, which is asked unless its profile says so. Nothing for all other entries,
    /// and where it is not known and not to be asked.
    pub fn estimator(&self, entry: &Model, asks: bool) -> Result<Option<Estimator>, String> {
        let Behind::Endpoint { url, name } = entry.backend() else { return Ok(None) };
        if entry.scoring != Scoring::Auto {
            return Ok(None);
        }
        let endpoint = self.endpoint(entry, url, name)?;
        let is_chat = entry.format == Format::Chat;
        match endpoint.known_estimator(is_chat) {
            None if asks => endpoint.resolve(is_chat).map(Some),
            known => Ok(known),
        }
    }

    fn endpoint(&self, entry: &Model, url: &Name, name: &Name) -> Result<OpenAi, String> {
        let mut options = OpenAiOptions::new(url.value.clone(), name.value.clone());
        options.api_key = entry.api_key.as_ref().and_then(|key| key.reveal()).map(Secret::new);
        options.max_in_flight = entry.max_in_flight.value as usize;
        options.retries = entry.retries.unwrap_or(self.limits.retries);
        let timeout_s = entry.timeout_s.unwrap_or(self.limits.timeout_s);
        options.timeout = Duration::from_secs_f64(timeout_s.value);
        options.votes = entry.votes.value;
        options.template_args = entry.template_args.clone().into_iter().collect();
        options.chat_template = entry.chat_template.as_ref().map(|template| template.value.clone());
        options.thinking = entry.thinking.map(|thinking| match thinking.value {
            Thinking::Disabled => Thinks::Disabled,
            Thinking::BudgetTokens(tokens) => Thinks::Budget(tokens.value),
            Thinking::Effort(effort) => Thinks::Effort(effort.name()),
        });
        if is_messages(entry) {
            options.dialect = Dialect::Messages;
        }
        options.profiles.clone_from(&self.profiles);
        OpenAi::new(options).map_err(|error| error.to_string())
    }

    /// Puts another backend in place of an entry's: a test's fake.
    #[must_use]
    pub fn with(mut self, name: &str, backend: Arc<dyn Backend>) -> LocalModels {
        self.given.insert(name.to_owned(), backend);
        self
    }

    fn open(&self, model: &ModelRef) -> Result<Arc<dyn Backend>, String> {
        let name: &str = &model.name;
        if let Some(given) = self.given.get(name) {
            return Ok(Arc::clone(given));
        }
        let entry =
            self.entries.get(name).ok_or_else(|| format!("there is no model \"{name}\""))?;
        match entry.backend() {
            Behind::Endpoint { url, name } => Ok(Arc::new(self.endpoint(entry, url, name)?)),
            Behind::Checkpoint(_) => {
                let dir = self.dir(entry, model.fingerprint);
                let sound = self.checkpoints.verify_dir(&dir, model.fingerprint);
                sound.map_err(|error| format!("model \"{name}\" is not asked: {error}"))?;
                checkpoint(name, entry, &dir)
            }
        }
    }

    /// Where a checkpoint is: what a node trained, or what the entry names.
    fn dir(&self, entry: &Model, weights: Id) -> PathBuf {
        match &entry.checkpoint {
            Some(written) if !self.checkpoints.is_sound(weights) => written.path.clone(),
            _ => self.checkpoints.dir(weights),
        }
    }
}

impl Models for LocalModels {
    fn identity(&self, model: &ModelRef) -> Id {
        let name: &str = &model.name;
        match self.entries.get(name) {
            Some(entry) if !model.fingerprint.is_unknown() => {
                let number_format = number_format(entry, || self.dir(entry, model.fingerprint));
                identity(entry, number_format, model.fingerprint)
            }
            _ => model.fingerprint,
        }
    }

    fn backend(&self, model: &ModelRef) -> Result<Arc<dyn Backend>, String> {
        let key = (Arc::clone(&model.name), model.fingerprint);
        let mut open = self.open.lock().expect("no holder panics");
        if let Some(backend) = open.get(&key) {
            return Ok(Arc::clone(backend));
        }
        let backend = self.open(model)?;
        open.insert(key, Arc::clone(&backend));
        Ok(backend)
    }
}

#[cfg(feature = "torch")]
fn checkpoint(name: &str, entry: &Model, dir: &Path) -> Result<Arc<dyn Backend>, String> {
    use crate::model::torch::{CACHE_BYTES, TorchBackend, TorchOptions};
    let options = TorchOptions {
        name: name.to_owned(),
        threads: entry.threads.as_ref().map_or(1, |threads| threads.value as usize),
        replicas: entry.replicas.as_ref().map(|replicas| replicas.value as usize),
        device: device(entry.device),
        dtype: precision(entry.dtype),
        max_in_flight: match entry.max_in_flight {
            written if written.place.is_somewhere() => written.value as usize,
            _ => TorchOptions::default().max_in_flight,
        },
        cache_bytes: entry.cache_mib.as_ref().map_or(CACHE_BYTES, |mib| (mib.value as usize) << 20),
        chat_template: entry.chat_template.as_ref().map(|template| template.value.clone()),
        template_args: entry.template_args.clone().into_iter().collect(),
    };
    let open = TorchBackend::open(dir, options);
    open.map(|open| Arc::new(open) as Arc<dyn Backend>).map_err(|error| error.to_string())
}

#[cfg(not(feature = "torch"))]
fn checkpoint(name: &str, _entry: &Model, _dir: &Path) -> Result<Arc<dyn Backend>, String> {
    Err(format!("model \"{name}\" is a checkpoint, and this amend was built without `torch`"))
}

#[cfg(feature = "torch")]
fn device(written: Device) -> DeviceChoice {
    match written {
        Device::Auto => DeviceChoice::Auto,
        Device::Cpu => DeviceChoice::Cpu,
        Device::Cuda(index) => DeviceChoice::Cuda(index as usize),
    }
}

#[cfg(feature = "torch")]
fn precision(written: Dtype) -> Option<Precision> {
    match written {
        Dtype::Auto => None,
        Dtype::F32 => Some(Precision::F32),
        Dtype::Bf16 => Some(Precision::Bf16),
    }
}

/// The number format in which an entry's checkpoint computes on this machine.
#[cfg(feature = "torch")]
fn number_format(entry: &Model, dir: impl FnOnce() -> PathBuf) -> &'static str {
    match entry.dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::Auto => crate::model::torch::usual_format(device(entry.device), dir),
    }
}

/// Nothing is computed here.
#[cfg(not(feature = "torch"))]
fn number_format(_entry: &Model, _dir: impl FnOnce() -> PathBuf) -> &'static str {
    "f32"
}

/// What answers of an entry's weights depend on besides the request: how conversations become
/// text, and the number format, where it is not that of a CPU.
fn identity(entry: &Model, number_format: &str, weights: Id) -> Id {
    let is_chat = entry.format == Format::Chat;
    let is_rendered = is_chat && (entry.chat_template.is_some() || !entry.template_args.is_empty());
    let is_endpoint = matches!(entry.backend(), Behind::Endpoint { .. });
    if (is_endpoint || number_format == "f32") && !is_rendered && !is_messages(entry) {
        return weights;
    }
    let number_format = match is_endpoint {
        true if is_messages(entry) => "messages",
        true => "endpoint",
        false => number_format,
    };
    let mut hasher = KeyHasher::new("amend/model/2");
    hasher.add_id(weights);
    hasher.add_text(number_format);
    if is_rendered {
        hasher.add_text(entry.chat_template.as_ref().map_or("", |template| &template.value));
        for (name, argument) in &entry.template_args {
            hasher.add_text(name);
            hasher.add_text(&argument.to_string());
        }
    }
    if let Some(thinking) = &entry.thinking {
        hasher.add_text("thinking");
        match thinking.value {
            Thinking::Disabled => hasher.add_text("disabled"),
            Thinking::BudgetTokens(tokens) => hasher.add_u64(u64::from(tokens.value)),
            Thinking::Effort(effort) => hasher.add_text(effort.name()),
        }
    }
    hasher.id()
}

/// Whether an entry is asked by Anthropic's Messages API.
fn is_messages(entry: &Model) -> bool {
    entry.endpoint.is_some() && entry.api.is_some_and(|api| api.value == Api::Messages)
}

/// Renders conversations as the model of a checkpoint's directory reads them, where the entry's
/// format is a chat.
#[cfg(feature = "torch")]
pub(super) fn chat(entry: &Model, dir: &Path) -> Result<Option<Box<Chat>>, String> {
    use crate::model::torch::{ChatTemplate, checkpoint::read_tokenizer_files};
    if entry.format != Format::Chat {
        return Ok(None);
    }
    let template = read_tokenizer_files(dir).and_then(|files| {
        let given = entry.chat_template.as_ref().map(|template| template.value.as_str());
        let arguments = entry.template_args.clone().into_iter().collect();
        ChatTemplate::of(&files, given, &arguments)
    });
    let template = template.map_err(|error| error.to_string())?.ok_or_else(|| {
        format!(
            "{} has no chat template: set `format: transcript`, or give a `chat_template`",
            dir.display()
        )
    })?;
    Ok(Some(Box::new(move |messages, with_answer| template.render(messages, with_answer))))
}

/// Nothing is rendered where nothing is trained.
#[cfg(not(feature = "torch"))]
pub(super) fn chat(_entry: &Model, _dir: &Path) -> Result<Option<Box<Chat>>, String> {
    Ok(None)
}

/// The fingerprint of an entry of `models`: of an endpoint its declared name and revision, of a
/// checkpoint its weights.
pub fn fingerprint(entry: &Model) -> Result<Id, String> {
    fingerprint_by(entry, &weights_id)
}

/// The same, by what gives the weights id of a directory.
pub fn fingerprint_by(
    entry: &Model,
    weights_id: &dyn Fn(&Path) -> Result<Id, String>,
) -> Result<Id, String> {
    match entry.backend() {
        Behind::Endpoint { name, .. } => {
            let mut hasher = KeyHasher::new("amend/endpoint/1");
            hasher.add_text(name);
            hasher.add_text(entry.revision.as_deref().unwrap_or_default());
            hasher.add_u64(u64::from(entry.votes.value));
            Ok(hasher.id())
        }
        Behind::Checkpoint(path) => weights_id(&path.path),
    }
}

/// The weights id of a checkpoint.
#[cfg(feature = "torch")]
pub fn weights_id(dir: &Path) -> Result<Id, String> {
    crate::model::torch::checkpoint::weights_id(dir).map_err(|error| error.to_string())
}

/// The weights id of a checkpoint.
#[cfg(not(feature = "torch"))]
pub fn weights_id(dir: &Path) -> Result<Id, String> {
    Err(format!("{} is a checkpoint, and this amend was built without `torch`", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spanned;
    use crate::spec::model::Effort;

    #[test]
    fn a_call_is_another_where_the_model_is_run_otherwise_and_the_same_where_it_is_not() {
        let weights = Id::from_bits(7);
        let of = |number_format: &str, change: &dyn Fn(&mut Model)| {
            let mut entry = Model::from_scratch();
            change(&mut entry);
            identity(&entry, number_format, weights)
        };
        let arguments = |entry: &mut Model| {
            entry.template_args.insert("enable_thinking".to_owned(), false.into());
        };
        let chat = |entry: &mut Model| entry.format = Format::Chat;
        let as_usual = |_: &mut Model| ();
        assert_eq!(of("f32", &as_usual), weights);
        assert_eq!(of("f32", &arguments), weights, "a transcript has no template");
        assert_eq!(of("f32", &chat), weights, "the checkpoint's own template is in its weights id");
        let endpoint = |entry: &mut Model| {
            (entry.checkpoint, entry.endpoint) = (None, Some(Name::default()));
            entry.name = Some(Name::default());
        };
        assert_eq!(of("bf16", &endpoint), weights, "a server computes as it does");
        let messages = |entry: &mut Model| {
            endpoint(entry);
            entry.api = Some(Spanned::nowhere(Api::Messages));
        };
        let thinking = |thinking: Thinking| {
            of("f32", &move |entry| {
                messages(entry);
                entry.thinking = Some(Spanned::nowhere(thinking));
            })
        };
        let others = [
            of("bf16", &as_usual),
            of("f32", &messages),
            thinking(Thinking::Disabled),
            thinking(Thinking::BudgetTokens(Spanned::nowhere(2048))),
            thinking(Thinking::BudgetTokens(Spanned::nowhere(4096))),
            thinking(Thinking::Effort(Effort::Low)),
            thinking(Thinking::Effort(Effort::High)),
            of("f32", &|entry| {
                endpoint(entry);
                chat(entry);
                arguments(entry);
            }),
            of("f16", &as_usual),
            of("f32", &|entry| {
                chat(entry);
                arguments(entry);
            }),
        ];
        for (at, id) in others.iter().enumerate() {
            assert!(*id != weights && !others[..at].contains(id), "{at}");
        }
    }

    #[cfg(feature = "torch")]
    #[test]
    fn the_number_format_is_what_it_comes_to_on_this_machine() {
        let of = |dtype: Dtype, device: Device| {
            let entry = Model { dtype, device, ..Model::from_scratch() };
            number_format(&entry, || unreachable!("a CPU computes in f32 whatever is stored"))
        };
        assert_eq!(of(Dtype::Auto, Device::Cpu), "f32");
        assert_eq!(of(Dtype::F32, Device::Cpu), "f32");
        assert_eq!(of(Dtype::Bf16, Device::Cpu), "bf16");
    }
}
