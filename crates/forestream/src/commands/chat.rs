//! `chat`: a conversation on a terminal, or line by line from a pipe.

use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use forestream::{ChatTemplate, Engine, FinishReason, GenerateOptions, Message, Report, Session};
use forestream_text::without_byte_order_mark;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::whole_file::WholeFile;
use super::{console, interrupt, model};
use crate::args::{self, ChatArgs};

const HELP: &str = "\
/help          this list
/reset         start a new conversation
/save FILE     write the conversation as JSON
/stats         speed and drafting of the last answer
Ctrl-C ends an answer, Ctrl-D leaves
";

pub(super) fn run(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    let engine = model::open(&args.model, &args.adapter, &args.backend, &args.spec.spec_type)?;
    model::warn_of_idle_flags(&engine, &args.spec.budget, &args.spec.spec_type);
    interrupt::install()?;
    let template = model::chat_template(&engine, &args.template)?;
    let template =
        template.context("the model has no chat template; give one with --chat-template, or use generate")?;
    let sampling = args::sampling(&args.sampling, &engine.default_sampling());
    let mut chat = Chat {
        engine: &engine,
        session: engine.session(),
        template,
        options: args::generate_options(&args.length, &args.spec, sampling),
        messages: Vec::new(),
        last_report: None,
        args,
    };
    chat.reset();
    let mut lines = Lines::open(args::cache_directory(&args.model.store).join("chat-history.txt"))?;
    lines.welcome(&engine);
    let mut exit_code = ExitCode::SUCCESS;
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => {}
            command if command.starts_with('/') => chat.command(command),
            _ => {
                let is_answered = chat.answer(&line)?;
                if !is_answered && lines.is_pipe() {
                    console::print("\n")?; // who pairs messages with answers finds one for each
                    exit_code = ExitCode::FAILURE;
                }
            }
        }
    }
    lines.close();
    Ok(exit_code)
}

/// A conversation.
struct Chat<'e> {
    engine: &'e Engine,
    session: Session<'e>,
    template: ChatTemplate,
    options: GenerateOptions,
    messages: Vec<Message>,
    last_report: Option<Report>,
    args: &'e ChatArgs,
}

impl Chat<'_> {
    fn reset(&mut self) {
        self.messages.clear();
        self.messages.extend(self.args.template.system.as_ref().map(|system| Message::new("system", system)));
    }

    fn command(&mut self, line: &str) {
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (name, argument.trim()) {
            ("/help", _) => console::note(HELP.trim_end()),
            ("/reset", _) => {
                self.reset();
                console::note("the conversation starts again");
            }
            ("/stats", _) => match &self.last_report {
                Some(report) => console::note(&report.summary()),
                None => console::note("there is no answer yet"),
            },
            ("/save", "") => console::note("/save needs the name of a file"),
            ("/save", path) => match self.save(Path::new(path)) {
                Ok(()) => console::note(&format!("saved {} messages to {path}", self.messages.len())),
                Err(error) => console::print_error(&error),
            },
            _ => console::note(&format!("there is no command {name}; /help lists them")),
        }
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "messages": self.messages }))?;
        let written = WholeFile::prepare(path).and_then(|file| file.write(&(text + "\n")));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Answers one message; `false` where it cannot be answered, and was taken back.
    fn answer(&mut self, text: &str) -> anyhow::Result<bool> {
        self.messages.push(Message::new("user", text));
        interrupt::clear();
        let streamed = self.stream();
        interrupt::clear(); // what was pressed meanwhile has ended the answer
        match streamed {
            Ok(report) => {
                if let Some(limit) = self.limit_reached(&report) {
                    console::note(&limit);
                }
                self.messages.push(Message::new("assistant", &report.text));
                self.last_report = Some(report);
                Ok(true)
            }
            Err(error) => {
                self.messages.pop();
                if error.downcast_ref::<io::Error>().is_some() {
                    return Err(error);
                }
                console::print_error(&error);
                console::note("your message was taken back; /reset starts a new conversation");
                Ok(false)
            }
        }
    }

    /// What ended an answer that is not complete.
    fn limit_reached(&self, report: &Report) -> Option<String> {
        if report.finish_reason != FinishReason::Length {
            return None;
        }
        let (len, ctx_size) = (report.usage.completion_tokens, self.engine.ctx_size());
        let is_longest = ctx_size >= self.engine.config().max_position_embeddings;
        Some(match self.options.max_tokens {
            Some(max_tokens) if len >= max_tokens => format!("the answer ends here: --max-tokens is {max_tokens}"),
            _ => format!(
                "the answer ends here: the context of {ctx_size} tokens is full; /reset starts again, {}",
                if is_longest { "the model was trained for no more" } else { "--ctx-size allows more" }
            ),
        })
    }

    fn stream(&mut self) -> anyhow::Result<Report> {
        let variables = self.args.template.chat_template_kwargs.as_ref();
        let prompt = self.session.chat_prompt(&self.template, &self.messages, variables)?;
        let mut answer = self.session.generate(&prompt, &self.options)?;
        for piece in answer.by_ref() {
            console::print(&piece?)?;
            if interrupt::is_asked() {
                break;
            }
        }
        console::print("\n")?;
        Ok(answer.finish())
    }
}

/// Where the user's lines come from.
enum Lines {
    Terminal { editor: Box<DefaultEditor>, history: PathBuf },
    Pipe { number: usize },
}

impl Lines {
    fn open(history: PathBuf) -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe { number: 0 });
        }
        let mut editor = DefaultEditor::new().context("cannot use this terminal")?;
        let _ = editor.load_history(&history); // absent at first
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    fn welcome(&self, engine: &Engine) {
        if let Self::Terminal { .. } = self {
            console::note(&format!(
                "{}, {} threads. /help lists commands, Ctrl-D leaves.",
                engine.name(),
                engine.threads()
            ));
        }
    }

    fn is_pipe(&self) -> bool {
        matches!(self, Self::Pipe { .. })
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Pipe { number } => {
                *number += 1;
                interrupt::idle();
                let line = io::stdin().lock().lines().next().transpose();
                let line = line.with_context(|| format!("cannot read line {number} of standard input"))?;
                Ok(line.map(|line| if *number == 1 { without_byte_order_mark(&line).to_owned() } else { line }))
            }
            Self::Terminal { editor, .. } => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        editor.add_history_entry(&line)?;
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => {} // Ctrl-C clears the line
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
        }
    }

    /// Keeps the history; losing it is no reason to fail.
    fn close(self) {
        if let Self::Terminal { mut editor, history } = self {
            let _ = history.parent().map(std::fs::create_dir_all);
            let _ = editor.save_history(&history);
        }
    }
}
