//! How the streams of one position differ from each other.
//!
//! Source: Speculative Streaming (arXiv 2402.11131): stream embeddings, and value rotation as its form without parameters.
//! The paper does not say which channels make a pair; here they are those that rotary embedding pairs.

use std::f32::consts::FRAC_PI_2;

use serde::{Deserialize, Serialize};

/// What tells the streams of one position apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StreamIdentity {
    /// Stream `j` starts from a learned vector of its own: `M + P_j`.
    #[default]
    Embedding,
    /// All start from `M`. In every layer the value vectors of stream `j` turn by `j * angle`: channels `i` and
    /// `i + head_dim / 2` of a head are one complex number, and all of them turn alike.
    ValueRotation {
        /// Radians for each stream.
        angle: f32,
    },
}

impl StreamIdentity {
    /// Whether streams start from embeddings.
    pub fn has_embeddings(&self) -> bool {
        matches!(self, Self::Embedding)
    }

    /// Radians by which the values of stream `j`, counted from 1, turn; `None` where they stay as they are.
    pub fn value_angle(self, stream: usize) -> Option<f64> {
        match self {
            Self::Embedding => None,
            Self::ValueRotation { angle } => Some(stream as f64 * f64::from(angle)),
        }
    }

    /// Checks the angle: the last of `num_streams` streams turns by a quarter at most.
    ///
    /// # Errors
    /// The field and what it may be.
    pub(super) fn validate(self, num_streams: usize) -> Result<(), String> {
        let largest = FRAC_PI_2 / num_streams.max(1) as f32;
        match self {
            Self::ValueRotation { angle } if !(0.0..=largest).contains(&angle) => Err(format!(
                "identity.value_rotation.angle must be from 0 to {largest} (pi / 2 / num_streams), but it is {angle}"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stream_turns_by_a_quarter_at_most() {
        let check = |angle, num_streams| StreamIdentity::ValueRotation { angle }.validate(num_streams);
        for (angle, num_streams) in [(0.0, 16), (FRAC_PI_2, 1), (FRAC_PI_2 / 3.0, 3), (1e-4, 4)] {
            assert_eq!(check(angle, num_streams), Ok(()), "{angle}");
        }
        for (angle, num_streams) in [(0.53, 3), (-0.1, 3), (f32::NAN, 3), (f32::INFINITY, 1)] {
            let problem = check(angle, num_streams).unwrap_err();
            assert!(problem.contains("value_rotation.angle must be from 0 to"), "{problem}");
        }
    }
}
