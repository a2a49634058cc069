//! `generate`: one answer, streamed as text or reported as JSON.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use forestream::{Answer, Engine, GenerateOptions, Message, PLAIN, Report, TokenId, Trace};
use forestream_text::without_byte_order_mark;
use serde::Serialize;

use super::whole_file::WholeFile;
use super::{console, interrupt, model};
use crate::args::{self, GenerateArgs, OutputFormat};

pub(super) fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let prompt_text = prompt_text(args)?;
    let page = args.trace.as_deref().map(TracePage::prepare).transpose()?;
    // What was asked for besides the answer is done also where nobody reads the answer any more.
    let print = if page.is_some() || args.verify_lossless { console::print_if_read } else { console::print };
    let engine = model::open(&args.model, &args.adapter, &args.backend, &args.spec.spec_type)?;
    model::warn_of_idle_flags(&engine, &args.spec.budget, &args.spec.spec_type);
    interrupt::install()?;
    let prompt = prompt_tokens(&engine, args, &prompt_text)?;
    let sampling = args::sampling(&args.sampling, &engine.default_sampling());
    let options = args::generate_options(&args.length, &args.spec, sampling);
    let trace = page.is_some().then(|| Trace::new(&engine));
    let mut session = engine.session();
    let running = match &trace {
        Some(trace) => session.generate_traced(&prompt, &options, trace)?,
        None => session.generate(&prompt, &options)?,
    };
    let report = finish(running, |piece| match args.output {
        OutputFormat::Text => Ok(print(piece)?),
        OutputFormat::Json => Ok(()),
    })?;
    if args.output == OutputFormat::Text {
        print("\n")?;
    }
    if let (Some(page), Some(trace)) = (page, &trace) {
        page.write(&trace.page(&prompt, &report)?)?;
    }
    let verdict = args.verify_lossless.then(|| verify(&engine, &prompt, &options, &report)).transpose()?;
    match args.output {
        OutputFormat::Text => {
            console::note(&report.summary());
            if let Some(verdict) = &verdict {
                console::note(&verdict.describe(&engine));
            }
        }
        OutputFormat::Json => {
            let output = JsonOutput { report: &report, lossless: verdict.as_ref() };
            print(&format!("{}\n", serde_json::to_string(&output)?))?;
        }
    }
    let is_lossless = verdict.is_none_or(|verdict| verdict.identical && !verdict.interrupted);
    Ok(if is_lossless { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The object of `--output json`.
#[derive(Serialize)]
struct JsonOutput<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    lossless: Option<&'a Verdict>,
}

/// The prompt as it was given; one line break at its end belongs to the file, not to the prompt.
fn prompt_text(args: &GenerateArgs) -> anyhow::Result<String> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    let (bytes, place) = match &args.file {
        Some(path) => (fs::read(path).with_context(|| format!("cannot read {}", path.display()))?, path.as_path()),
        None if io::stdin().is_terminal() => {
            bail!("there is no prompt: give one with -p, with -f, or on standard input")
        }
        None => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            if bytes.is_empty() {
                bail!("there is no prompt: standard input is empty; give one there, with -p, or with -f");
            }
            (bytes, Path::new("standard input"))
        }
    };
    let text = String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[position];
        anyhow::anyhow!(
            "{} is not valid UTF-8: byte {position} is {byte:#04x}; convert it to UTF-8 first",
            place.display()
        )
    })?;
    let text = without_byte_order_mark(&text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

fn prompt_tokens(engine: &Engine, args: &GenerateArgs, text: &str) -> anyhow::Result<Vec<TokenId>> {
    let session = engine.session();
    let template = if args.raw { None } else { model::chat_template(engine, &args.template)? };
    let Some(template) = template else {
        let system = args.template.system.as_ref().map(|system| format!("{system}\n\n")).unwrap_or_default();
        return Ok(session.plain_prompt(&format!("{system}{text}"))?);
    };
    let system = args.template.system.as_ref().map(|system| Message::new("system", system));
    let messages: Vec<Message> = system.into_iter().chain([Message::new("user", text)]).collect();
    Ok(session.chat_prompt(&template, &messages, args.template.chat_template_kwargs.as_ref())?)
}

/// Runs an answer to its end, or to Ctrl-C.
fn finish(mut answer: Answer<'_>, mut show: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<Report> {
    for piece in answer.by_ref() {
        show(&piece?)?;
        if interrupt::is_asked() {
            break;
        }
    }
    Ok(answer.finish())
}

/// The page of `--trace`.
struct TracePage<'a> {
    path: &'a Path,
    file: WholeFile,
}

impl<'a> TracePage<'a> {
    /// Before anything is loaded: a page that cannot be written is known at once.
    fn prepare(path: &'a Path) -> anyhow::Result<Self> {
        let file = WholeFile::prepare(path).with_context(|| format!("cannot create the trace {}", path.display()))?;
        Ok(Self { path, file })
    }

    fn write(self, page: &str) -> anyhow::Result<()> {
        let written = self.file.write(page);
        written.with_context(|| format!("cannot write the trace {}", self.path.display()))
    }
}

/// Whether plain decoding gives the same tokens.
#[derive(Debug, Serialize)]
struct Verdict {
    identical: bool,
    /// How many tokens were compared.
    num_tokens: usize,
    /// Whether plain decoding was interrupted before it came as far as the answer.
    interrupted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<Difference>,
}

/// The first token that differs.
#[derive(Debug, Serialize)]
struct Difference {
    /// Its place in the answer, from 0.
    index: usize,
    /// What the strategy gave; nothing where its answer had ended.
    with_drafts: Option<TokenId>,
    /// What plain decoding gave.
    plain: Option<TokenId>,
}

fn verify(engine: &Engine, prompt: &[TokenId], options: &GenerateOptions, report: &Report) -> anyhow::Result<Verdict> {
    let plain = GenerateOptions {
        strategy: PLAIN.to_owned(),
        max_tokens: Some(report.token_ids.len()), // as far as an interrupted answer came
        min_tokens: options.min_tokens.min(report.token_ids.len()),
        ..options.clone()
    };
    interrupt::clear();
    let mut session = engine.session();
    let plain = finish(session.generate(prompt, &plain)?, |_| Ok(()))?;
    Ok(Verdict::of(&report.token_ids, &plain.token_ids, interrupt::is_asked()))
}

impl Verdict {
    fn of(drafted: &[TokenId], plain: &[TokenId], is_interrupted: bool) -> Self {
        let interrupted = is_interrupted && plain.len() < drafted.len();
        let drafted = if interrupted { &drafted[..plain.len()] } else { drafted };
        let len = drafted.len().max(plain.len());
        let difference = (0..len).find(|&index| drafted.get(index) != plain.get(index)).map(|index| Difference {
            index,
            with_drafts: drafted.get(index).copied(),
            plain: plain.get(index).copied(),
        });
        Self { identical: difference.is_none(), num_tokens: drafted.len(), interrupted, first_difference: difference }
    }

    fn describe(&self, engine: &Engine) -> String {
        let Some(difference) = &self.first_difference else {
            let len = self.num_tokens;
            return if self.interrupted {
                format!("the check was interrupted; plain decoding gave the same first {len} tokens")
            } else {
                format!("lossless: plain decoding gives the same {len} tokens")
            };
        };
        let show = |token: Option<TokenId>| match token {
            Some(token) => format!("{token} {:?}", engine.tokenizer().piece(token).unwrap_or_default()),
            None => "the end".to_owned(),
        };
        format!(
            "NOT LOSSLESS: token {} is {} with drafts and {} without",
            difference.index,
            show(difference.with_drafts),
            show(difference.plain)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found() {
        let cases: [(&[u32], &[u32], Option<usize>); 4] =
            [(&[1, 2], &[1, 2], None), (&[1, 2], &[1, 3], Some(1)), (&[1], &[1, 3], Some(1)), (&[1, 2], &[], Some(0))];
        for (drafted, plain, expected) in cases {
            let verdict = Verdict::of(drafted, plain, false);
            assert_eq!(verdict.first_difference.as_ref().map(|difference| difference.index), expected);
            assert_eq!(verdict.identical, expected.is_none());
        }
    }

    #[test]
    fn an_interrupted_check_judges_what_it_saw() {
        for (plain, identical, interrupted) in [(&[1][..], true, true), (&[2], false, true), (&[1, 2], true, false)] {
            let verdict = Verdict::of(&[1, 2], plain, true);
            assert_eq!((verdict.identical, verdict.interrupted), (identical, interrupted), "{plain:?}");
        }
    }
}
