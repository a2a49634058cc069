//! `pull`: fetches a model, and says what it does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use forestream::places;
use forestream::pull::{DatasetStore, Hub, ModelName, ModelStore, Network, REGISTRY};

use super::console::{self, PullProgress};
use crate::args::{self, PullArgs, StoreArgs};

pub(super) fn run(args: &PullArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        let lines: Vec<String> = REGISTRY
            .iter()
            .map(|model| format!("{:<32} {:>5} MB  {}\n", model.name, model.size_bytes / 1_000_000, model.summary))
            .collect();
        console::print(&lines.concat())?;
        return Ok(ExitCode::SUCCESS);
    }
    let store = store(&args.store);
    let name = ModelName::parse(&args.name)?;
    let mut progress = PullProgress::new();
    let result = store.pull(&name, &mut progress);
    progress.finish();
    let path = result?;
    console::print(&format!("{}\n", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The path of a model, fetched if need be.
pub(super) fn fetch(store: &ModelStore, name: &str) -> anyhow::Result<PathBuf> {
    let name = ModelName::parse(name)?;
    if let Some(path) = store.cached(&name) {
        return Ok(path);
    }
    let mut progress = PullProgress::new();
    let result = store.fetch(&name, &mut progress);
    progress.finish();
    let path = result?;
    console::note(&format!("pulled {name}: {}", path.display()));
    Ok(path)
}

/// The models of this machine, as the flags describe them.
pub(super) fn store(args: &StoreArgs) -> ModelStore {
    ModelStore::new(args::cache_directory(args).join("models"), network(args), hub(args))
}

/// The file of rows that `data` means, fetched if need be.
pub(super) fn fetch_data(args: &StoreArgs, data: &Path) -> anyhow::Result<PathBuf> {
    let mut progress = PullProgress::new();
    let result = DatasetStore { network: network(args), hub: hub(args) }.locate(data, &mut progress);
    progress.finish();
    Ok(result?)
}

fn network(args: &StoreArgs) -> Network {
    match args.offline {
        true => Network::Offline,
        false if places::is_hub_offline() => Network::WithoutHub,
        false => Network::Online,
    }
}

fn hub(args: &StoreArgs) -> Hub {
    Hub { token: args.hf_token.clone().or_else(|| places::variable("HF_TOKEN")) }
}
