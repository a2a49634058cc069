//! An answer in the making: tokens become pieces of text, until the model, a limit or a stop string ends it.

use forestream_decode::{FinishReason, Generation};
use forestream_model::{KvCache, TokenId};
use forestream_text::{Detokenizer, StopStrings};

use crate::Error;
use crate::report::Report;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The model's stop token, or the limit.
    Finished(FinishReason),
    /// A stop string.
    StopString,
}

/// An answer in the making: an iterator of pieces of text, empty ones while the prompt is read. Dropping it keeps the cache for the next answer.
pub struct Answer<'s> {
    /// Taken when the answer is dropped.
    generation: Option<Generation<'s>>,
    text_end: TextEnd,
    token_ids: Vec<TokenId>,
    text: String,
    end: Option<End>,
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
        let finish_reason = match self.end {
            Some(End::Finished(reason)) => reason.as_str(),
            Some(End::StopString) => FinishReason::Stop.as_str(),
            None => "abort",
        };
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
            finish_reason: finish_reason.to_owned(),
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
                self.end = generation.finish_reason().map(End::Finished);
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
            self.end = Some(End::StopString);
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
