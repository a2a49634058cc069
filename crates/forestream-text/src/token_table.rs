//! The bytes and the kind of every token, packed; what detokenizing needs and nothing else.

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// Made from text.
    Text,
    /// One byte of a character outside the vocabulary.
    Byte,
    /// Matched in the text as a whole, but ordinary text.
    Added,
    /// Controls the model (turns, ends); not text.
    Special,
    /// A gap in the vocabulary.
    Unused,
}

/// Whether special tokens show in the decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Written out, as `<|im_end|>`.
    Keep,
    /// Left out.
    Skip,
}

/// All tokens by id.
#[derive(Debug)]
pub(crate) struct TokenTable {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    kinds: Vec<TokenKind>,
    strips_leading_space: bool,
}

impl TokenTable {
    pub(crate) fn new(strips_leading_space: bool) -> Self {
        Self { bytes: Vec::new(), ends: Vec::new(), kinds: Vec::new(), strips_leading_space }
    }

    pub(crate) fn push(&mut self, bytes: &[u8], kind: TokenKind) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.kinds.push(kind);
    }

    pub(crate) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The bytes of a token; `None` outside the vocabulary.
    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let end = *self.ends.get(id)?;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&TokenKind::Special)
    }

    /// Whether the space that SentencePiece puts before a text is taken away again.
    pub(crate) fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }
}
