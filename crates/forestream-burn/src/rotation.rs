//! Rotary position embedding of rows: channel `i` of a head turns together with channel `i + head_dim / 2`.

use burn_tensor::{Device, Tensor, TensorData};

/// Cosines and sines of the rows' positions, `[rows, 1, head_dim / 2]`.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    cosines: Tensor<3>,
    sines: Tensor<3>,
}

impl Rotation {
    /// The rotation of rows at `positions`, angles in double precision as in the engine.
    pub(crate) fn new(positions: &[usize], frequencies: &[f64], device: &Device) -> Self {
        let angles = || positions.iter().flat_map(|&p| frequencies.iter().map(move |frequency| p as f64 * frequency));
        let upload = |values: Vec<f32>| {
            Tensor::from_data(TensorData::new(values, [positions.len(), 1, frequencies.len()]), device)
        };
        Self {
            cosines: upload(angles().map(|angle| angle.cos() as f32).collect()),
            sines: upload(angles().map(|angle| angle.sin() as f32).collect()),
        }
    }

    /// Rotates every head of every row.
    ///
    /// # Shapes
    /// `heads` and the result: `[rows, heads, head_dim]`.
    pub(crate) fn apply(&self, heads: Tensor<3>) -> Tensor<3> {
        let half = heads.dims()[2] / 2;
        let first = heads.clone().narrow(2, 0, half);
        let second = heads.narrow(2, half, half);
        let (cosines, sines) = (|| self.cosines.clone(), || self.sines.clone());
        let rotated_first = first.clone() * cosines() - second.clone() * sines();
        let rotated_second = second * cosines() + first * sines();
        Tensor::cat(vec![rotated_first, rotated_second], 2)
    }
}
