//! The local model that `chat` and `serve` open: a checkpoint's directory, or what a node trained.

use std::path::{Path, PathBuf};

use super::args::{Common, ModelArgs};
use super::failure::Usage;
use super::files;
use crate::model::torch::{
    CACHE_BYTES, DeviceChoice, GenerationConfig, Precision, TorchBackend, TorchOptions,
    is_preference_model, weights_id,
};
use crate::model::{Prompt, Sampling};
use crate::record::{Id, Message, transcript};
use crate::spec::model::{Device, Dtype};
use crate::store::Store;

/// A model that is open.
pub(super) struct LocalModel {
    /// What it is called: the node, or the directory's name.
    pub(super) name: String,
    /// What it is, in a few digits: a checkpoint of other weights has others.
    pub(super) fingerprint: String,
    /// Who answers.
    pub(super) backend: TorchBackend,
    /// How its makers would have it sampled.
    generation: GenerationConfig,
    /// Whether it has a chat template; else it is spoken to in transcripts.
    has_template: bool,
}

impl LocalModel {
    /// Opens what is named on the command line.
    pub(super) fn open(args: &ModelArgs, common: &Common) -> anyhow::Result<LocalModel> {
        let (name, dir, weights) = find(args, common)?;
        if is_preference_model(&dir)? {
            let message =
                format!("\"{name}\" is a preference model: it scores, and writes nothing");
            return Err(Usage::new(message).into());
        }
        let options = TorchOptions {
            name: name.clone(),
            threads: args.threads.unwrap_or(1) as usize,
            replicas: args.replicas.map(|replicas| replicas as usize),
            device: match args.device {
                Device::Auto => DeviceChoice::Auto,
                Device::Cpu => DeviceChoice::Cpu,
                Device::Cuda(index) => DeviceChoice::Cuda(index as usize),
            },
            dtype: match args.dtype {
                Dtype::Auto => None,
                Dtype::F32 => Some(Precision::F32),
                Dtype::Bf16 => Some(Precision::Bf16),
            },
            max_in_flight: 64,
            cache_bytes: args.cache_mib.map_or(CACHE_BYTES, |mib| (mib as usize) << 20),
            ..TorchOptions::default()
        };
        let generation = GenerationConfig::read(&dir)?;
        let backend = TorchBackend::open(&dir, options)?;
        let has_template = backend.has_chat_template();
        let fingerprint = format!("amend-{}", &weights.to_string()[..12]);
        Ok(LocalModel { name, fingerprint, backend, generation, has_template })
    }

    /// How it is sampled where nothing else is asked.
    pub(super) fn sampling(&self, max_tokens: u32) -> Sampling {
        self.generation.sampling(max_tokens)
    }

    /// Whether it is spoken to in transcripts: its answers then begin with a space.
    pub(super) fn is_transcript(&self) -> bool {
        !self.has_template
    }

    /// What it reads to answer a conversation; a transcript also ends where the human speaks again.
    pub(super) fn prompt(&self, messages: Vec<Message>, sampling: &mut Sampling) -> Prompt {
        if self.has_template {
            return Prompt::Messages(messages);
        }
        sampling.stop.push(transcript::HUMAN.to_owned());
        let turns = messages.iter().map(|turn| (turn.role.as_str(), turn.content.as_str()));
        let mut text = transcript::render(turns);
        if messages.last().is_none_or(|last| last.role != "assistant") {
            text.push_str(transcript::ASSISTANT);
        }
        Prompt::Text(text)
    }
}

/// The model's name, its directory and its weights id, which the files of the directory make.
fn find(args: &ModelArgs, common: &Common) -> anyhow::Result<(String, PathBuf, Id)> {
    let named = args.model.as_str();
    let dir = Path::new(named);
    if dir.join("config.json").is_file() {
        let absolute = dir.canonicalize()?;
        let name = absolute.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights = weights_id(dir)?;
        return match kept_as(&absolute) {
            Some(kept) if kept != weights => Err(anyhow::anyhow!(
                "the checkpoint \"{}\" is damaged: its files make the weights id {weights}, which is \
                 not its name; run its pipeline again, which trains it again",
                absolute.display()
            )),
            _ => Ok((name, dir.to_owned(), weights)),
        };
    }
    if dir.is_dir() || named.contains(['/', '\\']) {
        let message = format!("\"{named}\" is no checkpoint: there is no config.json in it");
        let help = "name a directory in Hugging Face layout, or a node that trains a model";
        return Err(Usage::new(message).help(help).into());
    }
    let reader = files::reader(&args.which, common)?;
    let snapshot = reader.snapshot(&args.at)?;
    let nodes = &snapshot.manifest().nodes;
    let Some(checkpoint) = nodes.get(named).and_then(|entry| entry.node.checkpoint.as_ref()) else {
        let trained = nodes.iter().filter(|(_, entry)| entry.node.checkpoint.is_some());
        let trained: Vec<&str> = trained.map(|(name, _)| name.as_str()).collect();
        let usage =
            Usage::new(format!("\"{named}\" is neither a directory nor a node with a model"));
        return Err(match trained.as_slice() {
            [] => usage.help("no node of this snapshot has trained one: name a directory"),
            names => usage.help(format!("nodes with a model: {}", names.join(", "))),
        }
        .into());
    };
    let checkpoints = Store::new(&files::store(&args.which, common)?).checkpoints();
    let dir = checkpoints.dir(checkpoint.weights);
    if !dir.is_dir() {
        anyhow::bail!(
            "the checkpoint of \"{named}\" is lost: {} is not there; run its pipeline again, which \
             trains it again",
            dir.display()
        );
    }
    checkpoints.verify(checkpoint.weights)?;
    Ok((named.to_owned(), dir, checkpoint.weights))
}

/// The weights id of which a directory has the name, where it is one of a store's checkpoints.
fn kept_as(dir: &Path) -> Option<Id> {
    let is_kept = dir.parent()?.file_name()? == "checkpoints";
    is_kept.then(|| dir.file_name()?.to_str()?.parse().ok())?
}
