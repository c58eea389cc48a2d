//! What a checkpoint says of texts, for comparison with other readers of the same directory:
//! `cargo run --example logits -- CHECKPOINT TEXTS.json OUT.safetensors [WRITTEN [scorer]]`.
//!
//! TEXTS is a JSON list of texts, or of lists of token ids. OUT gets for text n the tensors `n.ids` (T)
//! and `n.logits` (T, V), or `n.score` (1) of a preference model. With WRITTEN the checkpoint is written
//! into that directory and read from there, and with `scorer` it first gets a head of one score.

use std::path::{Path, PathBuf};

use amend::model::torch::{Checkpoint, Head, Transformer};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

type Failure = Box<dyn std::error::Error>;

/// The seed of a new head.
const SEED: u64 = 5;

fn main() -> Result<(), Failure> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (checkpoint, texts, out, written) = match arguments.as_slice() {
        [checkpoint, texts, out] => (checkpoint, texts, out, None),
        [checkpoint, texts, out, dir] => (checkpoint, texts, out, Some((dir, false))),
        [checkpoint, texts, out, dir, how] if how == Path::new("scorer") => {
            (checkpoint, texts, out, Some((dir, true)))
        }
        _ => return Err("usage: logits CHECKPOINT TEXTS.json OUT [WRITTEN [scorer]]".into()),
    };
    let mut checkpoint = Checkpoint::read(checkpoint)?;
    if let Some((dir, is_scorer)) = written {
        if is_scorer {
            let pad_token_id = checkpoint.config.pad_token_id.unwrap_or(0);
            checkpoint = checkpoint.into_scorer(pad_token_id, SEED);
        }
        checkpoint.write(dir, "")?;
        checkpoint = Checkpoint::read(dir)?;
    }
    let model =
        Transformer::new(&checkpoint.config, &checkpoint.weights, Kind::Float, Device::Cpu)?;
    let texts: Vec<Value> = serde_json::from_slice(&std::fs::read(texts)?)?;

    let _guard = tch::no_grad_guard();
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (n, text) in texts.iter().enumerate() {
        let ids = match text.as_str() {
            Some(text) => checkpoint.tokenizer()?.encode(text)?,
            None => serde_json::from_value(text.clone())?,
        };
        let ids = Tensor::from_slice(&ids); // (T)
        let (name, said) = read(&model, &ids);
        tensors.push((format!("{n}.ids"), ids));
        tensors.push((format!("{n}.{name}"), said.contiguous()));
    }
    Tensor::write_safetensors(&tensors, out)?;
    Ok(())
}

/// The logits at each token (T, V), or the score at the last (1).
fn read(model: &Transformer, ids: &Tensor) -> (&'static str, Tensor) {
    let hidden = model.hidden(&ids.unsqueeze(0)).squeeze_dim(0); // (T, C)
    match model.config.head {
        Head::Lm => ("logits", model.logits(&hidden)),
        Head::Score => ("score", model.scores(&hidden.narrow(0, ids.size()[0] - 1, 1))),
    }
}
