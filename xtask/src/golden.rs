//! `cargo xtask golden`: makes `testdata/models` and the golden logits again, with Hugging Face transformers.
//!
//! Owns the Python environment (below `target/`) and the calls; what is made, and how, is in the scripts of
//! `xtask/golden`. The same versions give the same bytes, so a run without a change leaves git quiet.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::{command, report, run as run_program};

/// Makes the tiny models, and with the SmolLM2 file its golden logits too.
///
/// # Errors
/// If Python, a package or the GGUF file is missing, or a script fails.
pub(crate) fn run(root: &Path, smollm2: Option<&Path>) -> Result<()> {
    let scripts = root.join("xtask/golden");
    let python = prepare_python(root, &scripts)?;
    run_script(root, &python, &[&scripts.join("tiny_models.py"), &root.join("testdata/models")])?;
    let Some(file) = smollm2 else {
        report("golden: SmolLM2 left out, name its GGUF file with --smollm2");
        return Ok(());
    };
    let output = root.join("testdata/golden/smollm2-135m-instruct.json");
    run_script(root, &python, &[&scripts.join("gguf_logits.py"), file, &output])
}

/// Makes the virtual environment on the first run and returns its interpreter.
fn prepare_python(root: &Path, scripts: &Path) -> Result<PathBuf> {
    let environment = root.join("target/golden-python");
    let python = environment.join("bin/python");
    if !python.exists() {
        run_program(command(root, "python3", &["-m", "venv", &environment.to_string_lossy()]))?;
    }
    let requirements = scripts.join("requirements.txt");
    let arguments = ["-m", "pip", "install", "--quiet", "-r", &requirements.to_string_lossy()];
    run_program(command(root, &python.to_string_lossy(), &arguments))?;
    Ok(python)
}

fn run_script(root: &Path, python: &Path, arguments: &[&Path]) -> Result<()> {
    let mut script = command(root, &python.to_string_lossy(), &["-B"]);
    script.args(arguments);
    run_program(script)
}
