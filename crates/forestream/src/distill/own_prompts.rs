//! Prompts that a model writes itself: where its chat template opens a user's turn, it says what a user would.
//!
//! Source: Magpie (arXiv 2406.08464). A draw depends on its number and the seed alone, so that a run goes on where another
//! one ended.

use std::collections::HashSet;

use forestream_decode::SamplingSettings;
use forestream_text::{AddSpecial, ChatInputs, ChatTemplate, Message, ParseSpecial};

use super::{DistillOptions, DistillPrompt, Distillation, DistilledAnswer};
use crate::{Engine, Error, FinishReason};

/// The most draws that are made together, for each place of a batch: enough that most of its places are taken most of the time.
const MAX_DRAWS_OF_PLACE: usize = 16;
/// A model that gives no prompt in as many draws gives none.
const MAX_FRUITLESS: usize = 256;
/// A turn that goes on for longer has lost its thread.
const MAX_TOKENS: usize = 256;
/// Without the tail of the distribution small models stay coherent; the rest is as the model would have it.
const TOP_P: f32 = 0.95;
/// Keeps the draws of prompts apart from those of answers, which have the same numbers.
const SEED_OF_PROMPTS: u64 = 0x9e6c_63d0_876a_68de;
/// Stands where a template has what the user says.
const PLACE: &str = "what-the-user-says";

/// Prompts of a model's own, none twice.
pub struct OwnPrompts<'e> {
    engine: &'e Engine,
    template: ChatTemplate,
    /// All that stands before what the user says.
    opening: DistillPrompt,
    /// What follows it.
    closing: String,
    options: DistillOptions,
    next_draw: usize,
    /// Draws since the last one that gave a prompt.
    fruitless: usize,
    known: HashSet<String>,
}

impl<'e> OwnPrompts<'e> {
    /// Prompts of the model that `engine` runs, `batch_size` of them in one pass, from draw 0 on.
    ///
    /// # Errors
    /// A model without chat template, or one whose template changes what the user says.
    pub fn new(engine: &'e Engine, seed: u64, batch_size: usize) -> Result<Self, Error> {
        let no_prompts = |problem| Error::NoOwnPrompts { problem };
        let template = engine.chat_template()?.ok_or(no_prompts("it has no chat template"))?;
        let turn = template.render(&ChatInputs::new(&[Message::new("user", PLACE)]))?;
        let (opening, closing) =
            turn.split_once(PLACE).ok_or(no_prompts("its chat template changes what the user says"))?;
        let tokens = engine.tokenizer().encode(opening, AddSpecial::Never, ParseSpecial::Yes)?;
        let sampling = SamplingSettings {
            temperature: 1.0,
            top_p: TOP_P,
            seed: seed ^ SEED_OF_PROMPTS,
            ..SamplingSettings::default()
        };
        Ok(Self {
            opening: DistillPrompt { text: opening.to_owned(), tokens, draw: None },
            closing: closing.trim().to_owned(),
            engine,
            template,
            options: DistillOptions { sampling, max_tokens: MAX_TOKENS, batch_size: batch_size.max(1) },
            next_draw: 0,
            fruitless: 0,
            known: HashSet::new(),
        })
    }

    /// Passes over a prompt that an earlier run used, and all draws up to its own.
    pub fn pass_over(&mut self, prompt: String, draw: usize) {
        self.next_draw = self.next_draw.max(draw + 1);
        self.known.insert(prompt);
    }

    /// What the next draws gave, about `wanted` of them, without those that are no prompt, or one that is known already;
    /// nothing once `is_asked` says to end.
    ///
    /// # Errors
    /// If many draws on end gave no new prompt, or a pass failed.
    pub fn draw(&mut self, wanted: usize, is_asked: impl Fn() -> bool) -> Result<Vec<DistillPrompt>, Error> {
        let batch_size = self.options.batch_size;
        let num_draws = wanted.next_multiple_of(batch_size).min(MAX_DRAWS_OF_PLACE * batch_size);
        let turns = vec![self.opening.clone(); num_draws];
        let mut distillation = Distillation::new(self.engine, &turns, self.next_draw, self.options.clone());
        let mut prompts = Vec::new();
        while distillation.step()? {
            if is_asked() {
                return Ok(Vec::new());
            }
            while let Some(turn) = distillation.next_answer() {
                let prompt = self.prompt(&turn)?;
                self.fruitless = if prompt.is_some() { 0 } else { self.fruitless + 1 };
                prompts.extend(prompt);
            }
        }
        self.next_draw += num_draws;
        if self.fruitless >= MAX_FRUITLESS {
            let problem = "turns that it begins as a user do not end, are all alike, or leave no room for an answer";
            return Err(Error::NoOwnPrompts { problem });
        }
        Ok(prompts)
    }

    /// A turn as a prompt, if it is one.
    fn prompt(&mut self, turn: &DistilledAnswer) -> Result<Option<DistillPrompt>, Error> {
        let closing = Some(&*self.closing).filter(|closing| !closing.is_empty());
        let text = match closing.and_then(|closing| turn.completion.split_once(closing)) {
            Some((text, _)) => text.trim(),
            None if turn.finish_reason == FinishReason::Stop => turn.completion.trim(),
            None => return Ok(None),
        };
        if text.is_empty() || self.known.contains(text) {
            return Ok(None);
        }
        let tokens = self.engine.session().chat_prompt(&self.template, &[Message::new("user", text)], None)?;
        if tokens.len() >= self.engine.ctx_size() {
            return Ok(None);
        }
        self.known.insert(text.to_owned());
        Ok(Some(DistillPrompt { text: text.to_owned(), tokens, draw: Some(turn.index) }))
    }
}
