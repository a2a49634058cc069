//! Prints the token ids of a text file, one per line, for comparison with another tokenizer.
//!
//! `token_ids VOCABULARY FILE [DECODED]`, where `VOCABULARY` is a Hugging Face directory, a `GgufVocabulary` as JSON, or
//! llama2.c's `tok512.bin`. `DECODED` receives the text of the ids.

use std::io::Write as _;
use std::path::Path;

use forestream_text::{AddSpecial, GgufVocabulary, ParseSpecial, SpecialTokens, Tokenizer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (vocabulary, file, decoded) = match arguments.as_slice() {
        [vocabulary, file] => (vocabulary, file, None),
        [vocabulary, file, decoded] => (vocabulary, file, Some(decoded)),
        _ => return Err("usage: token_ids VOCABULARY FILE [DECODED]".into()),
    };
    let tokenizer = load(Path::new(vocabulary))?;
    let text = std::fs::read_to_string(file)?;
    let ids = tokenizer.encode(&text, AddSpecial::Never, ParseSpecial::No)?;
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    for id in &ids {
        writeln!(output, "{id}")?;
    }
    output.flush()?;
    if let Some(path) = decoded {
        std::fs::write(path, tokenizer.decode(&ids, SpecialTokens::Keep)?)?;
    }
    Ok(())
}

fn load(path: &Path) -> Result<Tokenizer, Box<dyn std::error::Error>> {
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Tokenizer::from_gguf(serde_json::from_slice(&std::fs::read(path)?)?)?,
        Some("bin") => Tokenizer::from_gguf(GgufVocabulary::from_llama2c(&std::fs::read(path)?)?)?,
        _ => Tokenizer::from_directory(path)?,
    })
}
