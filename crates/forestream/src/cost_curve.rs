//! The cost of a pass over n nodes, measured once per machine, model and number of threads, and kept in a file.
//! [`measurement`] says how.
//!
//! A busy machine gives a wrong curve, and the size of every later draft would follow it. So the file also keeps how long
//! the plainest pass took then, and the curve is measured again where that pass turns out to be clearly quicker.
//!
//! A file of another version, machine or model counts as absent, and so does one that cannot be read; a file that cannot
//! be written is not an error, since the next run only measures again.

mod measurement;

use std::path::Path;
use std::{fs, io};

use forestream_decode::{CostCurve, DecodeError};
use forestream_model::streams::{Adapter, MainLoraConfig, StreamConfig};
use forestream_model::{Checkpoint, Model};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backend::Place;
use crate::tree_passes::TreePasses;

pub(crate) use measurement::{MeasuredCurve, Supervision};
use measurement::{SIZES, measure};

/// Counts up when the meaning of the file or the speed of the kernels changes.
const VERSION: u32 = 11;
/// Passes over one node without context; the quickest tells how busy the machine is.
const PLAIN_PASSES: usize = 6;
/// After so many seconds no further ones are run.
const PLAIN_SECONDS: f64 = 0.25;
/// A curve is measured again where such a pass takes less than this part of the time that it took then.
const QUICKER: f64 = 0.85;

/// What a curve is valid for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CostCurveKey {
    version: u32,
    program: String,
    cpu: String,
    isa: String,
    threads: usize,
    model: String,
    format: String,
    /// Sizes of the streams, where the model has some.
    streams: Option<StreamConfig>,
    /// Changes of main rows, where an adapter makes some.
    main_lora: Option<MainLoraConfig>,
}

impl CostCurveKey {
    /// The key of a model on this machine.
    pub(crate) fn new(checkpoint: &Checkpoint, weight_format: String, place: Place, adapter: Option<&Adapter>) -> Self {
        Self {
            version: VERSION,
            program: format!(
                "{} ({})",
                env!("CARGO_PKG_VERSION"),
                if cfg!(debug_assertions) { "debug" } else { "release" }
            ),
            cpu: cpu_name(),
            isa: place.kernels.to_owned(),
            threads: place.threads,
            model: checkpoint.fingerprint(),
            format: weight_format,
            streams: adapter.map(|adapter| adapter.config.streams.clone()),
            main_lora: adapter.and_then(|adapter| adapter.config.main_lora.clone()),
        }
    }

    /// What tells this model from others: its fingerprint.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.model
    }

    /// How its weights are stored.
    pub(crate) fn format(&self) -> &str {
        &self.format
    }

    fn file_name(&self) -> String {
        let model = self.model.get(..16).unwrap_or(&self.model);
        let digest = Sha256::digest(serde_json::to_vec(self).expect("a key is plain data"));
        let rest = digest.iter().take(8).fold(0_u64, |number, &byte| (number << 8) | u64::from(byte));
        format!("{model}-{}-t{}-{rest:016x}.json", self.isa, self.threads)
    }
}

/// A curve in its file.
#[derive(Debug, Serialize, Deserialize)]
struct StoredCurve {
    key: CostCurveKey,
    /// Seconds of a pass over one node without context, when the curve was measured.
    plain_seconds: f64,
    /// Nodes and seconds of all sizes; those of large ones may follow from the others.
    points: Vec<(usize, f64)>,
    /// Seconds of drafting with 1, 2, ... streams.
    draft_seconds: Vec<f64>,
}

impl StoredCurve {
    /// The curve, if it is one that a measurement gives.
    fn curve(&self) -> Option<CostCurve> {
        let has_all_sizes = self.points.iter().map(|&(nodes, _)| nodes).eq(SIZES.iter().copied());
        let num_streams = self.key.streams.as_ref().map_or(0, |streams| streams.num_streams);
        let are_whole = self.draft_seconds.len() == num_streams
            && self.draft_seconds.iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0);
        let is_timed = self.plain_seconds.is_finite() && self.plain_seconds > 0.0;
        let curve = CostCurve::new(&self.points).ok().filter(|_| has_all_sizes && are_whole && is_timed)?;
        Some(curve.with_draft_seconds(self.draft_seconds.clone()))
    }
}

/// The curve from its file, or measured now: where there is none, or the machine was busier then. One whose measurement was
/// stopped does not get into the file.
///
/// # Errors
/// If a pass of the measurement fails.
pub(crate) fn load_or_measure(
    model: &dyn Model,
    key: &CostCurveKey,
    directory: Option<&Path>,
    supervision: &Supervision<'_>,
) -> Result<MeasuredCurve, DecodeError> {
    let Some(directory) = directory else { return measure(model, supervision) };
    let plain_seconds = plain_pass(model, supervision)?;
    let stored = load(key, directory).filter(|stored| plain_seconds >= QUICKER * stored.plain_seconds);
    if let Some(curve) = stored.and_then(|stored| stored.curve()) {
        return Ok(MeasuredCurve { curve, is_complete: true });
    }
    let measured = measure(model, supervision)?;
    if measured.is_complete {
        let plain_seconds = plain_seconds.max(plain_pass(model, supervision)?);
        let _ = store(key, plain_seconds, &measured.curve, directory); // the next run measures again
    }
    Ok(measured)
}

/// Seconds of the quickest of some passes over one node without context. The first one is slow, while buffers grow and weights
/// enter memory; it counts where there is no time for others.
fn plain_pass(model: &dyn Model, supervision: &Supervision<'_>) -> Result<f64, DecodeError> {
    let mut passes = TreePasses::new(model, 0, 1)?;
    let (mut quickest, mut total) = (f64::INFINITY, 0.0);
    for _ in 0..PLAIN_PASSES {
        let seconds = supervision.seconds(|| passes.run(1))?;
        quickest = quickest.min(seconds);
        total += seconds;
        if total > PLAIN_SECONDS {
            break;
        }
    }
    Ok(quickest)
}

fn load(key: &CostCurveKey, directory: &Path) -> Option<StoredCurve> {
    let text = fs::read_to_string(directory.join(key.file_name())).ok()?;
    let stored: StoredCurve = serde_json::from_str(&text).ok()?;
    (stored.key == *key).then_some(stored)
}

fn store(key: &CostCurveKey, plain_seconds: f64, curve: &CostCurve, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let stored = StoredCurve {
        key: key.clone(),
        plain_seconds,
        points: curve.points().to_vec(),
        draft_seconds: curve.draft_points().to_vec(),
    };
    let path = directory.join(key.file_name());
    let temporary = directory.join(format!("{}.{}.tmp", key.file_name(), std::process::id()));
    fs::write(&temporary, serde_json::to_string_pretty(&stored)?)?;
    fs::rename(temporary, path)
}

/// What the system calls this processor.
fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(':'));
    line.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use forestream_decode::testing::FakeModel;

    use super::measurement::tests::TimedModel;
    use super::*;

    fn key(threads: usize) -> CostCurveKey {
        CostCurveKey {
            version: VERSION,
            program: "0".to_owned(),
            cpu: "a processor".to_owned(),
            isa: "generic".to_owned(),
            threads,
            model: "0123456789abcdef0123456789abcdef".to_owned(),
            format: "as stored".to_owned(),
            streams: fake().streams().map(|streams| streams.adapter().streams.clone()),
            main_lora: None,
        }
    }

    fn fake() -> FakeModel {
        FakeModel::new(50, 1.0)
    }

    /// A curve as a measurement of the fake model gives it.
    fn measured() -> CostCurve {
        let points: Vec<(usize, f64)> = SIZES.iter().map(|&nodes| (nodes, nodes as f64)).collect();
        let num_streams = key(1).streams.map_or(0, |streams| streams.num_streams);
        CostCurve::new(&points).unwrap().with_draft_seconds(vec![0.5; num_streams])
    }

    #[test]
    fn a_curve_is_kept_until_the_machine_is_quicker() {
        let directory = tempfile::tempdir().unwrap();
        let model = fake();
        let start = Instant::now();
        let clock = || start.elapsed().as_secs_f64();
        let supervision = Supervision { clock: &clock, note: None, is_stopped: None };
        let curve = || load_or_measure(&model, &key(1), Some(directory.path()), &supervision).unwrap().curve;
        let first = curve();
        assert_eq!(first.max_nodes(), 32);
        assert_eq!(load(&key(1), directory.path()).and_then(|stored| stored.curve()), Some(first.clone()));
        store(&key(1), 1e-12, &first, directory.path()).unwrap();
        assert_eq!(curve(), first, "two measurements never agree to the last bit");
        store(&key(1), 1e9, &first, directory.path()).unwrap();
        assert_ne!(curve(), first, "it was measured on a machine that took ages");
        assert!(load(&key(1), directory.path()).unwrap().plain_seconds < 1e9);
    }

    #[test]
    fn a_curve_of_slow_passes_is_kept_but_none_that_was_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let model = TimedModel::new(0.1, 0.5);
        let curve = |is_stopped| {
            let (start, clock) = (model.now(), || model.now());
            let supervision = Supervision { clock: &clock, note: None, is_stopped };
            let measured = load_or_measure(&model.model, &key(1), Some(directory.path()), &supervision).unwrap();
            (measured.curve, model.now() - start)
        };
        curve(Some(|| true));
        assert_eq!(load(&key(1), directory.path()).map(|stored| stored.points), None);
        let (measured, seconds) = curve(None);
        let (kept, seconds_again) = curve(None);
        assert_eq!(kept, measured);
        assert!(seconds < 10.0 && seconds_again < 1.0, "{seconds} {seconds_again}");
    }

    #[test]
    fn a_curve_of_another_machine_or_version_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let curve = measured();
        store(&key(1), 1.0, &curve, directory.path()).unwrap();
        let read = |key: &CostCurveKey| load(key, directory.path()).and_then(|stored| stored.curve());
        assert_eq!(read(&key(1)), Some(curve));
        for other in [
            key(2),
            CostCurveKey { cpu: "another".to_owned(), ..key(1) },
            CostCurveKey { version: VERSION + 1, ..key(1) },
            CostCurveKey { model: "0123456789abcdefX".to_owned(), ..key(1) },
        ] {
            assert_eq!(read(&other), None, "{other:?}");
        }
        let names: Vec<String> = [key(1), key(2)].iter().map(CostCurveKey::file_name).collect();
        assert_ne!(names[0], names[1], "curves that differ do not push each other out");
        fs::write(directory.path().join(key(1).file_name()), "{").unwrap();
        assert_eq!(read(&key(1)), None);
    }

    #[test]
    fn a_damaged_curve_counts_as_absent() {
        let directory = tempfile::tempdir().unwrap();
        store(&key(1), 1.5, &measured(), directory.path()).unwrap();
        let path = directory.path().join(key(1).file_name());
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("      32,\n", "      4000000000,\n"),
            ("      32,\n", "      33,\n"),
            ("\"plain_seconds\": 1.5", "\"plain_seconds\": 0.0"),
            ("    0.5,\n", ""),
            ("    0.5,\n", "    -0.5,\n"),
        ] {
            let damaged = text.replacen(from, to, 1);
            assert_ne!(damaged, text, "{from}");
            fs::write(&path, damaged).unwrap();
            assert_eq!(load(&key(1), directory.path()).and_then(|stored| stored.curve()), None, "{to}");
        }
    }
}
