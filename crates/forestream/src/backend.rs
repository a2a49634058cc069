//! Back ends: what computes a model's passes. The command line, its help and the errors read one list, [`BACKENDS`].
//!
//! A back end says which settings it honours and makes a [`Model`]; nothing else asks which one it is.

use std::fmt;
use std::sync::Arc;

use forestream_burn::{BurnModel, NamedDevice};
use forestream_model::streams::Adapter;
use forestream_model::{Checkpoint, CpuModel, Isa, LoadOptions, Model};

use crate::{EngineOptions, Error};

/// Something that computes passes.
pub struct Backend {
    /// Its name, for `--backend`.
    pub name: &'static str,
    /// What it is, for lists.
    pub summary: &'static str,
    settings: &'static [Setting],
    place: fn(&EngineOptions) -> Place,
    load: Load,
}

/// Loads a model, with an adapter's streams and changes.
type Load = fn(&Checkpoint, &EngineOptions, Option<Adapter>) -> Result<Arc<dyn Model>, Error>;

/// The back ends, the usual one first.
pub static BACKENDS: &[Backend] = &[
    Backend {
        name: "cpu",
        summary: "the engine: fast on the processor",
        settings: &[Setting::Threads, Setting::Isa, Setting::MergeAdapter],
        place: |options| {
            let LoadOptions { num_threads, isa } = load_options(options.threads, options.isa);
            Place { kernels: isa.name(), threads: num_threads }
        },
        load: load_cpu,
    },
    Backend {
        name: "burn",
        summary: "the same layers as Burn tensors: slow, a reference, on any device of this build",
        settings: &[Setting::Device],
        place: |options| Place { kernels: device(options).name, threads: LoadOptions::default().num_threads },
        load: load_burn,
    },
];

/// What passes run on, as far as their speed depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The instruction set or the device.
    pub(crate) kernels: &'static str,
    pub(crate) threads: usize,
}

/// A setting that not every back end honours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Threads,
    Isa,
    Device,
    MergeAdapter,
}

impl Setting {
    const ALL: [Self; 4] = [Self::Threads, Self::Isa, Self::Device, Self::MergeAdapter];

    const fn flag(self) -> &'static str {
        match self {
            Self::Threads => "--threads",
            Self::Isa => "--isa",
            Self::Device => "--device",
            Self::MergeAdapter => "--merge-adapter",
        }
    }

    fn is_asked(self, options: &EngineOptions) -> bool {
        match self {
            Self::Threads => options.threads.is_some(),
            Self::Isa => options.isa.is_some(),
            Self::Device => options.device.is_some(),
            Self::MergeAdapter => options.merge_adapter,
        }
    }
}

impl Backend {
    /// The back end of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        BACKENDS.iter().find(|backend| backend.name == name)
    }

    /// Refuses settings that it would not honour.
    pub(crate) fn check(&self, options: &EngineOptions) -> Result<(), Error> {
        let refused = |setting: &Setting| setting.is_asked(options) && !self.settings.contains(setting);
        let Some(setting) = Setting::ALL.into_iter().find(refused) else { return Ok(()) };
        let others = BACKENDS.iter().filter(|backend| backend.settings.contains(&setting));
        let others: Vec<&str> = others.map(|backend| backend.name).collect();
        Err(Error::Backend { name: self.name, flag: setting.flag(), others: others.join(" or ") })
    }

    /// What its passes will run on.
    pub(crate) fn place(&self, options: &EngineOptions) -> Place {
        (self.place)(options)
    }

    /// Loads a model, with an adapter's streams and changes.
    pub(crate) fn load(
        &self,
        checkpoint: &Checkpoint,
        options: &EngineOptions,
        adapter: Option<Adapter>,
    ) -> Result<Arc<dyn Model>, Error> {
        (self.load)(checkpoint, options, adapter)
    }
}

impl Default for &'static Backend {
    fn default() -> Self {
        &BACKENDS[0]
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Backend").field(&self.name).finish()
    }
}

/// How the engine loads a model; `None` takes the usual.
pub(crate) fn load_options(threads: Option<usize>, isa: Option<Isa>) -> LoadOptions {
    let usual = LoadOptions::default();
    LoadOptions { num_threads: threads.unwrap_or(usual.num_threads), isa: isa.unwrap_or(usual.isa) }
}

fn load_cpu(
    checkpoint: &Checkpoint,
    options: &EngineOptions,
    adapter: Option<Adapter>,
) -> Result<Arc<dyn Model>, Error> {
    let mut model = CpuModel::load(checkpoint, load_options(options.threads, options.isa))?;
    if let Some(adapter) = adapter {
        if options.merge_adapter {
            model.attach_merged(adapter, checkpoint)?;
        } else {
            model.attach(adapter, checkpoint)?;
        }
    }
    Ok(Arc::new(model))
}

fn device(options: &EngineOptions) -> &'static NamedDevice {
    options.device.unwrap_or_default()
}

fn load_burn(
    checkpoint: &Checkpoint,
    options: &EngineOptions,
    adapter: Option<Adapter>,
) -> Result<Arc<dyn Model>, Error> {
    let mut model = BurnModel::load(checkpoint, &device(options).open())?;
    if let Some(adapter) = adapter {
        model.attach(adapter);
    }
    Ok(Arc::new(model))
}
