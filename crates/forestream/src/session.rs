//! One conversation: a cache that is kept between answers, so that a prompt with a known beginning starts after it.

use std::time::SystemTime;

use forestream_decode::strategies::{self, StreamingOptions};
use forestream_decode::{Budget, Generation, SamplingSettings, Sequence, SequenceOptions};
use forestream_model::{KvCache, TokenId};
use forestream_text::{AddSpecial, ChatInputs, ChatTemplate, Message, ParseSpecial, StopStrings};
use serde_json::{Map, Value};

use crate::answer::{About, Answer, TextEnd};
use crate::{Engine, Error, Trace};

/// The strategy that stands for [`Engine::default_strategy`].
pub const AUTO: &str = "auto";

/// What is asked of an answer.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How tokens are drawn.
    pub sampling: SamplingSettings,
    /// Most tokens; `None` goes on until the model stops or the context is full.
    pub max_tokens: Option<usize>,
    /// Before so many tokens the model's stop tokens are not drawn.
    pub min_tokens: usize,
    /// Texts at which the answer ends; they are not part of it.
    pub stop: Vec<String>,
    /// Whether the model's own stop tokens end the answer.
    pub at_stop_token: AtStopToken,
    /// Strategies that draft, by name, comma separated; [`AUTO`] takes what the model can draft with.
    pub strategy: String,
    /// How streams draft, where they do.
    pub streaming: StreamingOptions,
    /// The longest draft; `None` leaves it to the budget.
    pub max_draft_depth: Option<usize>,
    /// Nodes that a pass verifies; `None` picks each round what pays.
    pub budget: Option<usize>,
}

/// What a stop token of the model does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtStopToken {
    /// It ends the answer.
    #[default]
    Stop,
    /// It is a token like any other.
    GoOn,
}

impl GenerateOptions {
    /// The usual options with the sampling settings of a model, see [`Engine::default_sampling`].
    pub fn new(sampling: SamplingSettings) -> Self {
        Self {
            sampling,
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            at_stop_token: AtStopToken::Stop,
            strategy: AUTO.to_owned(),
            streaming: StreamingOptions::default(),
            max_draft_depth: None,
            budget: None,
        }
    }
}

/// One conversation with a model.
pub struct Session<'e> {
    engine: &'e Engine,
    cache: Option<KvCache>,
}

impl<'e> Session<'e> {
    pub(crate) fn new(engine: &'e Engine) -> Self {
        Self { engine, cache: None }
    }

    /// The tokens of plain text, as a base model reads it; the token that starts a text stands for an empty one.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn plain_prompt(&self, text: &str) -> Result<Vec<TokenId>, Error> {
        let tokenizer = self.engine.tokenizer();
        let mut tokens = tokenizer.encode(text, AddSpecial::AsConfigured, ParseSpecial::Yes)?;
        if tokens.is_empty() {
            tokens.extend(tokenizer.bos());
        }
        Ok(tokens)
    }

    /// The tokens of a conversation, asking for the assistant's next turn.
    ///
    /// # Errors
    /// If the template refuses the conversation.
    pub fn chat_prompt(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        variables: Option<&Map<String, Value>>,
    ) -> Result<Vec<TokenId>, Error> {
        let inputs = ChatInputs { extra: variables, now: SystemTime::now(), ..ChatInputs::new(messages) };
        let text = template.render(&inputs)?;
        Ok(self.engine.tokenizer().encode(&text, AddSpecial::Never, ParseSpecial::Yes)?)
    }

    /// Starts an answer to a prompt of tokens. What the cache has of the prompt is not computed again.
    ///
    /// # Errors
    /// A prompt that is empty or too long, or options out of range.
    pub fn generate(&mut self, prompt: &[TokenId], options: &GenerateOptions) -> Result<Answer<'_>, Error> {
        self.start(prompt, options, None)
    }

    /// As [`Session::generate`], while `trace` records the answer.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn generate_traced<'s>(
        &'s mut self,
        prompt: &[TokenId],
        options: &GenerateOptions,
        trace: &'s Trace<'_>,
    ) -> Result<Answer<'s>, Error> {
        self.start(prompt, options, Some(trace))
    }

    fn start<'s>(
        &'s mut self,
        prompt: &[TokenId],
        options: &GenerateOptions,
        trace: Option<&'s Trace<'_>>,
    ) -> Result<Answer<'s>, Error> {
        let engine = self.engine;
        let strategy = engine.resolve(&options.strategy);
        let drafter = strategies::build(&strategy, &engine.resources(options.streaming))?;
        let stops = StopStrings::new(options.stop.clone())?;
        let stop_tokens = match options.at_stop_token {
            AtStopToken::Stop => engine.stop_tokens(),
            AtStopToken::GoOn => Vec::new(),
        };
        let sequence_options = SequenceOptions {
            sampling: options.sampling.clone(),
            max_tokens: options.max_tokens.unwrap_or(usize::MAX),
            min_tokens: options.min_tokens,
            stop_tokens,
            max_draft_depth: options.max_draft_depth.unwrap_or(usize::MAX),
            ..SequenceOptions::default()
        };
        let capacity = self.cache.as_ref().map_or(engine.ctx_size(), KvCache::capacity);
        // What is refused is refused before costs are measured, and before the cache is taken, and lost.
        Sequence::check(engine.config(), prompt, capacity, &sequence_options)
            .map_err(|error| Error::of_prompt(error, engine.config()))?;
        let budget = match options.budget {
            _ if !drafter.drafts() => Budget::Fixed(1),
            Some(nodes) => Budget::Fixed(nodes),
            None => engine.auto_budget()?,
        };
        let cache = self.cache.take().unwrap_or_else(|| engine.new_cache());
        let (model, drafter) = match trace {
            Some(trace) => (trace.model(), trace.drafter(drafter)),
            None => (engine.model(), drafter),
        };
        let sequence = Sequence::new(engine.config(), prompt, cache, drafter, sequence_options)?;
        let generation = Generation::new(model, sequence, budget);
        let detokenizer = engine.tokenizer().detokenizer_after(prompt);
        let about = About { model: engine.name(), strategy: strategy.clone(), seed: options.sampling.seed };
        Ok(Answer::new(generation, TextEnd { detokenizer, stops }, about, &mut self.cache))
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::EngineOptions;

    fn tiny_model() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama")
    }

    fn plain_answer(session: &mut Session<'_>, prompt: &[TokenId]) -> Result<crate::Report, Error> {
        let (max_tokens, strategy) = (Some(3), "none".to_owned());
        let usual = GenerateOptions::new(SamplingSettings::default());
        let options = GenerateOptions { max_tokens, strategy, at_stop_token: AtStopToken::GoOn, ..usual };
        let mut answer = session.generate(prompt, &options)?;
        answer.by_ref().for_each(|piece| drop(piece.unwrap()));
        Ok(answer.finish())
    }

    #[test]
    fn a_refused_prompt_leaves_the_cache() {
        let engine = Engine::open(&tiny_model(), &EngineOptions::default()).unwrap();
        let mut session = engine.session();
        let prompt = [1, 2, 3, 4, 5, 6];
        assert_eq!(plain_answer(&mut session, &prompt).unwrap().timings.cache_n, 0);
        for refused in [&[7; 600][..], &[], &[1, u32::MAX]] {
            plain_answer(&mut session, refused).unwrap_err();
        }
        assert_eq!(plain_answer(&mut session, &prompt).unwrap().timings.cache_n, 5);
    }

    #[test]
    fn a_refused_prompt_measures_no_costs() {
        let directory = tempfile::tempdir().unwrap();
        let cost_curve_directory = Some(directory.path().to_owned());
        let engine =
            Engine::open(&tiny_model(), &EngineOptions { cost_curve_directory, ..EngineOptions::default() }).unwrap();
        let options = GenerateOptions {
            max_tokens: Some(3),
            strategy: "ngram".to_owned(),
            ..GenerateOptions::new(SamplingSettings::default())
        };
        assert!(engine.session().generate(&[7; 600], &options).is_err());
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "no curve");
        assert!(engine.session().generate(&[1, 2, 3], &options).is_ok());
        assert_eq!(directory.path().read_dir().unwrap().count(), 1, "a curve");
    }

    #[test]
    fn a_round_that_reads_the_last_prompt_token_counts_with_its_time() {
        let engine = Engine::open(&tiny_model(), &EngineOptions::default()).unwrap();
        let mut session = engine.session();
        let timings = plain_answer(&mut session, &[1]).unwrap().timings;
        assert_eq!((timings.draft_rounds, timings.predicted_n, timings.prompt_n), (3, 3, 1));
        assert!(timings.prompt_ms <= 0.0, "no pass read the prompt alone: {timings:?}");
        let expected = 3.0 / timings.predicted_ms * 1e3;
        assert!((timings.predicted_per_second / expected - 1.0).abs() < 1e-9, "{timings:?}");
        let timings = plain_answer(&mut session, &[1, 2, 3]).unwrap().timings;
        assert!(timings.draft_rounds == 2 && timings.prompt_ms > 0.0, "{timings:?}");
        let again = plain_answer(&mut session, &[1, 2, 3]).unwrap();
        assert!(again.summary().starts_with("prompt 3 tokens (2 cached) | "), "{}", again.summary());
    }

    #[test]
    fn what_drafts_nothing_needs_no_cost_curve() {
        let model = tiny_model();
        let directory = tempfile::tempdir().unwrap();
        let cost_curve_directory = Some(directory.path().to_owned());
        let engine = Engine::open(&model, &EngineOptions { cost_curve_directory, ..EngineOptions::default() }).unwrap();
        for strategy in ["none", "none,none", "none+none"] {
            let (max_tokens, strategy) = (Some(3), strategy.to_owned());
            let options = GenerateOptions { max_tokens, strategy, ..GenerateOptions::new(SamplingSettings::default()) };
            let mut session = engine.session();
            let mut answer = session.generate(&[1, 2, 3], &options).unwrap();
            answer.by_ref().for_each(|piece| drop(piece.unwrap()));
            let report = answer.finish();
            assert_eq!((report.token_ids.len(), report.timings.draft_n), (3, 0));
            assert_eq!(directory.path().read_dir().unwrap().count(), 0, "{}", report.speculative.strategy);
        }
    }
}
