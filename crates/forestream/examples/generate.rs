//! Asks the default model one question and prints the answer as it comes.
//!
//! `cargo run --release --package forestream --example generate -- "Why is the sky blue?"`

use std::io::{Write, stdout};

use forestream::pull::{DEFAULT_MODEL, ModelStore, Network};
use forestream::{Engine, EngineOptions, Error, GenerateOptions, Message};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let question = std::env::args().nth(1).unwrap_or_else(|| "Why is the sky blue?".to_owned());
    let path = ModelStore::for_user(Network::Online).locate(DEFAULT_MODEL, &mut ()).map_err(Error::from)?;
    let engine = Engine::open(&path, &EngineOptions::default())?;

    let template = engine.chat_template()?.ok_or("the model has no chat template")?;
    let mut session = engine.session();
    let prompt = session.chat_prompt(&template, &[Message::new("user", &question)], None)?;
    let mut answer = session.generate(&prompt, &GenerateOptions::new(engine.default_sampling()))?;
    for piece in answer.by_ref() {
        let mut stdout = stdout();
        stdout.write_all(piece?.as_bytes())?;
        stdout.flush()?;
    }
    let report = answer.finish();
    writeln!(stdout(), "\n\n{}", report.summary())?;
    Ok(())
}
