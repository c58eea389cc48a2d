//! Weights: the parameters of a model by name, read from and written as safetensors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorView};
use serde::Deserialize;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::config::TransformerConfig;
use super::error::TorchError;
use crate::record::KeyHasher;

/// The file of weights in a checkpoint's directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The list of files of weights, when there are several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// No header of a safetensors file is longer.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The parameters of a model, sorted by name.
#[derive(Default)]
pub struct Weights(pub BTreeMap<String, Tensor>);

impl Weights {
    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Result<&Tensor, TorchError> {
        self.0.get(name).ok_or_else(|| TorchError::Options(format!("there is no weight {name:?}")))
    }

    /// Random weights: normal with the config's `initializer_range`, norms 1, biases 0.
    ///
    /// A tensor is a function of the seed, its name and its shape alone.
    pub fn random(config: &TransformerConfig, seed: u64) -> Weights {
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

    /// Reads the weights that the config asks for, of the shapes it says, one by one: beside them
    /// no file is held.
    pub fn read(dir: &Path, config: &TransformerConfig) -> Result<Weights, TorchError> {
        let mut weights = BTreeMap::new();
        let mut wanted = config.parameters();
        let files = weight_files(dir)?;
        for path in &files {
            WeightFile::open(path)?.take(config, &mut wanted, &mut weights)?;
        }
        if let Some(name) = wanted.keys().next() {
            let message = format!(
                "{} weights are missing, among them {name:?}: is the download complete, and does \
                 config.json belong to it?",
                wanted.len()
            );
            return Err(TorchError::content(files.last().unwrap_or(&dir.to_owned()), message));
        }
        Ok(Weights(weights))
    }

    /// The content of one safetensors file.
    pub(super) fn to_safetensors(&self) -> Result<Vec<u8>, TorchError> {
        to_safetensors(&self.0.iter().collect())
    }

    /// Writes one file, or several with their index where one would have more than `bytes_max`.
    /// Every file is synced; those that the directory had before are the caller's to remove.
    pub fn write(&self, dir: &Path, bytes_max: usize) -> Result<(), TorchError> {
        let sizes =
            self.0.values().map(|weight| weight.numel() * weight.kind().elt_size_in_bytes());
        let mut files: Vec<BTreeMap<&String, &Tensor>> = vec![BTreeMap::new()];
        let (mut bytes, mut bytes_all) = (0, 0);
        for ((name, weight), size) in self.0.iter().zip(sizes) {
            if bytes + size > bytes_max && bytes > 0 {
                files.push(BTreeMap::new());
                bytes = 0;
            }
            files.last_mut().expect("there is a first file").insert(name, weight);
            bytes += size;
            bytes_all += size;
        }
        let count = files.len();
        if count == 1 {
            return write_synced(&dir.join(WEIGHTS_FILE), &to_safetensors(&files[0])?);
        }
        let mut map = BTreeMap::new();
        for (index, weights) in files.iter().enumerate() {
            let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
            write_synced(&dir.join(&file), &to_safetensors(weights)?)?;
            map.extend(weights.keys().map(|name| (*name, file.clone())));
        }
        let index = json!({ "metadata": { "total_size": bytes_all }, "weight_map": map });
        let text = serde_json::to_string_pretty(&index).expect("its keys are text") + "\n";
        write_synced(&dir.join(INDEX_FILE), text.as_bytes())
    }
}

/// Writes a file and waits until it is on the disk.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), TorchError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(TorchError::file(path))
}

/// The content of one safetensors file, with the metadata that transformers asks for.
fn to_safetensors(weights: &BTreeMap<&String, &Tensor>) -> Result<Vec<u8>, TorchError> {
    let tensors = weights.iter().map(|(name, weight)| Ok((*name, Bytes::of(weight)?)));
    let tensors: Vec<(&String, Bytes)> = tensors.collect::<Result<_, TorchError>>()?;
    let views = tensors.iter().map(|(name, bytes)| (*name, bytes.view()));
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize(views, metadata)
        .map_err(|error| TorchError::content(Path::new(WEIGHTS_FILE), error))
}

/// One random tensor: norms 1, biases 0, all else normal.
pub fn random_tensor(name: &str, shape: &[i64], std: f64, seed: u64) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let values = if shape.len() == 1 && name.ends_with("weight") {
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
pub(super) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, TorchError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    if dir.join(WEIGHTS_FILE).exists() {
        return Ok(vec![dir.join(WEIGHTS_FILE)]);
    }
    let index_path = dir.join(INDEX_FILE);
    if !index_path.exists() {
        return Err(no_weights(dir));
    }
    let text = std::fs::read_to_string(&index_path).map_err(TorchError::file(&index_path))?;
    let index: Index =
        serde_json::from_str(&text).map_err(|error| TorchError::content(&index_path, error))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if let Some(name) =
        names.iter().find(|name| name.contains(['/', '\\']) || !dir.join(name).is_file())
    {
        let message = format!("names {name:?}, which is not there: complete the download");
        return Err(TorchError::content(&index_path, message));
    }
    Ok(names.iter().map(|name| dir.join(name)).collect())
}

/// Why a directory has no weights that are read here, and what can be done.
fn no_weights(dir: &Path) -> TorchError {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let ending = |endings: &[&str]| {
        names.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending)))
    };
    if let Some(name) = ending(&[".bin", ".pt", ".pth", ".ckpt"]) {
        let message = "is a pickle, which runs code when it is read, and is not read here: convert \
                       it once with transformers (`model.save_pretrained(dir)` writes safetensors)";
        return TorchError::content(&dir.join(name), message);
    }
    if let Some(name) = ending(&[".gguf"]) {
        let message = "is for llama.cpp, and is not read here: fetch the safetensors of the same \
                       model, or serve the file and name it by `endpoint:`";
        return TorchError::content(&dir.join(name), message);
    }
    let message = match ending(&[".safetensors"]) {
        Some(name) if name.starts_with("adapter") => {
            format!("is not there, and {name:?} is an adapter: merge it into its base model first")
        }
        Some(name) => {
            format!("is not there, and neither is the index of {name:?}: fetch the index")
        }
        None => "is not there: a checkpoint is a directory in Hugging Face layout".to_owned(),
    };
    TorchError::content(&dir.join(WEIGHTS_FILE), message)
}

/// A safetensors file, of which the header is read.
struct WeightFile<'p> {
    path: &'p Path,
    file: File,
    header: Metadata,
    /// Where the weights begin.
    start: u64,
}

impl<'p> WeightFile<'p> {
    fn open(path: &'p Path) -> Result<WeightFile<'p>, TorchError> {
        let damaged = |what: &dyn std::fmt::Display| {
            let message = format!("is not a whole safetensors file ({what}): fetch it again");
            TorchError::content(path, message)
        };
        let mut file = File::open(path).map_err(TorchError::file(path))?;
        let size = file.metadata().map_err(TorchError::file(path))?.len();
        let mut length = [0u8; 8];
        file.read_exact(&mut length).map_err(|error| damaged(&error))?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_BYTES_MAX || length + 8 > size {
            return Err(damaged(&format!("a header of {length} bytes in a file of {size}")));
        }
        let mut header = vec![0u8; length as usize];
        file.read_exact(&mut header).map_err(|error| damaged(&error))?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(&error))?;
        let (start, data) = (8 + length, header.data_len() as u64);
        if start.checked_add(data) != Some(size) {
            return Err(damaged(&format!("{size} bytes, of {}", start.saturating_add(data))));
        }
        Ok(WeightFile { path, file, header, start })
    }

    /// Moves from `wanted` to `weights` what the file holds.
    fn take(
        mut self,
        config: &TransformerConfig,
        wanted: &mut BTreeMap<String, Vec<i64>>,
        weights: &mut BTreeMap<String, Tensor>,
    ) -> Result<(), TorchError> {
        let mut names = self.header.offset_keys();
        names.sort_unstable();
        for stored in names {
            // A backbone saved alone goes without the name before its weights' names.
            let entry = wanted.remove_entry(&stored);
            let whole = || format!("{}.{stored}", config.family.names.backbone);
            let entry = entry.or_else(|| wanted.remove_entry(&whole()));
            let Some((name, shape)) = entry else { continue };
            let weight = self.read(&stored, &name, &shape)?;
            weights.insert(name, weight);
        }
        Ok(())
    }

    fn read(&mut self, stored: &str, name: &str, shape: &[i64]) -> Result<Tensor, TorchError> {
        let fault = |message: String| Err(TorchError::content(self.path, message));
        let info = self.header.info(stored).expect("the name is one of the header's");
        let found: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
        if found != shape {
            return fault(format!(
                "weight {name:?} has shape {found:?}, and config.json says {shape:?}"
            ));
        }
        let kind = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            Dtype::F64 => Kind::Double,
            other => {
                return fault(format!(
                    "weight {name:?} is {other:?}, and quantised weights do not run in this \
                     process: serve the model and name it by `endpoint:`"
                ));
            }
        };
        let (first, end) = info.data_offsets;
        let count: i64 = shape.iter().product();
        if end.checked_sub(first) != Some(count as usize * kind.elt_size_in_bytes()) {
            return fault(format!(
                "weight {name:?} has not the length of its shape: fetch it again"
            ));
        }
        let mut bytes = vec![0u8; end - first];
        let read = self.file.seek(SeekFrom::Start(self.start + first as u64));
        read.and_then(|_| self.file.read_exact(&mut bytes)).map_err(TorchError::file(self.path))?;
        Ok(Tensor::f_from_data_size(&bytes, shape, kind)?)
    }
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
