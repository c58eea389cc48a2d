//! A learner: a model with its tokenizer whose weights gather gradients.

use std::cell::RefCell;
use std::path::Path;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::lora::Lora;
use super::optimizer::AdamW;
use super::rows::{MicroBatch, Row};
use super::tokenizer::{EOS, PAD, train_tokenizer};
use crate::model::torch::checkpoint::read_tokenizer_files;
use crate::model::torch::transformer::Tape;
use crate::model::torch::{
    Checkpoint, DeviceChoice, Head, TextTokenizer, TorchError, Transformer, TransformerConfig,
    Weights, weights_id,
};
use crate::model::train::{self, Compute, Dtype, Init, Optim, Scratch, TrainError};
use crate::record::Id;

/// The texts that a tokenizer is learnt from when a model begins from nothing.
pub(super) struct Texts<'a>(pub(super) &'a [&'a str]);

/// Why an example is left out: the reason and what was seen.
pub(super) type Rejection = (String, String);

/// A model under training, or frozen beside one.
pub(super) struct Learner {
    checkpoint: Checkpoint,
    transformer: Transformer,
    tokenizer: TextTokenizer,
    eos: i64,
    /// The kind that the weights are stored in; they learn in f32.
    stored: Kind,
    /// The kind and the device that it computes with.
    place: (Kind, Device),
    /// What learns, where it is not all weights, and the model that it is a change of.
    lora: Option<(Lora, String)>,
    /// Whether what is inside the blocks is computed again for the gradients.
    recomputes: bool,
    /// The last forward pass, until its gradients are carried back.
    tape: RefCell<Option<Tape>>,
}

impl Learner {
    /// The model that a training begins with, under the head that it is to have.
    ///
    /// From nothing, the tokenizer is learnt from the texts and written to `out` at once.
    pub(super) fn begin(
        init: &Init,
        head: Head,
        seed: u64,
        texts: &Texts<'_>,
        out: &Path,
        compute: &Compute,
    ) -> Result<Learner, TrainError> {
        let checkpoint = match init {
            Init::Checkpoint(dir) => Checkpoint::read(dir).map_err(refused)?,
            Init::Scratch(scratch) => from_nothing(scratch, seed, texts, out)?,
        };
        let checkpoint = match (head, checkpoint.config.head) {
            (Head::Score, Head::Lm) => {
                let pad = pad_of(&checkpoint)?;
                checkpoint.into_scorer(pad, seed)
            }
            (Head::Lm, Head::Score) => {
                return Err(TrainError::Data(
                    "init is a preference model, which writes no text: begin at a language model"
                        .to_owned(),
                ));
            }
            _ => checkpoint,
        };
        Learner::of(checkpoint, compute)
    }

    /// The model of a checkpoint's directory, which must have that head.
    pub(super) fn read(dir: &Path, head: Head, compute: &Compute) -> Result<Learner, TrainError> {
        let checkpoint = Checkpoint::read(dir).map_err(refused)?;
        if checkpoint.config.head != head {
            return Err(TrainError::Data(format!(
                "{}: is {}",
                dir.display(),
                match head {
                    Head::Lm => "a preference model, not a language model",
                    Head::Score => "a language model, not a preference model",
                }
            )));
        }
        Learner::of(checkpoint, compute)
    }

    fn of(mut checkpoint: Checkpoint, compute: &Compute) -> Result<Learner, TrainError> {
        let stored = checkpoint.config.dtype;
        let tokenizer = checkpoint.tokenizer().map_err(refused)?;
        let (kind, device) = place(compute, stored)?;
        checkpoint.weights = checkpoint.weights.trainable(device);
        let transformer = Transformer::new(&checkpoint.config, &checkpoint.weights, kind, device)
            .map_err(refused)?;
        let eos = *checkpoint.config.eos_token_ids.first().ok_or_else(|| {
            TrainError::Data(
                "config.json has no eos_token_id: nothing would end an answer".to_owned(),
            )
        })?;
        Ok(Learner {
            checkpoint,
            transformer,
            tokenizer,
            eos,
            stored,
            place: (kind, device),
            lora: None,
            recomputes: compute.gradient_checkpointing,
            tape: RefCell::default(),
        })
    }

    /// The same model with a low-rank change to be learnt, if the settings say so.
    pub(super) fn adapted(mut self, init: &Init, optim: &Optim) -> Result<Learner, TrainError> {
        let Some(settings) = &optim.lora else { return Ok(self) };
        let Init::Checkpoint(base) = init else {
            return Err(TrainError::Data(
                "lora changes a model that is there: name one for `init`".to_owned(),
            ));
        };
        let lora = Lora::new(&self.checkpoint.weights, settings, optim.seed)?;
        self.lora = Some((lora, base.display().to_string()));
        Ok(self)
    }

    /// The same model, which learns nothing and is only run: on a processor in f32 by kernels. In 16
    /// bits they would multiply in 32, which for many tokens at once is slower.
    pub(super) fn frozen(mut self) -> Learner {
        if self.place == (Kind::Float, Device::Cpu) {
            self.transformer = self.transformer.stacked();
            self.checkpoint.weights = Weights::default();
        }
        self
    }

    /// One step of the optimizer over its weights; gives the norm of the gradients.
    pub(super) fn step(&mut self, adamw: &mut AdamW, rate: f64) -> Result<f64, TrainError> {
        if let Some((lora, _)) = &self.lora {
            lora.gather(&self.checkpoint.weights);
        }
        let norm = adamw.step(rate);
        let weights = adamw.renewed();
        let whole = &mut self.checkpoint.weights;
        if let Some((lora, _)) = &mut self.lora {
            lora.hold(weights, whole);
        } else {
            whole.0.values_mut().zip(weights).for_each(|(own, renewed)| *own = renewed);
        }
        self.refresh()?;
        Ok(norm)
    }

    /// Takes in that what learns has changed: a low-rank change is merged, and the model is one of the
    /// weights that there are now; where it computes in another kind, gradients flow back through
    /// the copying.
    pub(super) fn refresh(&mut self) -> Result<(), TrainError> {
        if let Some((lora, _)) = &self.lora {
            lora.merge(&self.checkpoint.weights);
        }
        let ((kind, device), Checkpoint { config, weights, .. }) = (self.place, &self.checkpoint);
        self.transformer = Transformer::new(config, weights, kind, device).map_err(refused)?;
        Ok(())
    }

    /// The kind that it computes in.
    pub(super) fn kind(&self) -> Kind {
        self.place.0
    }

    /// What learns, in order of the weights' names.
    pub(super) fn weights(&self) -> Vec<Tensor> {
        if let Some((lora, _)) = &self.lora {
            return lora.trainable(&self.checkpoint.weights);
        }
        self.checkpoint.weights.0.values().map(Tensor::shallow_clone).collect()
    }

    /// The model itself.
    pub(super) fn transformer(&self) -> &Transformer {
        &self.transformer
    }

    /// The model to write texts with: on a processor in f32, whatever it learns in, because there are
    /// kernels for that, and a token at a time 16 bits bring nothing.
    pub(super) fn sampler(&self) -> Result<Transformer, TrainError> {
        let (kind, device) = self.place;
        if kind == Kind::Float || device != Device::Cpu {
            return Ok(self.transformer.stacked());
        }
        let _guard = tch::no_grad_guard();
        let Checkpoint { config, weights, .. } = &self.checkpoint;
        Ok(Transformer::new(config, weights, Kind::Float, device).map_err(refused)?.stacked())
    }

    /// Its tokenizer.
    pub(super) fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Where it computes.
    pub(super) fn device(&self) -> Device {
        self.transformer.device
    }

    /// The most tokens that it can read.
    pub(super) fn length_max(&self) -> usize {
        self.transformer.config.max_position_embeddings
    }

    /// The states from which a micro-batch is predicted or scored, as the head sees them.
    pub(super) fn states(&self, micro: &MicroBatch) -> Tensor {
        let shared = micro.shared.as_ref().map(|shared| (&shared.positions, &shared.mask));
        if self.recomputes {
            let learns = self.checkpoint.weights.0.values().any(Tensor::requires_grad);
            let (states, tape) =
                self.transformer.hidden_taped(&micro.ids, shared, &micro.positions, learns);
            *self.tape.borrow_mut() = tape;
            return states; // (N, d)
        }
        self.transformer.hidden_wanted(&micro.ids, shared, &micro.positions) // (N, d)
    }

    /// Gathers the gradients of a loss of the states that were given last.
    pub(super) fn backward(&self, loss: &Tensor) {
        loss.backward();
        if let Some(tape) = self.tape.take() {
            self.transformer.backward(&tape);
        }
    }

    /// The logits of states.
    pub(super) fn logits(&self, hidden: &Tensor) -> Tensor {
        self.transformer.logits(hidden) // (N, d) -> (N, V)
    }

    /// The scores of states.
    pub(super) fn scores(&self, hidden: &Tensor) -> Tensor {
        self.transformer.scores(hidden) // (N, d) -> (N)
    }

    /// The tokens of a prompt.
    pub(super) fn prompt(&self, text: &str) -> Result<Vec<i64>, TrainError> {
        let tokens = self.tokenizer.encode(text).map_err(TrainError::Data)?;
        Ok(self.without_second_bos(tokens))
    }

    /// The tokens of a prompt with its completion and the end token.
    pub(super) fn text(&self, prompt: &str, completion: &str) -> Result<Row, TrainError> {
        let mut continued =
            self.tokenizer.encode_continued(prompt, &[completion]).map_err(TrainError::Data)?;
        let tail = continued.tails.pop().unwrap_or_default();
        let prompt = self.without_second_bos(continued.prefix);
        Ok(Row::new(&prompt, &[tail.as_slice(), &[self.eos]].concat()))
    }

    /// The tokens of a prompt with each of two continuations, without the end token.
    pub(super) fn choices(&self, prompt: &str, tails: [&str; 2]) -> Result<[Row; 2], TrainError> {
        let continued =
            self.tokenizer.encode_continued(prompt, &tails).map_err(TrainError::Data)?;
        let prefix = self.without_second_bos(continued.prefix);
        let row = |at: usize| Row::new(&prefix, &continued.tails[at]);
        Ok([row(0), row(1)])
    }

    /// A rendered chat brings its own first token, and the tokenizer puts another before it.
    fn without_second_bos(&self, mut tokens: Vec<i64>) -> Vec<i64> {
        let bos = self.transformer.config.bos_token_id;
        if tokens.len() >= 2 && Some(tokens[0]) == bos && tokens[0] == tokens[1] {
            tokens.remove(0);
        }
        tokens
    }

    /// The same, or why the example is left out.
    pub(super) fn row(
        &self,
        prompt: &str,
        completion: &str,
        length_max: usize,
    ) -> Result<Result<Row, Rejection>, TrainError> {
        if completion.trim().is_empty() {
            return Ok(Err(("empty".to_owned(), "the completion is empty".to_owned())));
        }
        let row = self.text(prompt, completion)?;
        if row.tokens.len() > length_max {
            let detail = format!("{} tokens, of at most {length_max}", row.tokens.len());
            return Ok(Err(("too_long".to_owned(), detail)));
        }
        Ok(Ok(row))
    }

    /// Whether both read the same tokens.
    pub(super) fn has_tokenizer_of(&self, other: &Learner) -> bool {
        let file =
            |learner: &Learner| learner.checkpoint.tokenizer_files.get("tokenizer.json").cloned();
        file(self) == file(other)
    }

    /// A number in its config, such as `mean`.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.checkpoint.config.number(key)
    }

    /// Puts a number into its config.
    pub(super) fn set_number(&mut self, key: &str, value: f64) {
        self.checkpoint.config.set(key, Value::from(value));
    }

    /// Writes the checkpoint, in the kind that it was read in; gives its weights id.
    pub(super) fn save(&self, out: &Path, training: &str) -> Result<Id, TrainError> {
        let Checkpoint { config, weights, tokenizer_files } = &self.checkpoint;
        let _guard = tch::no_grad_guard();
        let is_finite = |weight: &Tensor| weight.detach().isfinite().all().int64_value(&[]) != 0;
        if let Some((name, _)) = weights.0.iter().find(|(_, weight)| !is_finite(weight)) {
            return Err(TrainError::Data(format!(
                "after the last step the weight \"{name}\" is not all numbers: lower the learning rate"
            )));
        }
        let stored = |(name, weight): (&String, &Tensor)| {
            (name.clone(), weight.detach().to_kind(self.stored))
        };
        let saved = Checkpoint {
            config: config.clone(),
            weights: Weights(weights.0.iter().map(stored).collect()),
            tokenizer_files: tokenizer_files.clone(),
        };
        saved.write(out, &card(config, training)).map_err(refused)?;
        if let Some((lora, base)) = &self.lora {
            lora.write(out, base, config.head, weights)?;
        }
        weights_id(out).map_err(refused)
    }
}

/// The kind and the device that a model of that stored kind computes with.
fn place(compute: &Compute, stored: Kind) -> Result<(Kind, Device), TrainError> {
    let choice = match compute.device {
        train::Device::Auto => DeviceChoice::Auto,
        train::Device::Cpu => DeviceChoice::Cpu,
        train::Device::Cuda(index) => DeviceChoice::Cuda(index as usize),
    };
    let device = choice.device().map_err(refused)?;
    let kind = match compute.dtype {
        Dtype::Bf16 => Kind::BFloat16,
        // Half floats overflow in training; brain floats do not.
        Dtype::Auto if device.is_cuda() && stored == Kind::BFloat16 => Kind::BFloat16,
        Dtype::Auto | Dtype::F32 => Kind::Float,
    };
    Ok((kind, device))
}

/// A random model with a tokenizer learnt from the texts.
fn from_nothing(
    scratch: &Scratch,
    seed: u64,
    texts: &Texts<'_>,
    out: &Path,
) -> Result<Checkpoint, TrainError> {
    let length = scratch.max_position_embeddings;
    let vocab_size = train_tokenizer(texts.0.iter().copied(), scratch.vocab_size, length, out)?;
    let tokenizer = TextTokenizer::read(out).map_err(refused)?;
    let id =
        |token| tokenizer.id_of(token).expect("the tokenizer was made with its special tokens");
    let config = TransformerConfig::scratch(scratch, vocab_size, None, id(EOS), id(PAD));
    let weights = Weights::random(&config, seed);
    let tokenizer_files = read_tokenizer_files(out).map_err(refused)?;
    Ok(Checkpoint { config, weights, tokenizer_files })
}

/// The token that fills rows of a preference model. Readers find the end of a row by it, so it
/// must not be the token that rows end with.
fn pad_of(checkpoint: &Checkpoint) -> Result<i64, TrainError> {
    let config = &checkpoint.config;
    let tokenizer = checkpoint.tokenizer().map_err(refused)?;
    let named = ["<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<unk>"];
    let candidates = config
        .pad_token_id
        .into_iter()
        .chain(named.iter().filter_map(|token| tokenizer.id_of(token)));
    let found = candidates.chain(config.bos_token_id).find(|id| !config.eos_token_ids.contains(id));
    found.ok_or_else(|| {
        TrainError::Data("the tokenizer has no token to pad with but its end token: set pad_token_id in config.json".to_owned())
    })
}

fn card(config: &TransformerConfig, training: &str) -> String {
    let kind = match config.head {
        Head::Lm => "text-generation",
        Head::Score => "text-classification",
    };
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: {kind}\ntags: [amend, constitutional-ai]\n---\n\nTrained by amend: `{training}`.\n"
    )
}

/// The error of a training for that of the local model.
pub(super) fn refused(error: TorchError) -> TrainError {
    match error {
        TorchError::File { path, source } => TrainError::File { path, source },
        TorchError::Torch(error) => TrainError::Torch(error.to_string()),
        other => TrainError::Data(other.to_string()),
    }
}

#[cfg(test)]
impl Learner {
    /// Its low-rank change.
    pub(super) fn lora(&self) -> &Lora {
        &self.lora.as_ref().unwrap().0
    }

    /// The weights with their names.
    pub(super) fn named_weights(&self) -> Vec<(String, Tensor)> {
        let named = self.checkpoint.weights.0.iter();
        named.map(|(name, weight)| (name.clone(), weight.shallow_clone())).collect()
    }

    /// The language model of a directory as a preference model of the given head.
    pub(super) fn scorer_with(dir: &Path, head: &Tensor) -> Learner {
        let mut checkpoint = Checkpoint::read(dir).unwrap().into_scorer(0, 0);
        checkpoint.weights.0.insert("score.weight".to_owned(), head.shallow_clone());
        Learner::of(checkpoint, &Compute::default()).unwrap()
    }
}
