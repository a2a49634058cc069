//! An answer in the making: tokens become pieces of text, until the model, a limit or a stop string ends it.

use forestream_decode::Generation;
use forestream_model::{KvCache, TokenId};
use forestream_text::{Detokenizer, StopStrings};

use crate::Error;
use crate::report::{FinishReason, Report};

/// An answer in the making: an iterator of pieces of text, empty ones while the prompt is read. Dropping it keeps the cache for the next answer.
pub struct Answer<'s> {
    /// Taken when the answer is dropped.
    generation: Option<Generation<'s>>,
    text_end: TextEnd,
    token_ids: Vec<TokenId>,
    text: String,
    /// Why it ended; nothing follows then.
    end: Option<FinishReason>,
    /// Nothing follows an error.
    has_failed: bool,
    kept_cache: &'s mut Option<KvCache>,
    about: About<'s>,
}

/// What an answer's report says besides numbers.
pub(crate) struct About<'s> {
    pub(crate) model: &'s str,
    pub(crate) strategy: String,
    pub(crate) seed: u64,
}

/// The end of the text that is not complete yet: half a character, or what may begin a stop string.
pub(crate) struct TextEnd {
    pub(crate) detokenizer: Detokenizer,
    pub(crate) stops: StopStrings,
}

impl<'s> Answer<'s> {
    pub(crate) fn new(
        generation: Generation<'s>,
        text_end: TextEnd,
        about: About<'s>,
        kept_cache: &'s mut Option<KvCache>,
    ) -> Self {
        let generation = Some(generation);
        Self {
            generation,
            text_end,
            token_ids: Vec::new(),
            text: String::new(),
            end: None,
            has_failed: false,
            kept_cache,
            about,
        }
    }

    /// The tokens so far.
    pub fn token_ids(&self) -> &[TokenId] {
        &self.token_ids
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Ends the answer, complete or not, and reports on it.
    pub fn finish(mut self) -> Report {
        let measured = self.generation.as_ref();
        let measured = measured.map(|generation| Report::measured(generation.stats(), generation.timings()));
        let mut report = measured.unwrap_or_default();
        report.usage.completion_tokens = self.token_ids.len();
        report.usage.total_tokens = report.usage.prompt_tokens + self.token_ids.len();
        report.speculative.strategy = std::mem::take(&mut self.about.strategy);
        Report {
            model: self.about.model.to_owned(),
            token_ids: std::mem::take(&mut self.token_ids),
            text: std::mem::take(&mut self.text),
            finish_reason: self.end.unwrap_or(FinishReason::Abort),
            seed: self.about.seed,
            ..report
        }
    }

    /// The text of the next token; `None` where it completes no character, or may begin a stop string.
    fn next_piece(&mut self) -> Option<Result<String, Error>> {
        if self.end.is_some() {
            return None;
        }
        let generation = self.generation.as_mut()?;
        if self.has_failed {
            return None;
        }
        match generation.read_prompt() {
            Ok(true) => return Some(Ok(String::new())),
            Ok(false) => {}
            Err(error) => return Some(Err(error.into())),
        }
        let token = match generation.next() {
            Some(Ok(token)) => token,
            Some(Err(error)) => return Some(Err(error.into())),
            None => {
                self.end = generation.finish_reason().map(FinishReason::from);
                return Some(Ok(self.last_piece()));
            }
        };
        self.token_ids.push(token.id);
        if token.is_stop {
            return Some(Ok(String::new()));
        }
        let piece = match self.text_end.detokenizer.push(token.id) {
            Ok(piece) => piece,
            Err(error) => return Some(Err(error.into())),
        };
        let scanned = self.text_end.stops.push(&piece);
        if scanned.stop.is_some() {
            self.end = Some(FinishReason::Stop);
        }
        Some(Ok(scanned.text))
    }

    /// What was held back when the tokens ended.
    fn last_piece(&mut self) -> String {
        let scanned = self.text_end.stops.push(&self.text_end.detokenizer.finish());
        scanned.text + &self.text_end.stops.finish()
    }
}

impl Iterator for Answer<'_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.next_piece()?;
        match &piece {
            Ok(piece) => self.text.push_str(piece),
            Err(_) => self.has_failed = true,
        }
        Some(piece)
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        *self.kept_cache = self.generation.take().map(Generation::into_cache);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forestream_decode::SamplingSettings;

    use crate::{Engine, EngineOptions, FinishReason, GenerateOptions};

    #[test]
    fn an_answer_that_is_left_while_the_prompt_is_read_counts_what_was_read() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let engine = Engine::open(&model, &EngineOptions::default()).unwrap();
        let prompt: Vec<u32> = (0..400).map(|index| 3 + index % 50).collect();
        let options = GenerateOptions::new(SamplingSettings::default());
        let options = GenerateOptions { max_tokens: Some(2), budget: Some(1), ..options };
        let mut session = engine.session();
        let mut answer = session.generate(&prompt, &options).unwrap();
        assert_eq!(answer.next().unwrap().unwrap(), "");
        let left = answer.finish();
        let num_read = left.timings.prompt_n;
        assert!(0 < num_read && num_read < prompt.len(), "{num_read} tokens");
        assert_eq!((left.usage.prompt_tokens, left.timings.cache_n), (400, 0));
        let expected = num_read as f64 / left.timings.prompt_ms * 1e3;
        assert!((left.timings.prompt_per_second / expected - 1.0).abs() < 1e-9, "{:?}", left.timings);
        assert_eq!(left.finish_reason, FinishReason::Abort);
        assert!(left.summary().starts_with(&format!("prompt {num_read} of 400 tokens at ")), "{}", left.summary());
        let mut answer = session.generate(&prompt, &options).unwrap();
        answer.by_ref().for_each(|piece| drop(piece.unwrap()));
        let whole = answer.finish();
        assert_eq!((whole.timings.cache_n, whole.timings.prompt_n), (num_read, 400 - num_read));
        let expected = format!("prompt 400 tokens ({num_read} cached) at ");
        assert!(whole.summary().starts_with(&expected), "{}", whole.summary());
    }
}
