//! Passes that change no weight, over many examples: their pieces side by side on the workers, results in order.

use crate::TrainError;
use crate::data::Example;
use crate::pieces::{Piece, PieceMaker};
use crate::workers::Workers;

/// What measures examples.
pub(crate) struct Measurement<'a> {
    pub(crate) maker: &'a mut PieceMaker,
    pub(crate) workers: &'a Workers,
    /// Asked before each example.
    pub(crate) is_stop_asked: &'a dyn Fn() -> bool,
}

impl Measurement<'_> {
    /// Measures the pieces of `examples` and hands what each example gave to `take`; `false` where it was asked to stop
    /// before the end. Nothing that is handed over depends on the number of threads.
    ///
    /// # Errors
    /// If a pass fails.
    pub(crate) fn run<R: Send>(
        &mut self,
        examples: &[Example],
        measure: impl Fn(Piece) -> Result<R, TrainError> + Sync,
        mut take: impl FnMut(Vec<R>),
    ) -> Result<bool, TrainError> {
        let mut examples = examples.iter();
        loop {
            let (mut pieces, mut counts, mut num_positions) = (Vec::new(), Vec::new(), 0);
            while num_positions < self.workers.enough_positions() {
                let Some(example) = examples.next() else { break };
                if (self.is_stop_asked)() {
                    return Ok(false);
                }
                let own = self.maker.pieces(example)?;
                num_positions += example.num_positions();
                counts.push(own.len());
                pieces.extend(own);
            }
            if counts.is_empty() {
                return Ok(true);
            }
            let mut results = self.workers.map(pieces, &measure).into_iter();
            for count in counts {
                take(results.by_ref().take(count).collect::<Result<_, _>>()?);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::Path;

    use forestream_model::streams::{ADAPTER_FORMAT_VERSION, AdapterConfig, BaseModel, TrainingMode};
    use forestream_model::{Checkpoint, LoadOptions};

    use super::*;
    use crate::draft_vocabulary::DraftRows;
    use crate::features::FeatureExtractor;
    use crate::preset::Preset;

    fn piece_maker() -> PieceMaker {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let checkpoint = Checkpoint::open(&path).unwrap();
        let (decoder, mode) = (checkpoint.config(), TrainingMode::Lossless);
        let adapter = AdapterConfig {
            format_version: ADAPTER_FORMAT_VERSION,
            base_model: BaseModel { name: String::new(), fingerprint: String::new(), architecture: String::new() },
            mode,
            streams: Preset::Fast.streams(decoder, mode),
            lora: None,
            main_lora: None,
            calibration: Vec::new(),
        };
        let num_streams = adapter.streams.num_streams;
        let mut features = FeatureExtractor::load(&checkpoint, 1, num_streams, LoadOptions::default()).unwrap();
        features.cut(32);
        PieceMaker::new(features, DraftRows::new(&[], decoder.vocab_size), &adapter, 0.9)
    }

    /// Examples of 11, 12, ... positions and one of many.
    fn examples() -> Vec<Example> {
        let example = |len: u32| Example { prompt: vec![1, 5], completion: (10..10 + len).collect() };
        (12..32).chain([150]).map(example).collect()
    }

    #[test]
    fn every_piece_has_a_core_of_its_own_and_its_place() {
        let mut maker = piece_maker();
        for num_threads in [1, 3] {
            let workers = Workers::apart(num_threads).unwrap();
            let mut measurement = Measurement { maker: &mut maker, workers: &workers, is_stop_asked: &|| false };
            let mut positions = Vec::new();
            let measure = |piece: Piece| Ok((piece.num_positions(), rayon::current_num_threads()));
            let is_whole = measurement.run(&examples(), measure, |pieces| positions.push(pieces)).unwrap();
            assert!(is_whole && positions.iter().flatten().all(|&(_, cores)| cores == 1));
            let sums: Vec<usize> = positions.iter().map(|pieces| pieces.iter().map(|piece| piece.0).sum()).collect();
            assert_eq!(sums, examples().iter().map(Example::num_positions).collect::<Vec<_>>());
            assert_eq!(positions[20].len(), 5, "32 positions each");
        }
    }

    #[test]
    fn a_measurement_ends_before_the_example_at_which_it_is_asked_to() {
        let (mut maker, workers, num_asked) = (piece_maker(), Workers::apart(2).unwrap(), Cell::new(0));
        let is_stop_asked = || num_asked.replace(num_asked.get() + 1) == 20;
        let mut measurement = Measurement { maker: &mut maker, workers: &workers, is_stop_asked: &is_stop_asked };
        assert!(!measurement.run(&examples(), |_| Ok(()), |_| ()).unwrap());
        assert_eq!(num_asked.get(), 21);
    }
}
