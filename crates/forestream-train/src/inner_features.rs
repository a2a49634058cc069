//! Narrow streams: which inner features of the MLP stream rows keep.
//!
//! Three quarters of a layer's weights are its MLP's, and few of its inner features carry most of what it adds to a row. The
//! ones that add most to stream rows are kept, and the trained changes of these rows make up for the others.

use forestream_burn::{StreamBase, StreamWeights, inner_energies};
use forestream_model::streams::{Adapter, AdapterConfig, Projection, STREAM_LAYERS, TrainingMode};

use crate::TrainError;
use crate::adamw::Named;
use crate::data::Example;
use crate::measure::Measurement;
use crate::pieces::{Input, Piece};

/// The energies of so many positions are added up; more move the choice little.
const MEASURED_POSITIONS: usize = 4000;

/// The inner features that stream rows keep.
pub(crate) enum InnerFeatures {
    /// All of them.
    All,
    /// `size` of each layer, which the run chooses when it begins, from weights for all of them; those of the highest
    /// layers may be given.
    Open { size: usize, given: Vec<Vec<u32>> },
    /// These, by layer.
    Chosen(Vec<Vec<u32>>),
}

impl InnerFeatures {
    /// Those of the streams of `adapter`, which start from `initial`. A run may leave out the lowest of the layers of
    /// `initial`, or add lower ones, for which they are still to be chosen.
    ///
    /// # Errors
    /// Initial weights of another width, and joint mode, whose main rows run through the same layers.
    pub(crate) fn of(adapter: &AdapterConfig, initial: Option<&Adapter>) -> Result<Self, TrainError> {
        const FLAG: &str = "--stream-intermediate-size";
        let wanted = adapter.streams.intermediate_size;
        let own_size = initial.and_then(|initial| initial.config.streams.intermediate_size);
        if adapter.mode == TrainingMode::Joint && own_size.is_some() {
            let problem = "its streams are narrow, and joint mode trains main rows through the same layers; start from wide \
                           streams, or from none";
            return Err(TrainError::setting("the adapter to start from", problem));
        }
        if wanted.is_some() && adapter.mode == TrainingMode::Joint {
            let problem = "joint mode trains main rows, which need all inner features; give the size when the streams are \
                           trained on with --adapter";
            return Err(TrainError::setting(FLAG, problem));
        }
        if let Some(size) = own_size.filter(|_| own_size != wanted) {
            let problem = format!("the adapter to start from has streams of {size} inner features; leave out the flag");
            return Err(TrainError::setting(FLAG, problem));
        }
        let Some(size) = wanted else { return Ok(Self::All) };
        let given = initial.map_or([].as_slice(), |initial| &initial.inner_features);
        let num_layers = adapter.streams.num_msa_layers;
        let given = given[given.len().saturating_sub(num_layers)..].to_vec();
        Ok(if given.len() == num_layers { Self::Chosen(given) } else { Self::Open { size, given } })
    }

    /// Whether some are still to be chosen.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// Those that the adapter to start from has brought, or that are chosen: of all layers or of the highest ones.
    pub(crate) fn given(&self) -> &[Vec<u32>] {
        match self {
            Self::All => &[],
            Self::Open { given: features, .. } | Self::Chosen(features) => features,
        }
    }

    /// By layer, once they are chosen; empty where all are kept.
    pub(crate) fn chosen(&self) -> &[Vec<u32>] {
        match self {
            Self::Chosen(features) => features,
            Self::All | Self::Open { .. } => &[],
        }
    }
}

/// For each layer with streams: the `size` inner features that add most to stream rows, in ascending order; `None` where it
/// was asked to stop.
///
/// # Errors
/// If a pass fails.
pub(crate) fn choose(
    size: usize,
    measurement: &mut Measurement<'_>,
    base: &StreamBase,
    weights: &StreamWeights,
    examples: &[Example],
) -> Result<Option<Vec<Vec<u32>>>, TrainError> {
    let mut sums = Vec::<Vec<f64>>::new();
    let energies = |piece: Piece| match piece.input {
        Input::Lossless(segment) => Ok(inner_energies(base, weights, &[segment.to_segment()])?),
        Input::Joint(_) => Ok(Vec::new()),
    };
    let is_whole = measurement.run(first_of(examples), energies, |pieces| {
        for energies in pieces {
            sums.resize_with(energies.len(), Vec::new);
            for (sums, energies) in sums.iter_mut().zip(energies) {
                sums.resize(energies.len(), 0.0);
                sums.iter_mut().zip(energies).for_each(|(sum, energy)| *sum += f64::from(energy));
            }
        }
    })?;
    Ok(is_whole.then(|| sums.iter().map(|sums| greatest(sums, size)).collect()))
}

/// As many examples as have the positions that are measured.
fn first_of(examples: &[Example]) -> &[Example] {
    let ends = examples.iter().scan(0, |end, example| {
        *end += example.num_positions();
        Some(*end)
    });
    let count = ends.take_while(|&end| end < MEASURED_POSITIONS).count() + 1;
    &examples[..count.min(examples.len())]
}

/// The places of the `count` greatest values, in ascending order; of equal ones the first.
fn greatest(values: &[f64], count: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..values.len() as u32).collect();
    places.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
    places.truncate(count);
    places.sort_unstable();
    places
}

/// Drops what the trained tensors of streams have for other inner features; layers are numbered from `first_layer` on.
pub(crate) fn narrow(weights: &mut Named, first_layer: usize, inner_features: &[Vec<u32>], width: usize) {
    resize(weights, first_layer, inner_features, |values, features, axis| match axis {
        Axis::Rows => {
            let rank = values.len() / width;
            features.iter().flat_map(|&row| &values[row as usize * rank..][..rank]).copied().collect()
        }
        Axis::Cols => {
            values.chunks_exact(width).flat_map(|row| features.iter().map(|&col| row[col as usize])).collect()
        }
    });
}

/// The other way round: tensors for all `width` inner features, with zeros for those that were not kept.
pub(crate) fn widen(weights: &mut Named, first_layer: usize, inner_features: &[Vec<u32>], width: usize) {
    resize(weights, first_layer, inner_features, |values, features, axis| {
        let rank = values.len() / features.len();
        let mut wide = vec![0.0; rank * width];
        for (kept, &feature) in features.iter().enumerate() {
            for row in 0..rank {
                match axis {
                    Axis::Rows => wide[feature as usize * rank + row] = values[kept * rank + row],
                    Axis::Cols => wide[row * width + feature as usize] = values[row * features.len() + kept],
                }
            }
        }
        wide
    });
}

/// Where a tensor has its inner features.
#[derive(Clone, Copy)]
enum Axis {
    /// `[inner, rank]`, on the way in.
    Rows,
    /// `[rank, inner]`, on the way out.
    Cols,
}

/// Changes the trained tensors of each layer that have inner features, given those that the layer keeps.
fn resize(
    weights: &mut Named,
    first_layer: usize,
    inner_features: &[Vec<u32>],
    change: impl Fn(&[f32], &[u32], Axis) -> Vec<f32>,
) {
    const TENSORS: [(Projection, &str, Axis); 3] = [
        (Projection::GateProj, "lora_B", Axis::Rows),
        (Projection::UpProj, "lora_B", Axis::Rows),
        (Projection::DownProj, "lora_A", Axis::Cols),
    ];
    for (index, features) in inner_features.iter().enumerate() {
        for (projection, tensor, axis) in TENSORS {
            let name = format!("{STREAM_LAYERS}.{}.{}.{tensor}.weight", first_layer + index, projection.path());
            if let Some(values) = weights.get_mut(&name) {
                *values = change(values, features, axis);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_are_kept_in_order() {
        assert_eq!(greatest(&[3.0, 9.0, 1.0, 9.0, 4.0], 3), [1, 3, 4]);
        assert_eq!(greatest(&[2.0, 2.0, 2.0], 2), [0, 1]);
    }

    #[test]
    fn changes_of_other_features_are_dropped() {
        let name = |layer: usize, rest: &str| format!("layers.{layer}.{rest}.weight");
        let mut weights = Named::new();
        // Three inner features, rank 2; the way down reads them, the way up makes them.
        weights.insert(name(7, "mlp.up_proj.lora_B"), vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        weights.insert(name(7, "mlp.down_proj.lora_A"), vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        weights.insert(name(7, "mlp.down_proj.lora_B"), vec![7.0, 8.0]);
        weights.insert("main.layers.7.mlp.up_proj.lora_B.weight".to_owned(), vec![9.0; 6]);
        let kept = [vec![1], vec![0, 2]];
        narrow(&mut weights, 6, &kept, 3);
        assert_eq!(weights[&name(7, "mlp.up_proj.lora_B")], [1.0, 2.0, 5.0, 6.0]);
        assert_eq!(weights[&name(7, "mlp.down_proj.lora_A")], [1.0, 3.0, 4.0, 6.0]);
        assert_eq!(weights[&name(7, "mlp.down_proj.lora_B")], [7.0, 8.0]);
        assert_eq!(weights["main.layers.7.mlp.up_proj.lora_B.weight"], [9.0; 6]);
        let narrowed = weights.clone();
        widen(&mut weights, 6, &kept, 3);
        assert_eq!(weights[&name(7, "mlp.up_proj.lora_B")], [1.0, 2.0, 0.0, 0.0, 5.0, 6.0]);
        assert_eq!(weights[&name(7, "mlp.down_proj.lora_A")], [1.0, 0.0, 3.0, 4.0, 0.0, 6.0]);
        narrow(&mut weights, 6, &kept, 3);
        assert_eq!(weights, narrowed);
    }
}
