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
                // Without top-p, min-p is the first filter; applied here already, it keeps the list short.
                let floor = |total| {
                    let has_top_p = settings.top_p < 1.0;
                    if has_top_p { top_p::floor(settings.top_p, total, logits.len()) } else { settings.min_p }
                };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::mix;

    const VOCAB_SIZE: usize = 500;

    /// A law with a few probable tokens, a long tail, and equal logits.
    fn logits(seed: u64) -> Vec<f32> {
        let unit = |i: usize| (mix(seed * 7919 + i as u64) >> 40) as f32 / (1 << 24) as f32;
        (0..VOCAB_SIZE).map(|i| (unit(i).powi(4) * 60.0).round() / 4.0).collect()
    }

    /// The same chain, written for the eye: every filter sorts everything, in double precision.
    fn reference(logits: &[f32], settings: &SamplingSettings) -> Vec<(TokenId, f64)> {
        let exps = logits.iter().map(|&logit| (f64::from(logit) / f64::from(settings.temperature)).exp());
        let mut law: Vec<(TokenId, f64)> = (0..).zip(exps).collect();
        let by_probability = |a: &(TokenId, f64), b: &(TokenId, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        law.sort_by(by_probability);
        law.truncate(settings.top_k.unwrap_or(VOCAB_SIZE));
        keep_mass(&mut law, settings.top_p);
        let best = law[0].1;
        law.retain(|&(_, p)| p >= f64::from(settings.min_p) * best);
        let total: f64 = law.iter().map(|&(_, p)| p).sum();
        let surprise = |p: f64| -(p / total).ln();
        let entropy: f64 = law.iter().map(|&(_, p)| p / total * surprise(p)).sum();
        let distance = |p: f64| ((surprise(p) - entropy).abs() * 1e6).round(); // equal ones differ by rounding only
        if settings.typical_p < 1.0 {
            law.sort_by(|a, b| distance(a.1).total_cmp(&distance(b.1)).then(a.0.cmp(&b.0)));
            keep_mass(&mut law, settings.typical_p);
        }
        let total: f64 = law.iter().map(|&(_, p)| p).sum();
        for (_, p) in &mut law {
            *p /= total;
        }
        law.sort_by(by_probability);
        law
    }

    fn keep_mass(law: &mut Vec<(TokenId, f64)>, mass: f32) {
        let total: f64 = law.iter().map(|&(_, p)| p).sum();
        let mut sum = 0.0;
        let reached = law.iter().position(|&(_, p)| {
            sum += p;
            sum >= f64::from(mass) * total
        });
        law.truncate(reached.map_or(law.len(), |last| last + 1));
    }

    #[test]
    fn the_chain_agrees_with_its_reference() {
        let base = SamplingSettings { temperature: 1.0, ..SamplingSettings::default() };
        let cases = [
            base.clone(),
            SamplingSettings { temperature: 0.7, ..base.clone() },
            SamplingSettings { top_k: Some(1), ..base.clone() },
            SamplingSettings { top_k: Some(40), temperature: 2.5, ..base.clone() },
            SamplingSettings { top_p: 0.9, temperature: 0.8, ..base.clone() },
            SamplingSettings { top_p: 0.999, temperature: 3.0, ..base.clone() },
            SamplingSettings { min_p: 0.05, ..base.clone() },
            SamplingSettings { typical_p: 0.6, temperature: 2.0, ..base.clone() },
            SamplingSettings { top_k: Some(60), top_p: 0.97, min_p: 0.01, typical_p: 0.95, ..base.clone() },
            SamplingSettings { top_k: Some(VOCAB_SIZE * 2), top_p: 0.95, min_p: 0.02, ..base },
        ];
        for settings in cases {
            let mut sampler = Sampler::new(settings.clone()).unwrap();
            for seed in 0..20 {
                let logits = logits(seed);
                let expected = reference(&logits, &settings);
                let law = sampler.distribution(&mut logits.clone(), &[0]).unwrap();
                assert_eq!(law.candidates().len(), expected.len(), "{settings:?}, seed {seed}");
                for (token, probability) in expected {
                    let error = (law.probability(token) - probability).abs();
                    assert!(error < 1e-6 * (probability + 1e-3), "{settings:?}, seed {seed}, token {token}");
                }
            }
        }
    }

    #[test]
    fn draws_follow_the_law() {
        let settings = SamplingSettings { temperature: 1.0, top_k: Some(6), ..SamplingSettings::default() };
        let mut sampler = Sampler::new(settings).unwrap();
        let logits = [2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -8.0];
        let mut counts = [0_usize; 7];
        let context = vec![0; 40_000];
        for len in 0..context.len() {
            counts[sampler.draw(&mut logits.clone(), &context[..len]).unwrap() as usize] += 1;
        }
        let law = sampler.distribution(&mut logits.clone(), &[]).unwrap();
        let expected = |token: usize| law.probability(token as TokenId) * context.len() as f64;
        let chi_square: f64 = (0..6).map(|t| (counts[t] as f64 - expected(t)).powi(2) / expected(t)).sum();
        assert!(chi_square < 20.5 && counts[6] == 0, "{counts:?}"); // the 0.999 quantile with 5 degrees of freedom
    }

    #[test]
    fn zero_temperature_takes_the_best_token_whatever_the_filters() {
        let settings = SamplingSettings { typical_p: 0.1, top_p: 0.1, min_p: 1.0, ..SamplingSettings::default() };
        let mut sampler = Sampler::new(settings).unwrap();
        assert_eq!(sampler.draw(&mut [1.0, 3.0, 3.0, 2.0], &[0]).unwrap(), 1);
        let cold = SamplingSettings { temperature: 1e-30, ..SamplingSettings::default() };
        assert_eq!(Sampler::new(cold).unwrap().draw(&mut [1.0, 2.9, 3.0], &[0]).unwrap(), 2);
    }

    #[test]
    fn a_law_without_tokens_is_an_error() {
        for temperature in [0.0, 1.0] {
            let settings = SamplingSettings { temperature, ..SamplingSettings::default() };
            let mut sampler = Sampler::new(settings).unwrap();
            for logits in [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [0.0, f32::INFINITY, 1.0]] {
                let error = sampler.draw(&mut logits.clone(), &[4, 5]).unwrap_err();
                assert!(matches!(error, DecodeError::NothingToDraw { position: 2 }));
            }
            assert_eq!(sampler.draw(&mut [f32::NAN, 0.5, f32::NEG_INFINITY], &[4, 5]).unwrap(), 1);
        }
    }
}
