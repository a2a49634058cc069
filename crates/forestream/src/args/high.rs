//! From what was typed to what the library takes.

use forestream::{
    AdapterChoice, AtStopToken, EngineOptions, GenerateOptions, Pruning, SamplingSettings, StreamingOptions, TreeShape,
};

use super::low::{AdapterArgs, BackendArgs, BudgetArgs, LengthArgs, ModelArgs, SamplingArgs, SpecArgs, StoreArgs};
use super::values::{SpecType, StreamPassName};

/// Where pulled models and measurements are kept.
pub(crate) fn cache_directory(args: &StoreArgs) -> std::path::PathBuf {
    args.cache.clone().unwrap_or_else(forestream::places::cache_directory)
}

/// How the model is loaded with `adapter` by `backend`, for drafting with `spec_types`.
pub(crate) fn engine_options(
    args: &ModelArgs,
    adapter: &AdapterArgs,
    backend: &BackendArgs,
    spec_types: &[SpecType],
) -> EngineOptions {
    let choice = match &adapter.adapter {
        Some(directory) => AdapterChoice::Directory(directory.clone()),
        None if spec_types.iter().any(SpecType::may_use_streams) => AdapterChoice::Included,
        None => AdapterChoice::None,
    };
    EngineOptions {
        name: None,
        backend: backend.backend,
        device: backend.device,
        threads: nonzero(args.threads),
        ctx_size: nonzero(args.ctx_size),
        isa: args.isa,
        quantize: args.quantize,
        adapter: choice,
        merge_adapter: adapter.merge_adapter,
        cost_curve_directory: Some(cache_directory(&args.store).join("cost-curves")),
        note: None,
        is_stopped: None,
    }
}

/// How tokens are drawn: `defaults`, changed by what was typed.
pub(crate) fn sampling(args: &SamplingArgs, defaults: &SamplingSettings) -> SamplingSettings {
    let last_n = args.repeat_last_n.map(|n| usize::try_from(n).ok()); // -1: all tokens
    SamplingSettings {
        temperature: args.temp.unwrap_or(defaults.temperature),
        top_k: args.top_k.map_or(defaults.top_k, nonzero),
        top_p: args.top_p.unwrap_or(defaults.top_p),
        min_p: args.min_p.unwrap_or(defaults.min_p),
        typical_p: args.typical.unwrap_or(defaults.typical_p),
        repeat_penalty: args.repeat_penalty.unwrap_or(defaults.repeat_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(defaults.presence_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(defaults.frequency_penalty),
        penalty_last_n: last_n.unwrap_or(defaults.penalty_last_n),
        logit_bias: args.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
        seed: u64::try_from(args.seed).unwrap_or(defaults.seed), // -1: a random one
    }
}

/// What is asked of an answer.
pub(crate) fn generate_options(length: &LengthArgs, spec: &SpecArgs, sampling: SamplingSettings) -> GenerateOptions {
    GenerateOptions {
        max_tokens: usize::try_from(length.max_tokens).ok(), // -1: no limit
        min_tokens: length.min_tokens,
        stop: length.stop.clone(),
        at_stop_token: if length.ignore_eos { AtStopToken::GoOn } else { AtStopToken::Stop },
        ..drafting(&spec.budget, strategy(&spec.spec_type), sampling)
    }
}

/// Options of an answer with this strategy.
pub(crate) fn drafting(budget: &BudgetArgs, strategy: String, sampling: SamplingSettings) -> GenerateOptions {
    GenerateOptions {
        strategy,
        streaming: StreamingOptions {
            pass: budget.spec_stream_pass.into(),
            tree: tree_shape(budget),
            pruning: pruning(budget),
        },
        max_draft_depth: budget.spec_draft_n_max,
        budget: budget.spec_tree_max_tokens.map(usize::from),
        ..GenerateOptions::new(sampling)
    }
}

/// A flag that says how streams draft, if one was given.
pub(crate) fn streaming_flag(budget: &BudgetArgs) -> Option<&'static str> {
    let flags = [
        ("--spec-tree-topk", budget.spec_tree_topk.is_some()),
        ("--spec-stream-pass", budget.spec_stream_pass != StreamPassName::Deferred),
        ("--spec-prune-threshold", budget.spec_prune_threshold.is_some()),
        ("--spec-prune-nodes", budget.spec_prune_nodes.is_some()),
    ];
    flags.into_iter().find_map(|(flag, is_given)| is_given.then_some(flag))
}

fn pruning(budget: &BudgetArgs) -> Option<Pruning> {
    let best = budget.spec_prune_nodes.map(|nodes| Pruning::Best(nodes.into()));
    budget.spec_prune_threshold.map(Pruning::Threshold).or(best)
}

fn tree_shape(budget: &BudgetArgs) -> TreeShape {
    budget.spec_tree_topk.map_or(TreeShape::BestFirst, |top_k| TreeShape::Static { top_k: usize::from(top_k) })
}

fn strategy(names: &[SpecType]) -> String {
    names.iter().map(|name| name.0.as_str()).collect::<Vec<_>>().join(",")
}

/// Where 0 stands for "not limited" or "as the model says".
pub(super) fn nonzero(number: usize) -> Option<usize> {
    Some(number).filter(|&number| number > 0)
}
