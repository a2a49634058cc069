//! A stretch of one text: the positions whose streams are trained, and what they may see.

use forestream_model::{DecoderConfig, TokenId};

use crate::BurnError;

/// Stream positions of one text (consecutive), with what they may see.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Segment {
    /// The position (t) of the first row.
    pub first_position: usize,
    /// States before the first layer with streams, not normalized, `[positions, hidden]`.
    pub boundary: Vec<f32>,
    /// Entry `i` is the token after position `first_position + i`. At least positions + streams entries; where the text
    /// ends, any valid id pads the list (and the trainer gives targets there no weight).
    pub tokens: Vec<TokenId>,
    /// By layer with streams: main rows' keys, rotated, `[kv_heads, context, head_dim]`, where the context is
    /// `first_position` and all positions.
    pub keys: Vec<Vec<f32>>,
    /// By layer with streams: main rows' values, `[kv_heads, context, head_dim]`.
    pub values: Vec<Vec<f32>>,
}

impl Segment {
    /// Number of positions whose streams are computed.
    ///
    /// # Panics
    /// If `hidden_size` is zero.
    pub fn num_positions(&self, hidden_size: usize) -> usize {
        self.boundary.len() / hidden_size
    }

    /// Main rows that the last position sees.
    pub(crate) fn context(&self, hidden_size: usize) -> usize {
        self.first_position + self.num_positions(hidden_size)
    }

    /// Checks all sizes against a base model and the numbers of layers and streams.
    pub(crate) fn check(
        &self,
        index: usize,
        base: &DecoderConfig,
        [num_layers, num_streams]: [usize; 2],
    ) -> Result<(), BurnError> {
        let positions = self.num_positions(base.hidden_size);
        let plane = base.num_key_value_heads * self.context(base.hidden_size) * base.head_dim;
        let tokens = positions + num_streams;
        let mut parts = vec![
            ("boundary".to_owned(), positions.max(1) * base.hidden_size, self.boundary.len()),
            ("tokens (at least)".to_owned(), tokens, self.tokens.len().min(tokens)),
            ("keys (layers)".to_owned(), num_layers, self.keys.len()),
            ("values (layers)".to_owned(), num_layers, self.values.len()),
        ];
        for (name, planes) in [("keys", &self.keys), ("values", &self.values)] {
            parts.extend(planes.iter().enumerate().map(|(layer, x)| (format!("{name}[{layer}]"), plane, x.len())));
        }
        if let Some((what, expected, got)) = parts.into_iter().find(|(_, expected, got)| expected != got) {
            return Err(BurnError::Segment { index, what, expected, got });
        }
        let vocab_size = base.vocab_size;
        match self.tokens.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(BurnError::TokenOutOfRange { token, vocab_size }),
            None => Ok(()),
        }
    }
}
