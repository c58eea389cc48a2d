//! Text to tokens and back, where a text is continued.

use std::path::Path;

use tokenizers::Tokenizer;

use super::error::TorchError;
use crate::model::panics::caught;

/// The tokenizer's file in a checkpoint's directory.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// How many tokens before a continuation decide how its first one is written.
const CONTEXT_TOKENS: usize = 4;

/// The tokenizer of a checkpoint.
#[derive(Clone)]
pub struct TextTokenizer(Tokenizer);

/// A prompt with its continuations in tokens: where they part, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continued {
    /// The tokens of the prompt that all continuations keep.
    pub prefix: Vec<i64>,
    /// For each continuation, the tokens after the prefix.
    pub tails: Vec<Vec<i64>>,
}

impl TextTokenizer {
    /// Reads a checkpoint's `tokenizer.json`.
    pub fn read(dir: &Path) -> Result<TextTokenizer, TorchError> {
        let path = dir.join(TOKENIZER_FILE);
        let bytes = std::fs::read(&path).map_err(TorchError::file(&path))?;
        TextTokenizer::from_bytes(&bytes, &path)
    }

    /// Takes the content of a `tokenizer.json`; `path` is for messages.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<TextTokenizer, TorchError> {
        // Some damaged files are a panic of the crate that reads them.
        let read = caught(|| Tokenizer::from_bytes(bytes));
        let read = read.map_err(|_| "it is damaged".to_owned());
        let mut tokenizer =
            read.and_then(|read| read.map_err(|e| e.to_string())).map_err(|error| {
                let message =
                    format!("is not a tokenizer of Hugging Face ({error}): fetch it again");
                TorchError::content(path, message)
            })?;
        // A checkpoint may ask for padding and truncation; rows here are whole, and of their length.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| TorchError::content(path, error.to_string()))?;
        Ok(TextTokenizer(tokenizer))
    }

    /// The tokens of a text, with those that the tokenizer puts before every text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, String> {
        self.encode_with(text, true)
    }

    /// The tokens of a text that brings its own special tokens, as a rendered chat template does.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<i64>, String> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, add_special_tokens: bool) -> Result<Vec<i64>, String> {
        let encoding = self.0.encode_fast(text, add_special_tokens).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// The tokens of a prompt with each of its continuations.
    ///
    /// A tokenizer may join the end of the prompt with the beginning of a continuation. The prefix
    /// is what the prompt and all continuations begin with, so that what is scored or learnt
    /// after it is comparable.
    pub fn encode_continued(
        &self,
        prompt: &str,
        continuations: &[&str],
    ) -> Result<Continued, String> {
        self.encode_continued_with(prompt, continuations, true)
    }

    /// The same of a prompt that brings its own special tokens.
    pub fn encode_rendered_continued(
        &self,
        prompt: &str,
        continuations: &[&str],
    ) -> Result<Continued, String> {
        self.encode_continued_with(prompt, continuations, false)
    }

    fn encode_continued_with(
        &self,
        prompt: &str,
        continuations: &[&str],
        add_special_tokens: bool,
    ) -> Result<Continued, String> {
        let prompt_ids = self.encode_with(prompt, add_special_tokens)?;
        let wholes: Vec<Vec<i64>> = continuations
            .iter()
            .map(|continuation| {
                self.encode_with(&format!("{prompt}{continuation}"), add_special_tokens)
            })
            .collect::<Result<_, _>>()?;
        let kept = wholes.iter().map(|whole| common_prefix(&prompt_ids, whole)).min();
        let kept = kept.unwrap_or(prompt_ids.len());
        Ok(Continued {
            prefix: prompt_ids[..kept].to_vec(),
            tails: wholes.iter().map(|whole| whole[kept..].to_vec()).collect(),
        })
    }

    /// The text that `ids` add to a text that ends with the tokens `before`, without special
    /// tokens.
    pub fn decode_after(&self, before: &[i64], ids: &[i64]) -> String {
        let context = &before[before.len().saturating_sub(CONTEXT_TOKENS)..];
        let whole: Vec<i64> = context.iter().chain(ids).copied().collect();
        let (prefix, text) = (self.decode(context), self.decode(&whole));
        match text.strip_prefix(&prefix) {
            Some(added) => added.to_owned(),
            // The context ends inside a character.
            None => self.decode(ids),
        }
    }

    /// The text of some tokens, without special tokens.
    pub fn decode(&self, ids: &[i64]) -> String {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        self.0.decode(&ids, true).unwrap_or_default()
    }

    /// The id of a token, such as `</s>`.
    pub fn id_of(&self, token: &str) -> Option<i64> {
        self.0.token_to_id(token).map(i64::from)
    }

    /// How many tokens there are, with the added ones.
    pub fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }
}

fn common_prefix(a: &[i64], b: &[i64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
