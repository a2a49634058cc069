//! A law over tokens: the candidates that are left, and their weights.

use forestream_model::TokenId;

/// One token of a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub token: TokenId,
    /// Logit divided by the temperature, relative to the greatest one: at most zero.
    pub log_weight: f32,
    /// `e^log_weight`: 1 for the most probable token.
    pub weight: f32,
}

/// Tokens and their weights, reused from draw to draw. Never empty once filled.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    pub(crate) candidates: Vec<Candidate>,
    /// Sum of the weights that probabilities refer to.
    pub(crate) total: f64,
}

impl Distribution {
    /// The candidates; their order is a function of logits and settings alone.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The probability of `token`; zero where a filter dropped it.
    pub fn probability(&self, token: TokenId) -> f64 {
        let candidate = self.candidates.iter().find(|candidate| candidate.token == token);
        candidate.map_or(0.0, |candidate| f64::from(candidate.weight) / self.total)
    }

    /// The token at which the running sum of probabilities passes `uniform`.
    ///
    /// # Panics
    /// If the distribution was never filled.
    pub fn draw(&self, uniform: f64) -> TokenId {
        let goal = uniform * self.total;
        let mut sum = 0.0;
        for candidate in &self.candidates {
            sum += f64::from(candidate.weight);
            if sum > goal {
                return candidate.token;
            }
        }
        self.candidates.last().expect("a filled distribution has a candidate").token
    }

    /// All probability on one token.
    pub(crate) fn set_certain(&mut self, token: TokenId) {
        self.candidates.clear();
        self.candidates.push(Candidate { token, log_weight: 0.0, weight: 1.0 });
        self.total = 1.0;
    }

    /// Adds the weights up again, after a filter.
    pub(crate) fn sum_up(&mut self) {
        self.total = self.candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    }

    /// Most probable first, equal ones by token.
    pub(crate) fn sort(&mut self) {
        self.candidates.sort_unstable_by(|a, b| b.log_weight.total_cmp(&a.log_weight).then(a.token.cmp(&b.token)));
    }

    /// Keeps the leading candidates that together reach `mass` of the total.
    pub(crate) fn keep_leading_mass(&mut self, mass: f32) {
        let goal = f64::from(mass) * self.total;
        let mut sum = 0.0;
        let reached = self.candidates.iter().position(|candidate| {
            sum += f64::from(candidate.weight);
            sum >= goal
        });
        self.candidates.truncate(reached.map_or(self.candidates.len(), |last| last + 1));
        self.sum_up();
    }
}
