//! Value rotation on the CPU: the value vectors of stream rows turn by an angle that depends on the stream alone.
//!
//! Main rows know nothing of it; what turns is a stream's own provisional row, before it goes to the cache.

use forestream_kernels::{Isa, rotate_heads};

use crate::streams::StreamIdentity;

/// Cosines and sines by stream, in the form that heads are rotated with.
#[derive(Debug)]
pub(super) struct ValueRotation {
    /// `[num_streams, head_dim / 2]`; the channels of a stream have one angle.
    cosines: Vec<f32>,
    sines: Vec<f32>,
    /// `head_dim / 2`.
    half: usize,
}

impl ValueRotation {
    /// The rotation of `num_streams` streams; `None` where something else tells them apart.
    pub(super) fn new(identity: StreamIdentity, num_streams: usize, head_dim: usize) -> Option<Self> {
        let angles: Vec<f64> = (1..=num_streams).map(|stream| identity.value_angle(stream)).collect::<Option<_>>()?;
        let half = head_dim / 2;
        let by_channel = |of: fn(f64) -> f64| angles.iter().flat_map(|&x| vec![of(x) as f32; half]).collect();
        Some(Self { cosines: by_channel(f64::cos), sines: by_channel(f64::sin), half })
    }

    /// Turns `values`, `[kv heads, head_dim]`, of a stream, counted from 0.
    pub(super) fn turn(&self, isa: Isa, stream_index: usize, values: &mut [f32]) {
        let channels = stream_index * self.half..(stream_index + 1) * self.half;
        rotate_heads(isa, values, &self.cosines[channels.clone()], &self.sines[channels]);
    }
}
