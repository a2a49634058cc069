//! Logits to one token: the chain of `logits/`, then one number of the counter-based generator.
//!
//! A draw depends on (settings, logits, context) alone; the generator is keyed by the position, `context.len()`.
//! So it does not matter in which round, or after how many rejected drafts, a position is decided.

use forestream_model::TokenId;

use crate::logits::{self, Distribution, logit_bias, min_p, penalties::Penalties, temperature, top_k, top_p, typical};
use crate::{DecodeError, Random, SamplingSettings};

/// Turns logits into distributions and tokens; owns the buffers for it.
#[derive(Debug)]
pub struct Sampler {
    settings: SamplingSettings,
    random: Random,
    penalties: Penalties,
    weights: Vec<f32>,
    distribution: Distribution,
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// [`DecodeError::Setting`] for a setting out of range.
    pub fn new(settings: SamplingSettings) -> Result<Self, DecodeError> {
        settings.validate()?;
        Ok(Self {
            random: Random::target(settings.seed),
            settings,
            penalties: Penalties::default(),
            weights: Vec::new(),
            distribution: Distribution::default(),
        })
    }

    /// The settings in use.
    pub fn settings(&self) -> &SamplingSettings {
        &self.settings
    }

    /// The random numbers of this sampler.
    pub fn random(&self) -> Random {
        self.random
    }

    /// The law of the token that follows `context`. Penalties and bias are applied to `logits` in place.
    ///
    /// # Errors
    /// [`DecodeError::NothingToDraw`] when no logit is finite.
    pub fn distribution(&mut self, logits: &mut [f32], context: &[TokenId]) -> Result<&mut Distribution, DecodeError> {
        let settings = &self.settings;
        self.penalties.apply(logits, context, settings);
        logit_bias::apply(logits, &settings.logit_bias);
        let (token, max) = logits::argmax(logits);
        if !max.is_finite() {
            return Err(DecodeError::NothingToDraw { position: context.len() });
        }
        let distribution = &mut self.distribution;
        if settings.temperature == 0.0 {
            distribution.set_certain(token);
            return Ok(distribution);
        }
        let scale = (settings.temperature, max);
        match settings.top_k {
            Some(k) if k < logits.len() => top_k::weigh(logits, scale, k, distribution),
            _ => {
                let floor = |total| top_p::floor(settings.top_p, total, logits.len());
                temperature::weigh(logits, scale, floor, &mut self.weights, distribution);
            }
        }
        top_p::apply(distribution, settings.top_p);
        min_p::apply(distribution, settings.min_p);
        typical::apply(distribution, settings.typical_p);
        Ok(distribution)
    }

    /// The token that follows `context`: one draw, keyed by the position.
    ///
    /// # Errors
    /// [`DecodeError::NothingToDraw`] when no logit is finite.
    pub fn draw(&mut self, logits: &mut [f32], context: &[TokenId]) -> Result<TokenId, DecodeError> {
        let uniform = self.random.uniform(context.len(), 0);
        Ok(self.distribution(logits, context)?.draw(uniform))
    }
}
