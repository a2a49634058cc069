//! What can go wrong between text and token ids; every message names both sides and the remedy.

use std::path::PathBuf;

/// An error of the tokenizer, the chat template or the detokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the tokenizer directory could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the tokenizer directory is not the JSON that it should be.
    #[error("{} is not valid tokenizer JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The `tokenizers` crate refused a definition or a text.
    #[error("{doing} failed")]
    Engine {
        /// What was being done.
        doing: &'static str,
        /// The crate's own message.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The GGUF names a tokenizer model that cannot be built.
    #[error("tokenizer model `{got}` is not supported (supported: {supported}); use a Hugging Face directory instead")]
    UnsupportedModel {
        /// The name in the file.
        got: String,
        /// The names that work.
        supported: String,
    },
    /// The GGUF names a pre-tokenizer that cannot be built.
    #[error("pre-tokenizer `{got}` is not supported (supported: {supported}); use a Hugging Face directory instead")]
    UnsupportedPreTokenizer {
        /// The name in the file.
        got: String,
        /// The names that work.
        supported: String,
    },
    /// The directory's decoder is neither byte-level nor SentencePiece.
    #[error("{}: decoder `{got}` is not supported (supported: ByteLevel, ByteFallback, Metaspace)", path.display())]
    UnsupportedDecoder {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// Its decoder.
        got: String,
    },
    /// A field without which the tokenizer cannot be built is absent.
    #[error("the vocabulary has no `{field}`, which a `{model}` tokenizer needs")]
    MissingField {
        /// The metadata field.
        field: &'static str,
        /// The tokenizer model.
        model: String,
    },
    /// Two lists that describe the same tokens have different lengths.
    #[error("`{field}` has {got} entries, but the vocabulary has {expected} tokens")]
    LengthMismatch {
        /// The metadata field.
        field: &'static str,
        /// The number of tokens.
        expected: usize,
        /// The number of entries.
        got: usize,
    },
    /// A merge rule does not join two tokens to a third.
    #[error("merge rule {index}, {rule:?}, does not join two tokens of the vocabulary to a third")]
    BadMerge {
        /// Its place in the list.
        index: usize,
        /// The rule as written.
        rule: String,
    },
    /// A token id is not in the vocabulary.
    #[error("token id {id} ({role}) is outside the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Where it came from.
        role: &'static str,
        /// The number of tokens.
        vocab_size: usize,
    },
    /// A binary vocabulary file ends early or contradicts itself.
    #[error("vocabulary file: {expected} at byte {offset}, but got {got}")]
    Corrupt {
        /// What should be there.
        expected: &'static str,
        /// Where.
        offset: usize,
        /// What is there.
        got: String,
    },
    /// No source gives a chat template.
    #[error("the model has no chat template; give one, or send a plain prompt")]
    NoChatTemplate,
    /// A model has several chat templates, and none for this conversation.
    #[error(
        "the chat templates of {origin} are {names}, and none is called `default`; give the one for this conversation with \
         --chat-template or --chat-template-file"
    )]
    NoDefaultChatTemplate {
        /// The file that they came from.
        origin: String,
        /// The names of the templates, comma separated.
        names: String,
    },
    /// A chat template is not valid Jinja.
    #[error("the chat template `{name}` of {origin} is broken; mend it, or use another")]
    BrokenChatTemplate {
        /// The name of the template.
        name: String,
        /// The file, metadata or flag that it came from.
        origin: String,
        /// Line and reason.
        source: minijinja::Error,
    },
    /// A chat template refused a conversation, or failed at it.
    #[error(
        "the chat template `{name}` of {origin} does not take this conversation; change it, or use another template"
    )]
    ChatTemplateFailed {
        /// The name of the template.
        name: String,
        /// The file, metadata or flag that it came from.
        origin: String,
        /// Line and reason.
        source: minijinja::Error,
    },
    /// A chat template took more work or memory than any conversation needs.
    #[error(
        "the chat template `{name}` of {origin} was stopped: it takes more work than any conversation needs; use another"
    )]
    EndlessChatTemplate {
        /// The name of the template.
        name: String,
        /// The file, metadata or flag that it came from.
        origin: String,
        /// The line that it had reached.
        source: minijinja::Error,
    },
    /// A variable for the chat template has the name of one that the program sets itself.
    #[error("the chat template's variable `{name}` is set by the program; remove it from --chat-template-kwargs")]
    ReservedVariable {
        /// The name.
        name: String,
    },
    /// An empty stop string would stop before the first token.
    #[error("stop string {index} is empty; remove it")]
    EmptyStopString {
        /// Its place in the list.
        index: usize,
    },
}
