//! The tokenizer: text to ids through Hugging Face's `tokenizers` crate, ids to text through the token table.
//!
//! The crate's own `encode` is not used: it cannot choose per call whether special tokens in the text count, and it
//! computes offsets that nobody reads.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tokenizers::tokenizer::pre_tokenizer::OffsetType;
use tokenizers::{AddedVocabulary, Model as _, OffsetReferential, PreTokenizer as _, Tokenizer as Engine};

use crate::chat_template::TemplateSources;
use crate::token_table::TokenTable;
use crate::{ChatTemplate, Detokenizer, GgufVocabulary, SpecialTokens, Start, TextError, hugging_face};

/// Names of tokens that end a turn or a text, whatever the metadata calls the end.
const END_NAMES: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<EOT>",
    "</s>",
];

/// Whether the BOS and EOS tokens that the model expects around a text are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddSpecial {
    /// As the model's configuration says: for a plain prompt.
    AsConfigured,
    /// Never: for a rendered chat template, which writes them itself, and for parts of a text.
    Never,
}

/// Whether `<|im_end|>` in a text is the special token or ten characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseSpecial {
    /// The special token: for a rendered chat template.
    Yes,
    /// Ordinary text: for text that must not control the model.
    No,
}

/// The ids with a role, as far as the model has them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Roles {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) padding: Option<u32>,
}

/// What a tokenizer is built from; a source of tokenizers makes one of these.
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    pub(crate) table: TokenTable,
    pub(crate) prefix: Vec<u32>,
    pub(crate) suffix: Vec<u32>,
    pub(crate) roles: Roles,
    pub(crate) end_of_generation: BTreeSet<u32>,
    pub(crate) templates: Option<TemplateSources>,
}

/// Text to token ids and back, with what the model's files say about special tokens.
pub struct Tokenizer {
    engine: Engine,
    /// The added tokens once more, with the special ones not matched.
    plain: AddedVocabulary,
    table: Arc<TokenTable>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    roles: Roles,
    end_of_generation: BTreeSet<u32>,
    templates: Option<TemplateSources>,
}

impl Tokenizer {
    /// Builds a tokenizer from GGUF metadata.
    ///
    /// # Errors
    /// The model or pre-tokenizer is unknown, or the lists contradict each other.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, TextError> {
        Ok(Self::from_parts(vocabulary.build()?))
    }

    /// Reads `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and `chat_template.jinja`; all but the
    /// first may be absent.
    ///
    /// # Errors
    /// A file is unreadable or invalid, or its decoder is neither byte-level nor SentencePiece.
    pub fn from_directory(directory: &Path) -> Result<Self, TextError> {
        Ok(Self::from_parts(hugging_face::read(directory)?))
    }

    fn from_parts(parts: Parts) -> Self {
        let mut plain = parts.engine.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        let mut tokenizer = Self {
            engine: parts.engine,
            plain,
            table: Arc::new(parts.table),
            prefix: parts.prefix,
            suffix: parts.suffix,
            roles: parts.roles,
            end_of_generation: parts.end_of_generation,
            templates: parts.templates,
        };
        let named = END_NAMES.iter().filter_map(|name| tokenizer.token_id(name)).filter(|id| tokenizer.is_special(*id));
        let named: Vec<u32> = named.collect();
        tokenizer.end_of_generation.extend(named);
        tokenizer
    }

    /// The token ids of a text.
    ///
    /// # Errors
    /// The `tokenizers` crate refuses the text.
    pub fn encode(&self, text: &str, add: AddSpecial, parse: ParseSpecial) -> Result<Vec<u32>, TextError> {
        let fail = |source| TextError::Engine { doing: "tokenizing", source };
        let added = match parse {
            ParseSpecial::Yes => self.engine.get_added_vocabulary(),
            ParseSpecial::No => &self.plain,
        };
        let mut words = added.extract_and_normalize(self.engine.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.engine.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words).map_err(fail)?;
        }
        let model = self.engine.get_model();
        words.tokenize(|word| model.tokenize(word.get())).map_err(fail)?;
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if add == AddSpecial::AsConfigured {
            ids.extend(&self.prefix);
        }
        for (_, _, tokens) in words.get_splits(OffsetReferential::Original, OffsetType::None) {
            ids.extend(tokens.iter().flatten().map(|token| token.id));
        }
        if add == AddSpecial::AsConfigured {
            ids.extend(&self.suffix);
        }
        Ok(ids)
    }

    /// The text of token ids that start a text; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], specials: SpecialTokens) -> Result<String, TextError> {
        let mut text = String::with_capacity(ids.len() * 4);
        let mut detokenizer = self.detokenizer(specials, Start::OfText);
        for id in ids {
            detokenizer.push_to(*id, &mut text)?;
        }
        text.push_str(&detokenizer.finish());
        Ok(text)
    }

    /// A detokenizer for ids that arrive one by one.
    pub fn detokenizer(&self, specials: SpecialTokens, start: Start) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.table), specials, start)
    }

    /// A detokenizer for what is generated after `prompt`; special tokens are left out.
    ///
    /// So are ids outside the vocabulary: many a model has more rows than its tokenizer has tokens, and may choose one.
    /// A prompt of special tokens alone, such as BOS, is the start of the text.
    pub fn detokenizer_after(&self, prompt: &[u32]) -> Detokenizer {
        let is_start = prompt.iter().all(|id| self.is_special(*id));
        let start = if is_start { Start::OfText } else { Start::AfterText };
        self.detokenizer(SpecialTokens::Skip, start).without_unknown()
    }

    /// The bytes that a token adds to the text (a special token: its name); `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.table.bytes(id)
    }

    /// A token for display, as `token_bytes` with U+FFFD for incomplete characters.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.token_bytes(id).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The id of a token by its name in the vocabulary, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.engine.token_to_id(token)
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// Whether a token controls the model instead of standing for text.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_special(id)
    }

    /// The token that starts a text.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// All tokens after which a model has nothing more to say: end of text, of turn and of message.
    pub fn end_of_generation(&self) -> &BTreeSet<u32> {
        &self.end_of_generation
    }

    /// The model's own chat template; `ChatML` for a vocabulary that has its tokens but no template.
    ///
    /// # Errors
    /// There is no template, or it is not valid Jinja.
    pub fn chat_template(&self) -> Result<ChatTemplate, TextError> {
        let has_chat_ml = || self.token_id("<|im_start|>").is_some();
        match &self.templates {
            Some(templates) => ChatTemplate::new(templates.clone(), self.special_token_names()),
            None if has_chat_ml() => self.chat_template_from(ChatTemplate::CHAT_ML, "this program (ChatML)"),
            None => Err(TextError::NoChatTemplate),
        }
    }

    /// A chat template given by the user, with this model's special tokens; `origin` is the file or flag, for errors.
    ///
    /// # Errors
    /// The source is not valid Jinja.
    pub fn chat_template_from(&self, source: &str, origin: &str) -> Result<ChatTemplate, TextError> {
        ChatTemplate::new(TemplateSources::one(origin, source), self.special_token_names())
    }

    /// The variables that chat templates use for special tokens.
    fn special_token_names(&self) -> Vec<(&'static str, String)> {
        let Roles { bos, eos, unknown, padding } = self.roles;
        let roles = [("bos_token", bos), ("eos_token", eos), ("unk_token", unknown), ("pad_token", padding)];
        roles.into_iter().filter_map(|(name, id)| Some((name, self.piece(id?)?))).collect()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("roles", &self.roles)
            .field("end_of_generation", &self.end_of_generation)
            .finish_non_exhaustive()
    }
}
