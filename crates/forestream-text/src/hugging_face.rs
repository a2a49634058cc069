//! A tokenizer from a Hugging Face model directory.
//!
//! `tokenizer.json` is the tokenizer; the other files say which tokens start and end a text, and how a chat is written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Model as _, Tokenizer as Engine};

use crate::chat_template::TemplateSources;
use crate::token_table::{TokenKind, TokenTable};
use crate::tokenizer::{Parts, Roles};
use crate::{TextError, byte_level, sentencepiece, without_byte_order_mark};

/// Ids may leave gaps, so one broken id could ask for all the memory; no model comes near this.
const LARGEST_VOCABULARY: u32 = 1 << 24;

/// The file of special tokens, and often of the chat template.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Reads a directory into the parts of a tokenizer.
pub(crate) fn read(directory: &Path) -> Result<Parts, TextError> {
    let path = directory.join("tokenizer.json");
    let file = read_file(&path)?;
    check_merges(&file, &path)?;
    let mut engine = Engine::from_bytes(file.as_bytes())
        .map_err(|source| TextError::Engine { doing: "reading tokenizer.json", source })?;
    engine.with_truncation(None).map_err(|source| TextError::Engine { doing: "turning truncation off", source })?;
    engine.with_padding(None);
    let config: TokenizerConfig = read_json_if_present(&directory.join(TOKENIZER_CONFIG))?.unwrap_or_default();
    let generation: GenerationConfig =
        read_json_if_present(&directory.join("generation_config.json"))?.unwrap_or_default();
    let table = table(&engine, &path)?;
    let roles = config.roles(&engine);
    let end_of_generation: BTreeSet<u32> = roles.eos.into_iter().chain(generation.eos_token_id.into_vec()).collect();
    let (prefix, suffix) = affixes(&engine)?;
    let templates = templates(directory, config.chat_template)?;
    Ok(Parts { engine, table, prefix, suffix, roles, end_of_generation, templates })
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    bos_token: Option<NamedToken>,
    eos_token: Option<NamedToken>,
    unk_token: Option<NamedToken>,
    pad_token: Option<NamedToken>,
    chat_template: Option<Templates>,
}

impl TokenizerConfig {
    fn roles(&self, engine: &Engine) -> Roles {
        let id = |token: &Option<NamedToken>| match token.as_ref()? {
            NamedToken::Name(content) | NamedToken::Token { content } => engine.token_to_id(content),
        };
        Roles {
            bos: id(&self.bos_token),
            eos: id(&self.eos_token),
            unknown: id(&self.unk_token),
            padding: id(&self.pad_token),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NamedToken {
    Name(String),
    Token { content: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize, Default)]
struct GenerationConfig {
    #[serde(default)]
    eos_token_id: Ids,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Ids {
    #[default]
    None,
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::None => Vec::new(),
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

/// `chat_template.jinja` goes before the template in `tokenizer_config.json`.
fn templates(directory: &Path, configured: Option<Templates>) -> Result<Option<TemplateSources>, TextError> {
    let path = directory.join("chat_template.jinja");
    if path.is_file() {
        let origin = path.display().to_string();
        return Ok(Some(TemplateSources::one(origin, read_file(&path)?)));
    }
    let origin = directory.join(TOKENIZER_CONFIG).display().to_string();
    Ok(match configured {
        None => None,
        Some(Templates::Named(list)) if list.is_empty() => None,
        Some(Templates::One(source)) => Some(TemplateSources::one(origin, source)),
        Some(Templates::Named(list)) => {
            let by_name = list.into_iter().map(|named| (named.name, named.template)).collect();
            Some(TemplateSources { origin, by_name })
        }
    })
}

fn table(engine: &Engine, path: &Path) -> Result<TokenTable, TextError> {
    let decoder = Decoder::of(engine.get_decoder(), path)?;
    let added = engine.get_added_vocabulary().get_added_tokens_decoder();
    let model = engine.get_model();
    let largest = engine.get_vocab(true).into_values().max().unwrap_or(0);
    if largest >= LARGEST_VOCABULARY {
        let vocab_size = LARGEST_VOCABULARY as usize;
        return Err(TextError::UnknownToken { id: largest, role: "in tokenizer.json", vocab_size });
    }
    let mut table = TokenTable::new(decoder == Decoder::SentencePiece { strips_space: true });
    for id in 0..=largest {
        if let Some(token) = added.get(&id) {
            table.push(token.content.as_bytes(), if token.special { TokenKind::Special } else { TokenKind::Added });
        } else if let Some(token) = model.id_to_token(id) {
            let bytes = match decoder {
                Decoder::ByteLevel => byte_level::token_bytes(&token),
                Decoder::SentencePiece { .. } => sentencepiece::token_bytes(&token),
            };
            table.push(&bytes, TokenKind::Text);
        } else {
            table.push(&[], TokenKind::Unused);
        }
    }
    Ok(table)
}

/// How tokens become bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Decoder {
    ByteLevel,
    SentencePiece { strips_space: bool },
}

impl Decoder {
    fn of(decoder: Option<&DecoderWrapper>, path: &Path) -> Result<Self, TextError> {
        let steps = match decoder {
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(step) => std::slice::from_ref(step),
            None => &[],
        };
        let strips_space = steps.iter().any(|step| matches!(step, DecoderWrapper::Strip(strip) if strip.start > 0));
        let of_step = |step: &DecoderWrapper| match step {
            DecoderWrapper::ByteLevel(_) => Some(Self::ByteLevel),
            DecoderWrapper::ByteFallback(_) => Some(Self::SentencePiece { strips_space }),
            DecoderWrapper::Metaspace(metaspace) => {
                Some(Self::SentencePiece { strips_space: metaspace.prepend_scheme != PrependScheme::Never })
            }
            _ => None,
        };
        steps.iter().find_map(of_step).ok_or_else(|| TextError::UnsupportedDecoder {
            path: path.to_owned(),
            got: decoder.map_or_else(|| "none".to_owned(), |decoder| format!("{decoder:?}")),
        })
    }
}

/// The ids that the post-processor puts before and after a text, found by letting it process one.
fn affixes(engine: &Engine) -> Result<(Vec<u32>, Vec<u32>), TextError> {
    let encode = |add| {
        engine
            .encode("a", add)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|source| TextError::Engine { doing: "trying the post-processor", source })
    };
    let (bare, full) = (encode(false)?, encode(true)?);
    let start = full.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    Ok((full[..start].to_vec(), full[(start + bare.len()).min(full.len())..].to_vec()))
}

#[derive(Deserialize)]
struct MergesFile {
    model: MergesModel,
}

#[derive(Deserialize)]
struct MergesModel {
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    vocab: serde_json::Value,
    continuing_subword_prefix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl std::fmt::Display for Merge {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pair(left, right) => write!(formatter, "{left} {right}"),
            Self::Line(line) => formatter.write_str(line),
        }
    }
}

/// Checks what the `tokenizers` crate would answer with a panic: a merge rule longer than every token.
fn check_merges(file: &str, path: &Path) -> Result<(), TextError> {
    let parsed: MergesFile =
        serde_json::from_str(file).map_err(|source| TextError::Json { path: path.to_owned(), source })?;
    let Some(vocab) = parsed.model.vocab.as_object() else { return Ok(()) };
    let prefix = parsed.model.continuing_subword_prefix.unwrap_or_default();
    for (index, merge) in parsed.model.merges.iter().enumerate() {
        let pair = match merge {
            Merge::Pair(left, right) => Some((left.as_str(), right.as_str())),
            Merge::Line(line) if line.starts_with("#version") => continue,
            Merge::Line(line) => line.split_once(' '),
        };
        let joined = pair.and_then(|(left, right)| Some(format!("{left}{}", right.strip_prefix(&prefix)?)));
        if !joined.is_some_and(|joined| vocab.contains_key(&joined)) {
            return Err(TextError::BadMerge { index, rule: merge.to_string() });
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<String, TextError> {
    let text = std::fs::read_to_string(path).map_err(|source| TextError::Read { path: path.to_owned(), source })?;
    Ok(without_byte_order_mark(&text).to_owned())
}

fn read_json_if_present<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TextError> {
    if !path.is_file() {
        return Ok(None);
    }
    let file = read_file(path)?;
    let path: PathBuf = path.to_owned();
    serde_json::from_str(&file).map(Some).map_err(|source| TextError::Json { path, source })
}
