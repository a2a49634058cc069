//! Strategies side by side on the same prompts: the same loop, kernels and process, arms taking turns prompt by prompt.
//!
//! Plain decoding is always one arm, and its tokens are what `identical` compares with. Speeds are total tokens over
//! total seconds, never means of ratios; `docs/cli.md` defines each figure. Must not know where prompts come from.

use std::collections::BTreeMap;

use forestream_decode::strategies::PLAIN;
use forestream_model::TokenId;
use serde::Serialize;

use crate::report::ratio;
use crate::statistics::percentile;
use crate::{Engine, Error, GenerateOptions, Report};

/// Most tokens of an answer that nobody counts.
const WARM_UP_TOKENS: usize = 8;

/// A prompt to compare on.
#[derive(Clone, Debug)]
pub struct ComparePrompt {
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    /// Its kind, where known.
    pub category: Option<String>,
}

/// The result of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The model's name.
    pub model: String,
    /// Threads in use.
    pub threads: usize,
    /// Number of prompts that went through all strategies.
    pub num_prompts: usize,
    /// Most tokens for each prompt.
    pub max_tokens: Option<usize>,
    /// Sampling temperature.
    pub temperature: f32,
    /// The seed of the draws.
    pub seed: u64,
    /// One entry for each strategy, plain decoding first.
    pub arms: Vec<Arm>,
}

/// One strategy.
#[derive(Clone, Debug, Serialize)]
pub struct Arm {
    /// The strategy.
    pub spec_type: String,
    /// Its figures over all prompts.
    #[serde(flatten)]
    pub figures: Figures,
    /// Rounds by the number of draft tokens that they accepted.
    pub acceptance_histogram: Vec<usize>,
    /// Weights besides the model's own.
    pub extra_parameters: u64,
    /// Whether every token of every prompt is that of plain decoding.
    pub identical: bool,
    /// Prompts whose tokens differ, by their number from 1.
    pub different_prompts: Vec<usize>,
    /// The 5th percentile of the speedups of single prompts.
    pub speedup_p5: f64,
    /// The figures of each category.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub categories: BTreeMap<String, Figures>,
}

/// Figures over some prompts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Number of prompts.
    pub num_prompts: usize,
    /// Generated tokens.
    pub completion_tokens: usize,
    /// Tokens that rounds gave per second of rounds.
    pub tokens_per_second: f64,
    /// That, relative to plain decoding.
    pub speedup: f64,
    /// All generated tokens per second, prompt reading included.
    pub end_to_end_tokens_per_second: f64,
    /// That, relative to plain decoding.
    pub end_to_end_speedup: f64,
    /// Rounds of plain decoding per round of this strategy.
    pub call_reduction_ratio: f64,
    /// Emitted tokens per round.
    pub mean_acceptance_length: f64,
    /// Accepted draft tokens per verified one.
    pub draft_acceptance_rate: f64,
    /// Draft tokens that the early exit ended per verified one.
    pub draft_pruned_rate: f64,
    /// Rounds.
    pub rounds: usize,
    /// Seconds of prompt reading.
    pub prefill_seconds: f64,
    /// Seconds of rounds.
    pub decode_seconds: f64,
}

/// One answer of one arm.
#[derive(Clone, Debug)]
struct Run {
    category: Option<String>,
    report: Report,
}

impl Run {
    /// Tokens that rounds gave: all but the one of the prompt's last pass, where that was no round.
    fn by_rounds(&self) -> usize {
        self.report.timings.draft_n_accepted + self.report.timings.draft_rounds
    }

    fn decode_seconds(&self) -> f64 {
        self.report.timings.predicted_ms / 1e3
    }
}

/// Runs plain decoding and every one of `strategies` on every prompt, `repetitions` times (at least once); of each answer the
/// run with the median time counts. All have the same `options`, but for the strategy, so that all draw the same numbers.
/// `progress` is told the number of prompts done before every token, and decides whether to go on; where it does not, the
/// prompt under way is dropped.
///
/// # Errors
/// An unknown strategy, a prompt that cannot be used, or a pass that fails.
pub fn compare(
    engine: &Engine,
    prompts: &[ComparePrompt],
    strategies: &[String],
    options: &GenerateOptions,
    repetitions: usize,
    mut progress: impl FnMut(usize) -> KeepGoing,
) -> Result<Comparison, Error> {
    let capacity = engine.ctx_size();
    if let Some(index) = prompts.iter().position(|prompt| prompt.tokens.len() >= capacity) {
        let prompt_tokens = prompts[index].tokens.len();
        let trained = engine.config().max_position_embeddings;
        let source = Box::new(Error::PromptTooLong { prompt_tokens, ctx_size: capacity, trained });
        return Err(Error::Prompt { number: index + 1, source }); // before anything is measured, and lost
    }
    let with_strategy = |strategy| GenerateOptions { strategy, ..options.clone() };
    let arms: Vec<GenerateOptions> = plain_first(strategies).into_iter().map(with_strategy).collect();
    let runs = measure(engine, prompts, &arms, repetitions.max(1), &mut progress)?;
    let plain = &runs[0];
    let described = arms.iter().zip(&runs).map(|(options, runs)| Arm {
        extra_parameters: engine.extra_parameters(&options.strategy),
        ..Arm::new(&options.strategy, runs, plain)
    });
    Ok(Comparison {
        model: engine.name().to_owned(),
        threads: engine.threads(),
        num_prompts: plain.len(),
        max_tokens: options.max_tokens,
        temperature: options.sampling.temperature,
        seed: options.sampling.seed,
        arms: described.collect(),
    })
}

/// The strategy of each arm: plain decoding is the first, named or not. Named twice it is measured twice: what its arms differ
/// by is the machine's noise.
fn plain_first(strategies: &[String]) -> Vec<String> {
    let mut arms = strategies.to_vec();
    if let Some(index) = arms.iter().position(|strategy| strategy == PLAIN) {
        arms.remove(index);
    }
    arms.insert(0, PLAIN.to_owned());
    arms
}

/// Whether a comparison goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepGoing {
    /// It does.
    Yes,
    /// It ends with the prompts so far.
    No,
}

/// For each arm one run of each prompt, as far as `progress` lets it go.
fn measure(
    engine: &Engine,
    prompts: &[ComparePrompt],
    arms: &[GenerateOptions],
    repetitions: usize,
    progress: &mut impl FnMut(usize) -> KeepGoing,
) -> Result<Vec<Vec<Run>>, Error> {
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); arms.len()];
    for (index, prompt) in prompts.iter().enumerate() {
        let mut keep_going = || progress(index);
        if index == 0 && !warm_up(engine, prompt, arms, &mut keep_going)? {
            break;
        }
        let mut repeated: Vec<Vec<Run>> = vec![Vec::new(); arms.len()];
        for turn in 0..arms.len() * repetitions {
            let arm = (turn + index + turn / arms.len()) % arms.len(); // nobody always goes first, or after the same
            let run = run(engine, prompt, &arms[arm], &mut keep_going)
                .map_err(|error| Error::Prompt { number: index + 1, source: Box::new(error) })?;
            let Some(run) = run else { return Ok(runs) };
            repeated[arm].push(run);
        }
        for (runs, repeated) in runs.iter_mut().zip(repeated) {
            runs.push(median(repeated));
        }
    }
    Ok(runs)
}

/// A few tokens of every arm that nobody counts; `false` where it was asked to end.
fn warm_up(
    engine: &Engine,
    prompt: &ComparePrompt,
    arms: &[GenerateOptions],
    keep_going: &mut impl FnMut() -> KeepGoing,
) -> Result<bool, Error> {
    for options in arms {
        let min_tokens = options.min_tokens.min(WARM_UP_TOKENS);
        let options = GenerateOptions { max_tokens: Some(WARM_UP_TOKENS), min_tokens, ..options.clone() };
        if run(engine, prompt, &options, keep_going)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// One answer; nothing where it was asked to end before.
fn run(
    engine: &Engine,
    prompt: &ComparePrompt,
    options: &GenerateOptions,
    keep_going: &mut impl FnMut() -> KeepGoing,
) -> Result<Option<Run>, Error> {
    let mut session = engine.session();
    let mut answer = session.generate(&prompt.tokens, options)?;
    while keep_going() == KeepGoing::Yes {
        match answer.next() {
            Some(piece) => drop(piece?),
            None => return Ok(Some(Run { category: prompt.category.clone(), report: answer.finish() })),
        }
    }
    Ok(None)
}

/// The run with the median decoding time; or one with other tokens than the first, which must not go unnoticed.
fn median(mut runs: Vec<Run>) -> Run {
    if let Some(index) = runs.iter().position(|run| run.report.token_ids != runs[0].report.token_ids) {
        return runs.swap_remove(index);
    }
    runs.sort_by(|a, b| a.decode_seconds().total_cmp(&b.decode_seconds()));
    runs.swap_remove((runs.len() - 1) / 2)
}

impl Arm {
    fn new(spec_type: &str, runs: &[Run], plain: &[Run]) -> Self {
        let pairs: Vec<(&Run, &Run)> = runs.iter().zip(plain).collect();
        let differs = |(index, (run, plain)): (usize, &(&Run, &Run))| {
            (run.report.token_ids != plain.report.token_ids).then_some(index + 1)
        };
        let different_prompts: Vec<usize> = pairs.iter().enumerate().filter_map(differs).collect();
        let speedups: Vec<f64> = pairs.iter().filter_map(|(run, plain)| speedup_of_one(run, plain)).collect();
        let mut acceptance_histogram = Vec::new();
        for run in runs {
            add_histogram(&mut acceptance_histogram, &run.report.speculative.acceptance_histogram);
        }
        Self {
            spec_type: spec_type.to_owned(),
            figures: Figures::of(&pairs),
            acceptance_histogram,
            extra_parameters: 0,
            identical: different_prompts.is_empty(),
            different_prompts,
            speedup_p5: percentile(&speedups, 5.0),
            categories: by_category(&pairs),
        }
    }
}

/// Absent where a prompt's answer is a single token: nothing was decoded in rounds.
fn speedup_of_one(run: &Run, plain: &Run) -> Option<f64> {
    (run.by_rounds() > 0 && plain.by_rounds() > 0).then(|| {
        let rate = |run: &Run| ratio(run.by_rounds() as f64, run.decode_seconds());
        ratio(rate(run), rate(plain))
    })
}

fn by_category(pairs: &[(&Run, &Run)]) -> BTreeMap<String, Figures> {
    let mut groups: BTreeMap<String, Vec<(&Run, &Run)>> = BTreeMap::new();
    for &(run, plain) in pairs {
        if let Some(category) = &run.category {
            groups.entry(category.clone()).or_default().push((run, plain));
        }
    }
    groups.into_iter().map(|(category, pairs)| (category, Figures::of(&pairs))).collect()
}

fn add_histogram(sum: &mut Vec<usize>, counts: &[usize]) {
    sum.resize(sum.len().max(counts.len()), 0);
    for (sum, count) in sum.iter_mut().zip(counts) {
        *sum += count;
    }
}

impl Figures {
    fn of(pairs: &[(&Run, &Run)]) -> Self {
        let runs: Vec<&Run> = pairs.iter().map(|(run, _)| *run).collect();
        let plain: Vec<&Run> = pairs.iter().map(|(_, plain)| *plain).collect();
        let (own, base) = (Self::totals(&runs), Self::totals(&plain));
        Self {
            speedup: ratio(own.tokens_per_second, base.tokens_per_second),
            end_to_end_speedup: ratio(own.end_to_end_tokens_per_second, base.end_to_end_tokens_per_second),
            call_reduction_ratio: ratio(base.rounds as f64, own.rounds as f64),
            ..own
        }
    }

    /// Everything that does not need plain decoding to compare with.
    fn totals(runs: &[&Run]) -> Self {
        let sum = |value: fn(&Run) -> usize| runs.iter().map(|run| value(run)).sum::<usize>();
        let seconds = |value: fn(&Run) -> f64| runs.iter().map(|run| value(run)).sum::<f64>();
        let rounds = sum(|run| run.report.speculative.rounds);
        let by_rounds = sum(Run::by_rounds);
        let completion_tokens = sum(|run| run.report.timings.predicted_n);
        let (accepted, drafted) =
            (sum(|run| run.report.timings.draft_n_accepted), sum(|run| run.report.timings.draft_n));
        let prefill_seconds = seconds(|run| run.report.timings.prompt_ms / 1e3);
        let decode_seconds = seconds(Run::decode_seconds);
        Self {
            num_prompts: runs.len(),
            completion_tokens,
            tokens_per_second: ratio(by_rounds as f64, decode_seconds),
            end_to_end_tokens_per_second: ratio(completion_tokens as f64, prefill_seconds + decode_seconds),
            mean_acceptance_length: 1.0 + ratio(accepted as f64, rounds as f64),
            draft_acceptance_rate: ratio(accepted as f64, drafted as f64),
            draft_pruned_rate: ratio(sum(|run| run.report.speculative.pruned_tokens) as f64, drafted as f64),
            rounds,
            prefill_seconds,
            decode_seconds,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forestream_decode::SamplingSettings;

    use super::*;
    use crate::{EngineOptions, ReportTimings, Speculative};

    /// An answer of `rounds` rounds that accepted one draft token each, in `ms` milliseconds.
    fn run(rounds: usize, accepted: usize, ms: f64, category: &str) -> Run {
        let num_tokens = rounds + accepted + 1;
        Run {
            category: Some(category.to_owned()),
            report: Report {
                token_ids: (0..num_tokens as u32).collect(),
                timings: ReportTimings {
                    predicted_n: num_tokens,
                    predicted_ms: ms,
                    prompt_ms: 10.0,
                    draft_n: 2 * accepted,
                    draft_n_accepted: accepted,
                    draft_rounds: rounds,
                    ..ReportTimings::default()
                },
                speculative: Speculative { rounds, acceptance_histogram: vec![rounds], ..Speculative::default() },
                ..Report::default()
            },
        }
    }

    fn assert_close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9, "{got} is not {expected}");
    }

    #[test]
    fn plain_decoding_is_always_the_first_arm() {
        let cases: [(&[&str], &[&str]); 4] = [
            (&[], &["none"]),
            (&["ngram", "auto"], &["none", "ngram", "auto"]),
            (&["ngram", "none"], &["none", "ngram"]),
            (&["none", "ngram", "none"], &["none", "ngram", "none"]),
        ];
        for (strategies, expected) in cases {
            let strategies: Vec<String> = strategies.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(plain_first(&strategies), expected);
        }
    }

    #[test]
    fn without_strategies_plain_decoding_is_compared_with_itself() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let engine = Engine::open(&model, &EngineOptions::default()).unwrap();
        let prompts = [ComparePrompt { tokens: vec![1, 2, 3], category: None }];
        let options = GenerateOptions { max_tokens: Some(3), ..GenerateOptions::new(SamplingSettings::default()) };
        let comparison = compare(&engine, &prompts, &[], &options, 1, |_| KeepGoing::Yes).unwrap();
        assert_eq!((comparison.arms.len(), comparison.num_prompts), (1, 1));
        let arm = &comparison.arms[0];
        assert_eq!((arm.spec_type.as_str(), arm.identical, arm.figures.completion_tokens), ("none", true, 3));
    }

    #[test]
    fn what_is_under_way_is_dropped_and_what_is_complete_stays() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let engine = Engine::open(&model, &EngineOptions::default()).unwrap();
        let prompts = [1, 2, 3].map(|token| ComparePrompt { tokens: vec![token], category: None });
        let options = GenerateOptions {
            max_tokens: Some(20),
            min_tokens: 20,
            ..GenerateOptions::new(SamplingSettings::default())
        };
        for complete in [0, 1, 2] {
            let mut calls = 0;
            let comparison = compare(&engine, &prompts, &["ngram".to_owned()], &options, 2, |done| {
                calls += usize::from(done == complete);
                assert!(calls <= 12, "it goes on after it was asked to end");
                if calls == 12 { KeepGoing::No } else { KeepGoing::Yes }
            });
            let comparison = comparison.unwrap();
            assert_eq!((comparison.num_prompts, comparison.arms.len()), (complete, 2));
            for arm in &comparison.arms {
                assert_eq!((arm.figures.completion_tokens, arm.identical), (20 * complete, true));
            }
        }
    }

    #[test]
    fn speeds_are_totals_over_totals() {
        let plain = [run(100, 0, 1000.0, "a"), run(10, 0, 100.0, "b")];
        let drafted = [run(50, 50, 500.0, "a"), run(10, 0, 200.0, "b")];
        let arm = Arm::new("ngram", &drafted, &plain);
        assert_close(arm.figures.tokens_per_second, 110.0 / 0.7);
        assert_close(arm.figures.speedup, 1.1 / 0.7);
        assert_close(arm.figures.call_reduction_ratio, 110.0 / 60.0);
        assert_close(arm.figures.mean_acceptance_length, 1.0 + 50.0 / 60.0);
        assert_close(arm.figures.draft_acceptance_rate, 0.5);
        assert_close(arm.figures.end_to_end_tokens_per_second, 112.0 / 0.72);
        assert_close(arm.speedup_p5, 0.5 + 0.05 * 1.5);
        assert_close(arm.categories["a"].speedup, 2.0);
        assert_close(arm.categories["b"].speedup, 0.5);
        assert_eq!(arm.acceptance_histogram, [60]);
        assert!(arm.identical);
    }

    #[test]
    fn the_median_counts_unless_a_run_has_other_tokens() {
        let mut runs = vec![run(5, 0, 30.0, "a"), run(5, 0, 10.0, "a"), run(5, 0, 20.0, "a")];
        assert_close(median(runs.clone()).report.timings.predicted_ms, 20.0);
        assert_close(median(runs[..2].to_vec()).report.timings.predicted_ms, 10.0);
        runs[1].report.token_ids[0] = 99;
        assert_eq!(median(runs).report.token_ids[0], 99);
    }

    #[test]
    fn a_different_token_is_reported_with_its_prompt() {
        let plain = [run(10, 0, 1.0, "a"), run(10, 0, 1.0, "a")];
        let mut other = plain.clone();
        other[1].report.token_ids[3] = 99;
        let arm = Arm::new("ngram", &other, &plain);
        assert!(!arm.identical);
        assert_eq!(arm.different_prompts, [2]);
    }
}
