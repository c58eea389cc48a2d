//! `generation_config.json`: what ends an answer, and how its makers would have it sampled.

use std::path::Path;

use serde::Deserialize;

use super::config::TokenIds;
use super::error::TorchError;
use crate::model::Sampling;

/// The file in a checkpoint's directory.
pub const GENERATION_FILE: &str = "generation_config.json";

/// What the file says; a directory without it says nothing.
#[derive(Default, Deserialize)]
pub struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
    #[serde(default)]
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u32>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
}

impl GenerationConfig {
    /// Reads a checkpoint's.
    pub fn read(dir: &Path) -> Result<GenerationConfig, TorchError> {
        let path = dir.join(GENERATION_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| TorchError::content(&path, error))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(GenerationConfig::default())
            }
            Err(error) => Err(TorchError::file(path)(error)),
        }
    }

    /// The tokens that end an answer: a chat model often has several, and its `config.json` names
    /// one.
    pub fn eos_token_ids(self) -> Option<Vec<i64>> {
        self.eos_token_id.map(TokenIds::into_vec)
    }

    /// How a first look at the model samples, where nothing else is asked: as its makers say, and
    /// from its whole distribution where they say nothing.
    pub fn sampling(&self, max_tokens: u32) -> Sampling {
        let is_greedy = self.do_sample == Some(false) && self.temperature.is_none();
        Sampling {
            temperature: if is_greedy { 0.0 } else { self.temperature.unwrap_or(1.0) },
            top_p: self.top_p.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            max_tokens,
            stop: Vec::new(),
            seed: None,
        }
    }
}
