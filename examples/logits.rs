//! What a checkpoint says of texts, for comparison with other readers of the same directory:
//! `cargo run --example logits -- CHECKPOINT TEXTS.json OUT.safetensors`.
//!
//! TEXTS is a JSON list of texts. OUT gets for text n the tensors `n.ids` (T) and `n.logits` (T, V),
//! or `n.score` (1) of a preference model.

use std::path::PathBuf;

use amend::model::torch::{Checkpoint, Head, Llama, TextTokenizer};
use tch::{Device, Kind, Tensor};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [checkpoint, texts, out] = arguments.as_slice() else {
        return Err("usage: logits CHECKPOINT TEXTS.json OUT.safetensors".into());
    };
    let checkpoint = Checkpoint::read(checkpoint)?;
    let tokenizer = checkpoint.tokenizer()?;
    let llama = Llama::new(&checkpoint.config, &checkpoint.weights, Kind::Float, Device::Cpu)?;
    let texts: Vec<String> = serde_json::from_slice(&std::fs::read(texts)?)?;

    let _guard = tch::no_grad_guard();
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (n, text) in texts.iter().enumerate() {
        let (ids, said) = read(&llama, &tokenizer, text)?;
        let name = match llama.config.head {
            Head::Lm => "logits",
            Head::Score => "score",
        };
        tensors.push((format!("{n}.ids"), ids));
        tensors.push((format!("{n}.{name}"), said.contiguous()));
    }
    Tensor::write_safetensors(&tensors, out)?;
    Ok(())
}

/// The tokens of a text (T), and the logits at each (T, V) or the score at the last (1).
fn read(llama: &Llama, tokenizer: &TextTokenizer, text: &str) -> Result<(Tensor, Tensor), Failure> {
    let ids = Tensor::from_slice(&tokenizer.encode(text)?); // (T)
    let hidden = llama.hidden(&ids.unsqueeze(0)).squeeze_dim(0); // (T, C)
    let said = match llama.config.head {
        Head::Lm => llama.logits(&hidden),
        Head::Score => llama.scores(&hidden.narrow(0, ids.size()[0] - 1, 1)),
    };
    Ok((ids, said))
}
