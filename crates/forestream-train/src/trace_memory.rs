//! What the frozen model computed of examples, kept in memory for later epochs.
//!
//! The model does not change, so a trace that is kept is the trace that would be computed again: the limit changes the
//! speed of a run and no bit of its result.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;

use crate::data::Example;

/// What an example leaves in the frozen model.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Trace {
    /// States before the first trained layer, from some position on, `[positions, hidden_size]`.
    pub(crate) boundary: Vec<f32>,
    /// The model's distributions over the taught tokens, of the same positions and one more.
    pub(crate) probabilities: Vec<f32>,
    /// Keys and values of the trained layers.
    pub(crate) layers: Vec<LayerTrace>,
}

/// Keys and values of a layer from the first position on, `[kv_heads, positions, head_dim]` each, as the engine holds them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct LayerTrace {
    pub(crate) keys: Vec<f16>,
    pub(crate) values: Vec<f16>,
}

/// Traces of examples, up to a number of bytes.
pub(crate) struct TraceMemory {
    bytes_left: usize,
    traces: HashMap<Example, Arc<Trace>>,
}

impl TraceMemory {
    /// An empty memory.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { bytes_left: max_bytes, traces: HashMap::new() }
    }

    /// The trace of an example, if it was kept.
    pub(crate) fn get(&self, example: &Example) -> Option<Arc<Trace>> {
        self.traces.get(example).cloned()
    }

    /// Keeps a trace if it fits and hands it back. Every epoch takes every example once, so no trace deserves the room
    /// more than those that have it.
    pub(crate) fn keep(&mut self, example: &Example, trace: Trace) -> Arc<Trace> {
        let trace = Arc::new(trace);
        let num_bytes =
            trace.num_bytes() + size_of_val(example.prompt.as_slice()) + size_of_val(example.completion.as_slice());
        if let Some(left) = self.bytes_left.checked_sub(num_bytes) {
            self.bytes_left = left;
            self.traces.insert(example.clone(), Arc::clone(&trace));
        }
        trace
    }
}

impl Trace {
    fn num_bytes(&self) -> usize {
        let of_layer = |layer: &LayerTrace| size_of_val(layer.keys.as_slice()) + size_of_val(layer.values.as_slice());
        let of_layers: usize = self.layers.iter().map(of_layer).sum();
        size_of_val(self.boundary.as_slice()) + size_of_val(self.probabilities.as_slice()) + of_layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An example of one token, whose trace takes 400 bytes beside its 8 of text.
    fn example(token: u32) -> (Example, Trace) {
        let layers = vec![LayerTrace { keys: vec![f16::ONE; 50], values: vec![f16::ZERO; 50] }];
        let example = Example { prompt: vec![token], completion: vec![token + 1] };
        (example, Trace { boundary: vec![token as f32; 40], probabilities: vec![0.5; 10], layers })
    }

    #[test]
    fn what_fits_is_kept_and_found_by_its_example() {
        let mut memory = TraceMemory::new(2 * 408);
        for token in [1, 2, 3] {
            let (example, trace) = example(token);
            assert_eq!(memory.get(&example), None);
            memory.keep(&example, trace);
        }
        for token in [1, 2] {
            let (example, trace) = example(token);
            assert_eq!(memory.get(&example).as_deref(), Some(&trace), "of token {token}");
        }
        assert_eq!(memory.get(&example(3).0), None, "a third is too much");
    }

    #[test]
    fn nothing_is_kept_without_room() {
        let (example, trace) = example(1);
        let mut memory = TraceMemory::new(407);
        assert_eq!(memory.keep(&example, trace).boundary.len(), 40);
        assert_eq!(memory.get(&example), None);
    }
}
