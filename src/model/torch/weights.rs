//! Weights: the parameters of a model by name, read from and written as safetensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::config::LlamaConfig;
use super::error::TorchError;
use super::int;
use crate::record::KeyHasher;

/// The file of weights in a checkpoint's directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The list of files of weights, when there are several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The parameters of a model, sorted by name.
pub struct Weights(pub BTreeMap<String, Tensor>);

impl Weights {
    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Result<&Tensor, TorchError> {
        self.0.get(name).ok_or_else(|| TorchError::Options(format!("there is no weight {name:?}")))
    }

    /// Random weights: normal with the config's `initializer_range`, norms 1, biases 0.
    ///
    /// A tensor is a function of the seed, its name and its shape alone.
    pub fn random(config: &LlamaConfig, seed: u64) -> Weights {
        let range = config.number("initializer_range").unwrap_or(0.02);
        let tensor = |(name, shape): (String, Vec<i64>)| {
            let tensor = random_tensor(&name, &shape, range, seed);
            (name, tensor)
        };
        Weights(config.parameters().into_iter().map(tensor).collect())
    }

    /// Independent f32 copies on a device that gather gradients.
    #[must_use]
    pub fn trainable(&self, device: Device) -> Weights {
        let copy = |(name, weight): (&String, &Tensor)| {
            let weight = weight.detach().to_kind(Kind::Float).to_device(device);
            let weight = weight.copy().set_requires_grad(true);
            (name.clone(), weight)
        };
        Weights(self.0.iter().map(copy).collect())
    }

    /// Reads the weights that the config asks for, of the shapes it says.
    pub fn read(dir: &Path, config: &LlamaConfig) -> Result<Weights, TorchError> {
        let mut weights = BTreeMap::new();
        let mut wanted = config.parameters();
        let shards = shards(dir)?;
        for path in &shards {
            read_shard(path, &mut wanted, &mut weights)?;
        }
        if let Some(name) = wanted.keys().next() {
            let message = format!(
                "{} weights are missing, among them {name:?}: is the download complete, and does \
                 config.json belong to it?",
                wanted.len()
            );
            return Err(TorchError::content(shards.last().unwrap_or(&dir.to_owned()), message));
        }
        Ok(Weights(weights))
    }

    /// The content of one safetensors file, with the metadata that transformers asks for.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, TorchError> {
        let tensors = self.0.iter().map(|(name, weight)| Ok((name, Bytes::of(weight)?)));
        let tensors: Vec<(&String, Bytes)> = tensors.collect::<Result<_, TorchError>>()?;
        let views = tensors.iter().map(|(name, bytes)| (*name, bytes.view()));
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
        safetensors::serialize(views, metadata)
            .map_err(|error| TorchError::content(Path::new(WEIGHTS_FILE), error))
    }
}

/// One random tensor: norms 1, biases 0, all else normal.
pub fn random_tensor(name: &str, shape: &[i64], std: f64, seed: u64) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let values = if name.ends_with("norm.weight") {
        vec![1.0; count]
    } else if name.ends_with("bias") {
        vec![0.0; count]
    } else {
        let key = KeyHasher::new("amend/init/1").u64(seed).text(name).call_key();
        let mut random = ChaCha8Rng::from_seed(key.0);
        (0..count).map(|_| (normal(&mut random) * std) as f32).collect()
    };
    Tensor::from_slice(&values).view(shape)
}

/// A standard normal number, by Box and Muller.
fn normal(random: &mut impl RngCore) -> f64 {
    let uniform = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let (a, b) = (uniform(random.next_u64()), uniform(random.next_u64()));
    libm::sqrt(-2.0 * libm::log(a)) * libm::cos(std::f64::consts::TAU * b)
}

/// The files of weights of a directory.
pub(super) fn shards(dir: &Path) -> Result<Vec<PathBuf>, TorchError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index_path = dir.join(INDEX_FILE);
    if dir.join(WEIGHTS_FILE).exists() || !index_path.exists() {
        return Ok(vec![dir.join(WEIGHTS_FILE)]);
    }
    let text = std::fs::read_to_string(&index_path).map_err(TorchError::file(&index_path))?;
    let index: Index =
        serde_json::from_str(&text).map_err(|error| TorchError::content(&index_path, error))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if let Some(name) =
        names.iter().find(|name| name.contains(['/', '\\']) || !dir.join(name).exists())
    {
        let message = format!("names {name:?}, which is not there: complete the download");
        return Err(TorchError::content(&index_path, message));
    }
    Ok(names.iter().map(|name| dir.join(name)).collect())
}

/// Moves from `wanted` to `weights` what one file holds.
fn read_shard(
    path: &Path,
    wanted: &mut BTreeMap<String, Vec<i64>>,
    weights: &mut BTreeMap<String, Tensor>,
) -> Result<(), TorchError> {
    let bytes = std::fs::read(path).map_err(TorchError::file(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        let message = format!("is not a whole safetensors file ({error}): fetch it again");
        TorchError::content(path, message)
    })?;
    let mut views: Vec<(&str, TensorView<'_>)> = file.iter().collect();
    views.sort_unstable_by_key(|(name, _)| *name);
    for (name, view) in views {
        // A backbone saved alone has no `model.` before its names.
        let entry = wanted.remove_entry(name);
        let entry = entry.or_else(|| wanted.remove_entry(&format!("model.{name}")));
        let Some((name, shape)) = entry else { continue };
        let found: Vec<i64> = view.shape().iter().map(|&size| int(size)).collect();
        if found != shape {
            let message =
                format!("weight {name:?} has shape {found:?}, and config.json says {shape:?}");
            return Err(TorchError::content(path, message));
        }
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            Dtype::F64 => Kind::Double,
            other => {
                let message = format!("weight {name:?} is {other:?}, which does not run here");
                return Err(TorchError::content(path, message));
            }
        };
        weights.insert(name, Tensor::f_from_data_size(view.data(), &found, kind)?);
    }
    Ok(())
}

/// A tensor's content.
struct Bytes {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Bytes {
    fn of(tensor: &Tensor) -> Result<Bytes, TorchError> {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let dtype = match tensor.kind() {
            Kind::Float => Dtype::F32,
            Kind::BFloat16 => Dtype::BF16,
            Kind::Half => Dtype::F16,
            other => {
                return Err(TorchError::Options(format!(
                    "weights of kind {other:?} are not saved"
                )));
            }
        };
        let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
        let mut data = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut data, tensor.numel())?;
        Ok(Bytes { dtype, shape, data })
    }

    fn view(&self) -> TensorView<'_> {
        TensorView::new(self.dtype, self.shape.clone(), &self.data)
            .expect("the data of a tensor has the length of its shape")
    }
}
