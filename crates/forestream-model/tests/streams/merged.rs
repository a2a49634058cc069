//! A task that is merged into the weights while loading.

use forestream_model::{Checkpoint, CpuModel, Format, Hidden, LoadOptions, Model, Outputs, Row, TokenTree};

use super::{TEXT, directory, states, task_adapter};

/// Final states of all of `TEXT`, and the streams' behind it.
fn seen(model: &CpuModel) -> [Vec<f32>; 2] {
    let (mut cache, mut hidden, tree) = (model.new_cache(64), Hidden::new(), TokenTree::chain(&TEXT));
    model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
    [hidden.states(0..TEXT.len()).to_vec(), states(model, &[&TEXT], 3).concat()]
}

#[test]
fn a_merged_task_gives_what_it_gives_beside_the_weights() {
    for (format, tolerance) in [(Format::F32, 1e-4), (Format::Q8_0, 0.2)] {
        let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
        let task = task_adapter(&checkpoint);
        let checkpoint = checkpoint.quantized(format).unwrap();
        let load = || CpuModel::load(&checkpoint, LoadOptions::default()).unwrap();
        let (base, mut beside, mut merged) = (load(), load(), load());
        beside.attach(task.clone(), &checkpoint).unwrap();
        merged.attach_merged(task, &checkpoint).unwrap();
        let [expected, got] = [&beside, &merged].map(seen);
        let differences = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let largest = differences(&expected[0], &got[0]);
        assert!(largest < tolerance, "{format}: main rows differ by {largest}");
        let largest = differences(&expected[1], &got[1]);
        assert!(largest < tolerance, "{format}: streams differ by {largest}");
        let plain = {
            let (mut cache, mut hidden, tree) = (base.new_cache(64), Hidden::new(), TokenTree::chain(&TEXT));
            base.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
            hidden.states(0..TEXT.len()).to_vec()
        };
        assert!(differences(&plain, &got[0]) > 2.0 * tolerance, "{format}: the task changes nothing here");
    }
}
