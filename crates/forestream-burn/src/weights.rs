//! The trained tensors of an adapter, by their names in its file.

use std::collections::BTreeMap;

use burn_tensor::{Device, Tensor, TensorData};
use forestream_model::DecoderConfig;
use forestream_model::streams::{AdapterConfig, Projection, TensorSpec};

use crate::random::Numbers;

/// Standard deviation of fresh stream embeddings.
const EMBEDDING_DEVIATION: f32 = 0.02;

/// Trainable tensors by adapter name; each requires a gradient.
#[derive(Clone, Debug)]
pub struct StreamWeights {
    tensors: BTreeMap<String, Tensor<2>>,
}

impl StreamWeights {
    /// Fresh weights that change nothing yet: what is added to the base starts at zero (LoRA's B, token conditioning, the
    /// way up of sampler and early exit), the rest is random. Deterministic in `seed`, the same bits on every machine.
    pub fn init(config: &AdapterConfig, base: &DecoderConfig, seed: u64, device: &Device) -> Self {
        let fresh = |spec: TensorSpec| {
            let values = initial_values(&spec, seed);
            (spec.name, upload(values, spec.shape, device))
        };
        Self { tensors: config.tensors(base).into_iter().map(fresh).collect() }
    }

    /// Weights with these values, rows one after another.
    ///
    /// # Panics
    /// If a tensor of [`AdapterConfig::tensors`] is missing or has another size.
    pub fn from_values(
        config: &AdapterConfig,
        base: &DecoderConfig,
        values: &BTreeMap<String, Vec<f32>>,
        device: &Device,
    ) -> Self {
        let given = |spec: TensorSpec| {
            let values = values.get(&spec.name).unwrap_or_else(|| panic!("no values for `{}`", spec.name));
            let tensor = upload(values.clone(), spec.shape, device);
            (spec.name, tensor)
        };
        Self { tensors: config.tensors(base).into_iter().map(given).collect() }
    }

    /// The values of all tensors, rows one after another.
    ///
    /// # Panics
    /// If the device fails.
    pub fn values(&self) -> BTreeMap<String, Vec<f32>> {
        let download = |tensor: &Tensor<2>| {
            tensor.to_data_as::<f32>().try_to_vec().expect("as many elements of that type as were asked for")
        };
        self.tensors.iter().map(|(name, tensor)| (name.clone(), download(tensor))).collect()
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor `name`.
    ///
    /// # Panics
    /// If there is none.
    pub fn tensor(&self, name: &str) -> &Tensor<2> {
        self.tensors.get(name).unwrap_or_else(|| panic!("no trained tensor `{name}`"))
    }

    /// Replaces a tensor, for example after an optimizer's step; the new one requires a gradient.
    ///
    /// # Panics
    /// If there is no tensor `name`, or it has another shape.
    pub fn set(&mut self, name: &str, tensor: Tensor<2>) {
        assert_eq!(self.tensor(name).dims(), tensor.dims(), "the shape of `{name}`");
        self.tensors.insert(name.to_owned(), tensor.without_autodiff().autodiff().require_grad());
    }

    /// The same weights as constants: passes with them record nothing, for measuring on held-out text.
    pub fn frozen(&self) -> Self {
        let freeze = |(name, tensor): (&String, &Tensor<2>)| (name.clone(), tensor.clone().without_autodiff());
        Self { tensors: self.tensors.iter().map(freeze).collect() }
    }

    /// LoRA's A and B of a projection of a layer, if it has them.
    pub(crate) fn lora(&self, prefix: &str, layer: usize, projection: Projection) -> Option<[&Tensor<2>; 2]> {
        let tensor =
            |which: &str| self.tensors.get(&format!("{prefix}.{layer}.{}.lora_{which}.weight", projection.path()));
        Some([tensor("A")?, tensor("B")?])
    }
}

fn initial_values(spec: &TensorSpec, seed: u64) -> Vec<f32> {
    let [rows, cols] = spec.shape;
    let numbers = Numbers::new(seed, &spec.name);
    let is_zero = ["lora_B.weight", "token_conditioning.weight", "sampler.up_proj.weight", "early_exit.up_proj.weight"];
    if is_zero.iter().any(|end| spec.name.ends_with(end)) {
        return vec![0.0; rows * cols];
    }
    if spec.name == "stream_embeddings" {
        return (0..rows * cols).map(|index| numbers.normal(index) * EMBEDDING_DEVIATION).collect();
    }
    let bound = (cols as f32).sqrt().recip(); // Kaiming's uniform bound with slope sqrt(5), as LoRA's authors start A
    (0..rows * cols).map(|index| numbers.uniform(index) * bound).collect()
}

fn upload(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    let device = device.clone().without_autodiff();
    Tensor::<2>::from_data(TensorData::new(values, shape), &device).autodiff().require_grad()
}
