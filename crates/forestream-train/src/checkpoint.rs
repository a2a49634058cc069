//! Everything that a run needs to go on as if it had never stopped, in one file.
//!
//! Weights and moments are tensors in full precision; the rest is JSON in the file's metadata. One file is replaced by
//! one rename, so that a checkpoint is there as a whole or not at all.

use std::path::{Path, PathBuf};

use forestream_model::{ModelError, write_whole};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::TrainError;
use crate::adamw::{AdamW, Named};
use crate::evaluate::Evaluation;
use crate::export::Origin;

/// The name of a checkpoint in the output directory.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// What no weight depends on, and may so be another when a run goes on. The model itself is known by its fingerprint.
const FREE: [&str; 2] = ["base_model.name", "save_steps"];
const STATE: &str = "state";
const WEIGHTS: &str = "weights";
const FIRST: &str = "first_moments";
const SECOND: &str = "second_moments";

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Steps done.
    pub(crate) step: usize,
    /// Examples taken, over all epochs.
    pub(crate) place: usize,
    /// Positions trained on.
    pub(crate) num_positions: usize,
    /// Seconds spent.
    pub(crate) seconds: f64,
    /// The evaluation whose adapter is kept.
    pub(crate) best: Option<Evaluation>,
    /// Whether held-out examples are still to be measured with the weights of this step.
    #[serde(default)]
    pub(crate) awaits_evaluation: bool,
    /// Whether all steps are done, and what is due after the last one.
    #[serde(default)]
    pub(crate) is_finished: bool,
    /// The lowest loss of main rows in any evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lowest_main_loss: Option<f64>,
}

/// A run between two steps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checkpoint {
    /// What the run was asked for: settings, streams, model and data, by name.
    pub(crate) run: Map<String, Value>,
    /// Who began the run, and from what.
    pub(crate) origin: Origin,
    pub(crate) progress: Progress,
    /// Those that stream rows keep, by layer; empty where they keep all. Before a run has chosen, those that it was given: of
    /// the highest layers or of none.
    pub(crate) inner_features: Vec<Vec<u32>>,
    pub(crate) weights: Named,
    pub(crate) optimizer: AdamW,
}

#[derive(Serialize, Deserialize)]
struct State {
    run: Map<String, Value>,
    origin: Origin,
    progress: Progress,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inner_features: Vec<Vec<u32>>,
}

impl Checkpoint {
    /// Writes the checkpoint, as a whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written; the checkpoint before it is then still there.
    pub(crate) fn save(&self, path: &Path) -> Result<(), TrainError> {
        replace(&[(path.to_owned(), self.to_safetensors())])
    }

    fn to_safetensors(&self) -> Vec<u8> {
        let parts = [
            (WEIGHTS, &self.weights),
            (FIRST, &self.optimizer.first_moments),
            (SECOND, &self.optimizer.second_moments),
        ];
        let tensors: Vec<(String, Vec<u8>)> = parts
            .into_iter()
            .flat_map(|(part, named)| named.iter().map(move |(name, values)| (part, name, values)))
            .map(|(part, name, values)| {
                (format!("{part}/{name}"), values.iter().flat_map(|x| x.to_le_bytes()).collect())
            })
            .collect();
        let views = tensors.iter().map(|(name, bytes)| {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / size_of::<f32>()], bytes);
            (name.as_str(), view.expect("as many bytes as the shape asks for"))
        });
        let state = State {
            run: self.run.clone(),
            origin: self.origin.clone(),
            progress: self.progress.clone(),
            inner_features: self.inner_features.clone(),
        };
        let state = serde_json::to_string(&state).expect("the state is plain data");
        safetensors::serialize(views, Some([(STATE.to_owned(), state)].into_iter().collect()))
            .expect("names are distinct")
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a checkpoint.
    pub(crate) fn load(path: &Path) -> Result<Self, TrainError> {
        let bytes = std::fs::read(path).map_err(TrainError::read(path))?;
        Self::from_safetensors(&bytes).map_err(|problem| TrainError::Checkpoint {
            path: path.to_owned(),
            problem: format!("not a checkpoint: {problem}"),
        })
    }

    fn from_safetensors(bytes: &[u8]) -> Result<Self, String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let state = metadata.metadata().as_ref().and_then(|metadata| metadata.get(STATE)).ok_or("it has no state")?;
        let state: State = serde_json::from_str(state).map_err(|error| error.to_string())?;
        let State { run, origin, progress, inner_features } = state;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let mut parts = [Named::new(), Named::new(), Named::new()];
        for (name, view) in tensors.iter() {
            let (part, name) = name.split_once('/').ok_or("a tensor has an unknown name")?;
            let part = [WEIGHTS, FIRST, SECOND].iter().position(|known| *known == part).ok_or("an unknown part")?;
            let values = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            parts[part].insert(name.to_owned(), values);
        }
        let [weights, first_moments, second_moments] = parts;
        let lens = |named: &Named| named.iter().map(|(name, values)| (name.clone(), values.len())).collect::<Vec<_>>();
        if lens(&weights) != lens(&first_moments) || lens(&weights) != lens(&second_moments) {
            return Err("weights and moments differ in shape".to_owned());
        }
        Ok(Self { run, origin, progress, inner_features, weights, optimizer: AdamW { first_moments, second_moments } })
    }

    /// Checks that the run is the one that is asked for now.
    ///
    /// # Errors
    /// The first difference, by name.
    pub(crate) fn check_run(&self, now: &Map<String, Value>, path: &Path) -> Result<(), TrainError> {
        let names = self.run.keys().chain(now.keys().filter(|name| !self.run.contains_key(*name)));
        let show = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::to_string);
        for name in names {
            let (then, now) = (self.run.get(name), now.get(name));
            if then != now && !FREE.contains(&name.as_str()) {
                let (name, then, now) = (name.clone(), show(then), show(now));
                return Err(TrainError::OtherRun { path: path.to_owned(), name, then, now });
            }
        }
        Ok(())
    }
}

/// Replaces files of a run that belong together, all or none.
///
/// # Errors
/// If a file cannot be written; the former ones are then still there.
pub(crate) fn replace(files: &[(PathBuf, Vec<u8>)]) -> Result<(), TrainError> {
    write_whole(files).map_err(|error| match error {
        ModelError::Write { path, source } => TrainError::Write { path, source },
        other => other.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let weights =
            Named::from([("a.weight".to_owned(), vec![1.5, f32::MIN_POSITIVE]), ("b".to_owned(), vec![-2.0])]);
        let mut optimizer = AdamW::new(&weights);
        optimizer.update(&mut weights.clone(), &weights, &|_| 0.1, 1);
        let progress = Progress { step: 3, place: 40, num_positions: 1234, seconds: 0.1 + 0.2, ..Progress::default() };
        let run = serde_json::json!({"lr": 0.002, "data": "abc"}).as_object().unwrap().clone();
        Checkpoint {
            run,
            origin: Origin { command: "train".to_owned(), ..Origin::default() },
            progress,
            inner_features: vec![vec![0, 3], vec![1, 2]],
            weights,
            optimizer,
        }
    }

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(CHECKPOINT);
        checkpoint().save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no partial file is left");
    }

    #[test]
    fn damaged_files_are_refused_with_their_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(CHECKPOINT);
        let whole = checkpoint().to_safetensors();
        for bytes in [&whole[..whole.len() - 1], &whole[..9], b"", b"{}"] {
            std::fs::write(&path, bytes).unwrap();
            let error = Checkpoint::load(&path).unwrap_err().to_string();
            assert!(error.contains(CHECKPOINT) && error.contains("not a checkpoint"), "{error}");
        }
    }

    #[test]
    fn another_run_is_refused_with_the_difference() {
        let path = Path::new("checkpoint.safetensors");
        let checkpoint = checkpoint();
        checkpoint.check_run(&checkpoint.run, path).unwrap();
        for (name, now, said) in [("lr", Some(0.1), "lr = 0.002, but now it is 0.1"), ("lr", None, "now it is absent")]
        {
            let mut run = checkpoint.run.clone();
            run.remove(name);
            run.extend(now.map(|now| (name.to_owned(), Value::from(now))));
            let error = checkpoint.check_run(&run, path).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_the_last_checkpoint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(CHECKPOINT);
        checkpoint().save(&path).unwrap();
        std::fs::create_dir(path.with_extension("partial")).unwrap(); // stands in the way of the temporary file
        let error = checkpoint().save(&path).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("intact"), "{error}");
        assert_eq!(Checkpoint::load(&path).unwrap(), checkpoint());
    }
}
