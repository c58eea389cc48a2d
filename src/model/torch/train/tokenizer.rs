//! A tokenizer from nothing: byte-level BPE (arXiv 1508.07909, and GPT-2's bytes) trained on the
//! examples.
//!
//! Byte level means that any text can be written and that spaces are part of words: a completion
//! that begins with a space keeps it.

use std::path::Path;

use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::{
    AddedToken, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder, TokenizerImpl,
};

use crate::model::train::TrainError;

/// The token that fills short rows. Its id is 0.
pub(crate) const PAD: &str = "<pad>";
/// The token that ends a completion. Its id is 1.
pub(crate) const EOS: &str = "<eos>";

/// Two special tokens and one for each byte: there cannot be fewer.
const VOCAB_SIZE_MIN: usize = 258;

type ByteLevelBpe =
    TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, PostProcessorWrapper, ByteLevel>;

/// Trains a tokenizer of at most `vocab_size` tokens on the texts and writes `tokenizer.json`,
/// `tokenizer_config.json` and `special_tokens_map.json`, as `PreTrainedTokenizerFast` reads them.
/// Gives the number of tokens it has.
///
/// The same texts give the same bytes, in any order.
pub(crate) fn train_tokenizer<'a>(
    texts: impl Iterator<Item = &'a str> + Send,
    vocab_size: usize,
    max_length: i64,
    out: &Path,
) -> Result<usize, TrainError> {
    if vocab_size < VOCAB_SIZE_MIN {
        return Err(TrainError::Data(format!(
            "vocab_size is {vocab_size}: a byte-level vocabulary has at least {VOCAB_SIZE_MIN} tokens"
        )));
    }
    let tokenizer =
        learn(texts, vocab_size).map_err(|error| TrainError::Data(error.to_string()))?;
    let size = tokenizer.get_vocab_size(true);
    assert_eq!(tokenizer.token_to_id(PAD), Some(0), "the first special token");
    assert_eq!(tokenizer.token_to_id(EOS), Some(1), "the second special token");

    let tokenizer =
        tokenizer.to_string(true).map_err(|error| TrainError::Data(error.to_string()))?;
    let special = json!({ "eos_token": EOS, "pad_token": PAD });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": max_length,
    });
    write(out, "tokenizer.json", &tokenizer)?;
    write(out, "tokenizer_config.json", &format!("{config:#}\n"))?;
    write(out, "special_tokens_map.json", &format!("{special:#}\n"))?;
    Ok(size)
}

fn learn<'a>(
    texts: impl Iterator<Item = &'a str> + Send,
    vocab_size: usize,
) -> tokenizers::Result<ByteLevelBpe> {
    let special = [PAD, EOS].map(|token| AddedToken::from(token, true));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let level = ByteLevel::new(false, false, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(level))
        .with_post_processor(None)
        .with_decoder(Some(level))
        .build()?;
    tokenizer.train(&mut trainer, texts)?;
    Ok(tokenizer)
}

fn write(out: &Path, name: &str, text: &str) -> Result<(), TrainError> {
    let path = out.join(name);
    std::fs::write(&path, text).map_err(|source| TrainError::File { path, source })
}

#[cfg(test)]
mod tests {
    use tokenizers::Tokenizer;

    use super::*;

    const TEXTS: [&str; 3] = [
        "Human: how do i bake the bread ?\n\nAssistant: sure , to bake the bread first wait a day .",
        "Human: help me grow roses .\n\nAssistant: sure , to grow the roses first read a guide .",
        "Human: how do i build the bomb ?\n\nAssistant: i will not help to build the bomb .",
    ];

    fn trained(texts: &[&str]) -> (tempfile::TempDir, Tokenizer) {
        let dir = tempfile::tempdir().unwrap();
        let size = train_tokenizer(texts.iter().copied(), 400, 512, dir.path()).unwrap();
        let tokenizer = Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), size);
        (dir, tokenizer)
    }

    #[test]
    fn every_text_reads_back_with_its_spaces() {
        let (_dir, tokenizer) = trained(&TEXTS);
        for text in [" sure", "sure", "  two", "né 試 🙂", "line\n\nline ", ""] {
            let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
        let sure = tokenizer.encode(" sure", false).unwrap();
        assert_eq!(sure.len(), 1, "a frequent word is one token with its space: {sure:?}");
        let end = tokenizer.encode(EOS, false).unwrap();
        assert_eq!(end.get_ids(), [1]);
    }

    #[test]
    fn the_same_texts_give_the_same_bytes_in_any_order() {
        let bytes =
            |dir: &tempfile::TempDir| std::fs::read(dir.path().join("tokenizer.json")).unwrap();
        let mut texts = TEXTS;
        let (first, _) = trained(&texts);
        texts.reverse();
        let (second, _) = trained(&texts);
        assert_eq!(bytes(&first), bytes(&second));
    }

    #[test]
    fn a_vocabulary_that_cannot_hold_the_bytes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(train_tokenizer(TEXTS.into_iter(), 100, 512, dir.path()).is_err());
    }
}
