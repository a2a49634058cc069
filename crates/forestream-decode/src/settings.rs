//! What a user may set about sampling, and which values make sense.

use forestream_model::TokenId;

use crate::DecodeError;

/// How the next token is chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingSettings {
    /// Divides the logits; 0 takes the most probable token, whatever the filters say.
    pub temperature: f32,
    /// Keeps this many of the most probable tokens.
    pub top_k: Option<usize>,
    /// Keeps the most probable tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this probable relative to the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Keeps the tokens of most typical surprise that together reach this probability; 1 keeps all.
    pub typical_p: f32,
    /// Divides positive logits of recent tokens, and multiplies negative ones; 1 does nothing.
    pub repeat_penalty: f32,
    /// Subtracted from the logit of every recent token.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a recent token once for each occurrence.
    pub frequency_penalty: f32,
    /// How many tokens of prompt and answer are recent; `None`: all of them.
    pub penalty_last_n: Option<usize>,
    /// Added to the logits of these tokens; minus infinity bans one.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Chooses the random numbers.
    pub seed: u64,
}

impl Default for SamplingSettings {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: Some(64),
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// [`DecodeError::Setting`] names the first field that is out of range, and its range.
    pub fn validate(&self) -> Result<(), DecodeError> {
        let up_to_one = |x: f32| x > 0.0 && x <= 1.0;
        let top_k = self.top_k.unwrap_or(usize::MAX);
        let bias = self.logit_bias.iter().map(|&(_, bias)| bias).find(|bias| bias.is_nan() || *bias == f32::INFINITY);
        let checks = [
            (self.temperature >= 0.0 && self.temperature.is_finite(), "temperature", self.temperature, "0 or more"),
            (top_k > 0, "top_k", top_k as f32, "at least 1"),
            (up_to_one(self.top_p), "top_p", self.top_p, "above 0 and at most 1"),
            ((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "from 0 to 1"),
            (up_to_one(self.typical_p), "typical_p", self.typical_p, "above 0 and at most 1"),
            (
                self.repeat_penalty > 0.0 && self.repeat_penalty.is_finite(),
                "repeat_penalty",
                self.repeat_penalty,
                "above 0",
            ),
            (self.presence_penalty.is_finite(), "presence_penalty", self.presence_penalty, "a finite number"),
            (self.frequency_penalty.is_finite(), "frequency_penalty", self.frequency_penalty, "a finite number"),
            (bias.is_none(), "logit_bias", bias.unwrap_or(0.0), "a number, or minus infinity to ban the token"),
        ];
        match checks.into_iter().find(|(holds, ..)| !holds) {
            Some((_, field, value, expected)) => Err(DecodeError::Setting { field, value: f64::from(value), expected }),
            None => Ok(()),
        }
    }

    /// Whether any penalty has an effect.
    pub(crate) fn has_penalties(&self) -> bool {
        self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silly_value_is_refused_by_name() {
        type Change = fn(&mut SamplingSettings);
        let cases: [(&str, Change); 14] = [
            ("temperature", |s| s.temperature = -0.1),
            ("temperature", |s| s.temperature = f32::NAN),
            ("temperature", |s| s.temperature = f32::INFINITY),
            ("top_k", |s| s.top_k = Some(0)),
            ("top_p", |s| s.top_p = 0.0),
            ("top_p", |s| s.top_p = 1.01),
            ("min_p", |s| s.min_p = -0.5),
            ("min_p", |s| s.min_p = f32::NAN),
            ("typical_p", |s| s.typical_p = 2.0),
            ("repeat_penalty", |s| s.repeat_penalty = 0.0),
            ("presence_penalty", |s| s.presence_penalty = f32::INFINITY),
            ("frequency_penalty", |s| s.frequency_penalty = f32::NAN),
            ("logit_bias", |s| s.logit_bias = vec![(3, 1.0), (4, f32::NAN)]),
            ("logit_bias", |s| s.logit_bias = vec![(3, f32::INFINITY)]),
        ];
        SamplingSettings::default().validate().unwrap();
        for (expected, change) in cases {
            let mut settings = SamplingSettings::default();
            change(&mut settings);
            let error = settings.validate().unwrap_err();
            assert!(matches!(error, DecodeError::Setting { field, .. } if field == expected), "{error}");
        }
        let banned = SamplingSettings { logit_bias: vec![(1, f32::NEG_INFINITY)], ..SamplingSettings::default() };
        banned.validate().unwrap();
    }
}
