//! A checkpoint: a directory in Hugging Face layout, read whole and written whole.
//!
//! What is not understood (chat templates, tokenizer settings) is carried along byte for byte, so
//! that transformers, TRL and vLLM load what was written here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::config::{CONFIG_FILE, Head, TransformerConfig};
use super::error::TorchError;
use super::generation_config::GENERATION_FILE;
use super::tokenizer::{TOKENIZER_FILE, TextTokenizer};
use super::weights::{INDEX_FILE, Weights, random_tensor, weight_files, write_synced};
use crate::record::{Id, KeyHasher};

/// More weights are written as several files, as transformers does.
const FILE_BYTES_MAX: usize = 5_000_000_000;

const CARD_FILE: &str = "README.md";

/// Files that say how text becomes tokens and how it is sampled, copied from checkpoint to
/// checkpoint.
const TOKENIZER_FILES: &[&str] = &[
    TOKENIZER_FILE,
    GENERATION_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// A model with its tokenizer.
pub struct Checkpoint {
    /// Its shape.
    pub config: TransformerConfig,
    /// Its parameters, of the kind they are stored in.
    pub weights: Weights,
    /// The files that say how text becomes tokens and how it is sampled, by name.
    pub tokenizer_files: BTreeMap<String, Vec<u8>>,
}

impl Checkpoint {
    /// Reads a directory.
    pub fn read(dir: &Path) -> Result<Checkpoint, TorchError> {
        let config = TransformerConfig::read(dir)?;
        let weights = Weights::read(dir, &config)?;
        Ok(Checkpoint { config, weights, tokenizer_files: read_tokenizer_files(dir)? })
    }

    /// The tokenizer among its files.
    pub fn tokenizer(&self) -> Result<TextTokenizer, TorchError> {
        let path = Path::new(TOKENIZER_FILE);
        match self.tokenizer_files.get(TOKENIZER_FILE) {
            Some(bytes) => TextTokenizer::from_bytes(bytes, path),
            None => Err(TorchError::content(path, "is missing in the checkpoint")),
        }
    }

    /// This backbone with a new head of one score, to become a preference model.
    ///
    /// The head begins at a normal with deviation 1/√(C + 1), a function of the seed.
    #[must_use]
    pub fn into_scorer(mut self, pad_token_id: i64, seed: u64) -> Checkpoint {
        if self.config.head == Head::Lm {
            let hidden = self.config.hidden_size;
            let std = 1.0 / ((hidden + 1) as f64).sqrt();
            let score = random_tensor("score.weight", &[1, hidden], std, seed);
            self.weights.0.remove(&self.config.head_name());
            self.weights.0.insert("score.weight".to_owned(), score);
        }
        self.config = self.config.with_head(Head::Score, pad_token_id);
        self
    }

    /// Writes into a directory that exists, every file synced, and then the directory. The caller
    /// renames it: so a checkpoint is there whole or not at all.
    ///
    /// `card` is the text of the model card.
    pub fn write(&self, dir: &Path, card: &str) -> Result<(), TorchError> {
        write_synced(&dir.join(CONFIG_FILE), self.config.json().as_bytes())?;
        let writes = self.config.head == Head::Lm;
        if writes && !self.tokenizer_files.contains_key(GENERATION_FILE) {
            write_synced(&dir.join(GENERATION_FILE), self.generation_config().as_bytes())?;
        }
        for (name, bytes) in &self.tokenizer_files {
            if writes || name != GENERATION_FILE {
                write_synced(&dir.join(name), bytes)?;
            }
        }
        write_synced(&dir.join(CARD_FILE), card.as_bytes())?;
        self.weights.write(dir, FILE_BYTES_MAX)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(TorchError::file(dir))
    }

    fn generation_config(&self) -> String {
        let eos = match self.config.eos_token_ids.as_slice() {
            [one] => json!(one),
            many => json!(many),
        };
        let config = json!({
            "_from_model_config": true,
            "bos_token_id": self.config.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": self.config.pad_token_id,
        });
        serde_json::to_string_pretty(&config).expect("its keys are text") + "\n"
    }
}

/// The files of a directory that say how text becomes tokens and how it is sampled.
pub fn read_tokenizer_files(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, TorchError> {
    let mut files = BTreeMap::new();
    for name in TOKENIZER_FILES {
        let path = dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => {
                files.insert((*name).to_owned(), bytes);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(TorchError::file(path)(error)),
        }
    }
    Ok(files)
}

/// The identity of a checkpoint: the hash of everything in it that an answer depends on.
///
/// That is config (and with it the dtype), weights, tokenizer, chat template and end tokens. The
/// model card is not in it, nor is the name of the directory.
pub fn weights_id(dir: &Path) -> Result<Id, TorchError> {
    let mut paths: Vec<PathBuf> = weight_files(dir)?;
    paths.push(dir.join(CONFIG_FILE));
    let optional = [INDEX_FILE].iter().chain(TOKENIZER_FILES);
    paths.extend(optional.map(|name| dir.join(name)).filter(|path| path.exists()));
    paths.sort();

    let mut hasher = KeyHasher::new("amend/weights/1");
    for path in &paths {
        hasher.add_text(&path.file_name().unwrap_or_default().to_string_lossy());
        hasher.add_bytes(hash_file(path).map_err(TorchError::file(path))?.as_bytes());
    }
    Ok(hasher.id())
}

fn hash_file(path: &Path) -> std::io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            count => {
                hasher.update(&buffer[..count]);
            }
        }
    }
}
