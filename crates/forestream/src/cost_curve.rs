//! The cost of a pass over n nodes, measured once per machine, model and number of threads, and kept in a file.
//!
//! A busy machine gives a wrong curve, and the size of every later draft would follow it. So the file also keeps how long
//! the plainest pass took then, and the curve is measured again where that pass turns out to be clearly quicker.
//!
//! A file of another version, machine or model counts as absent, and so does one that cannot be read; a file that cannot
//! be written is not an error, since the next run only measures again.

use std::path::Path;
use std::time::Instant;
use std::{fs, io};

use forestream_decode::{CostCurve, DecodeError};
use forestream_model::streams::{Adapter, MainLoraConfig, StreamConfig};
use forestream_model::{Checkpoint, Model};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backend::Place;
use crate::tree_passes::TreePasses;

/// Counts up when the meaning of the file or the speed of the kernels changes.
const VERSION: u32 = 8;
/// Sizes that are measured; most drafts that pay are small.
const SIZES: &[usize] = &[1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32];
/// Turns in which each size is measured; the fastest pass counts, as the one that nothing else disturbed.
const TURNS: usize = 4;
/// Passes of a size in a turn. A first one goes before them unmeasured: rounds follow rounds of about their own size, and
/// find in the caches what these leave.
const PASSES: usize = 2;
/// Tokens in the cache while measuring, as far as the context allows.
const DEPTH: usize = 128;
/// Passes over one node without context; the quickest tells how busy the machine is.
const PLAIN_PASSES: usize = 5;
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
    /// Nodes and seconds.
    points: Vec<(usize, f64)>,
    /// Seconds of drafting with 1, 2, ... streams.
    draft_seconds: Vec<f64>,
}

impl StoredCurve {
    /// The curve, if it is one that a measurement gives.
    fn curve(&self) -> Option<CostCurve> {
        let are_measured = self.points.iter().map(|&(nodes, _)| nodes).eq(SIZES.iter().copied());
        let num_streams = self.key.streams.as_ref().map_or(0, |streams| streams.num_streams);
        let are_whole = self.draft_seconds.len() == num_streams
            && self.draft_seconds.iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0);
        let is_timed = self.plain_seconds.is_finite() && self.plain_seconds > 0.0;
        let curve = CostCurve::new(&self.points).ok().filter(|_| are_measured && are_whole && is_timed)?;
        Some(curve.with_draft_seconds(self.draft_seconds.clone()))
    }
}

/// The curve from its file, or measured now: where there is none, or the machine was busier then.
///
/// # Errors
/// If a pass of the measurement fails.
pub(crate) fn load_or_measure(
    model: &dyn Model,
    key: &CostCurveKey,
    directory: Option<&Path>,
) -> Result<CostCurve, DecodeError> {
    let Some(directory) = directory else { return measure(model) };
    let plain_seconds = plain_pass(model)?;
    let stored = load(key, directory).filter(|stored| plain_seconds >= QUICKER * stored.plain_seconds);
    if let Some(curve) = stored.and_then(|stored| stored.curve()) {
        return Ok(curve);
    }
    let curve = measure(model)?;
    let plain_seconds = plain_seconds.max(plain_pass(model)?);
    let _ = store(key, plain_seconds, &curve, directory); // the next run measures again
    Ok(curve)
}

/// Seconds of the quickest of some passes over one node without context.
fn plain_pass(model: &dyn Model) -> Result<f64, DecodeError> {
    let mut passes = TreePasses::new(model, 0, 1)?;
    passes.run(1)?; // buffers grow, weights enter memory
    let mut quickest = f64::INFINITY;
    for _ in 0..PLAIN_PASSES {
        let start = Instant::now();
        passes.run(1)?;
        quickest = quickest.min(start.elapsed().as_secs_f64());
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

fn measure(model: &dyn Model) -> Result<CostCurve, DecodeError> {
    let largest = SIZES[SIZES.len() - 1];
    let depth = DEPTH.min(model.config().max_position_embeddings.saturating_sub(largest));
    let mut passes = TreePasses::new(model, depth, largest)?;
    passes.run(largest)?; // warm-up: buffers grow, weights enter memory
    let mut fastest: Vec<(usize, f64)> = SIZES.iter().map(|&nodes| (nodes, f64::INFINITY)).collect();
    for _ in 0..TURNS {
        for (nodes, seconds) in &mut fastest {
            passes.run(*nodes)?;
            for _ in 0..PASSES {
                let start = Instant::now();
                passes.run(*nodes)?;
                *seconds = seconds.min(start.elapsed().as_secs_f64());
            }
        }
    }
    let num_streams = model.streams().map_or(0, |streams| streams.adapter().streams.num_streams);
    Ok(CostCurve::new(&fastest)?.with_draft_seconds(measure_drafting(&mut passes, num_streams)?))
}

/// Seconds of a stream pass and its proposals with 1, 2, ... streams, between passes that push its weights out of the caches as rounds do.
fn measure_drafting(passes: &mut TreePasses<'_>, num_streams: usize) -> Result<Vec<f64>, DecodeError> {
    let mut fastest = vec![f64::INFINITY; num_streams];
    for _ in 0..=TURNS * PASSES {
        for (index, seconds) in fastest.iter_mut().enumerate() {
            passes.run(1)?;
            let start = Instant::now();
            passes.draft(index + 1)?;
            *seconds = seconds.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(fastest)
}

/// What the system calls this processor.
fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(':'));
    line.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use forestream_decode::testing::FakeModel;

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
        let curve = || load_or_measure(&model, &key(1), Some(directory.path())).unwrap();
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
