//! The numbers of a Llama against transformers: the checkpoints of `../shared/conformance`, and a
//! small one of our own.

use std::path::{Path, PathBuf};

use amend::model::Sampling;
use amend::model::torch::{Checkpoint, Continuation, Head, Llama, generate};
use safetensors::SafeTensors;
use tch::{Device, Kind, Tensor};

/// The directory of the shared checkpoints; none, said on stderr, where it is not.
fn shared() -> Option<PathBuf> {
    let given = std::env::var_os("AMEND_CONFORMANCE").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/conformance");
    let dir = given.unwrap_or(beside);
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("skipped: {} is not there (AMEND_CONFORMANCE names another)", dir.display());
    None
}

fn expected(dir: &Path, name: &str) -> Tensor {
    let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    let kind = match view.dtype() {
        safetensors::Dtype::I64 => Kind::Int64,
        _ => Kind::Float,
    };
    Tensor::from_data_size(view.data(), &shape, kind)
}

fn model(dir: &Path) -> (Checkpoint, Llama) {
    let checkpoint = Checkpoint::read(dir).unwrap();
    let llama =
        Llama::new(&checkpoint.config, &checkpoint.weights, Kind::Float, Device::Cpu).unwrap();
    (checkpoint, llama)
}

/// The largest difference from transformers at tokens that are not padding.
fn difference(dir: &Path) -> f64 {
    let _guard = tch::no_grad_guard();
    tch::set_num_threads(1);
    let (checkpoint, llama) = model(dir);
    let attention_mask = expected(dir, "attention_mask");
    let mask = llama.padding_mask(&attention_mask);
    let (ids, positions) = (expected(dir, "input_ids"), expected(dir, "position_ids"));
    let difference = |llama: &Llama| {
        let hidden = llama.hidden_at(&ids, &positions, &mask);
        match checkpoint.config.head {
            Head::Lm => {
                let error = (llama.logits(&hidden) - expected(dir, "logits")).abs();
                (error * attention_mask.unsqueeze(-1)).max().double_value(&[])
            }
            Head::Score => {
                let last = (attention_mask.cumsum(1, Kind::Int64).argmax(-1, false)).view([-1, 1]);
                let scores = llama.scores(&hidden).gather(1, &last, false); // (B, 1)
                (scores - expected(dir, "scores")).abs().max().double_value(&[])
            }
        }
    };
    difference(&llama).max(difference(&llama.stacked()))
}

#[test]
fn the_shared_llamas_give_the_numbers_of_transformers() {
    let Some(dir) = shared() else { return };
    for case in
        ["llama_mha", "llama_gqa_tied_theta", "llama3_ropescale", "llama_bias", "llama_seqcls"]
    {
        let difference = difference(&dir.join(case));
        eprintln!("{case}: largest difference {difference:.1e}");
        assert!(difference < 1e-4, "{case}: {difference:e}");
    }
}
