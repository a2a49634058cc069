//! llama2.c's vocabulary file: the ids of its own greedy algorithm, and clear errors for broken files.

#![expect(clippy::unwrap_used, reason = "a broken fixture is a failed test")]

use forestream_text::{AddSpecial, GgufVocabulary, ParseSpecial, SpecialTokens, Tokenizer};
use proptest::prelude::*;

/// Pieces with scores, after the 259 special and byte tokens.
const PIECES: [(&str, f32); 14] = [
    (" ", -10.0),
    ("a", -11.0),
    ("b", -12.0),
    ("c", -13.0),
    ("ö", -14.0),
    ("ab", -1.0),
    (" a", -2.0),
    ("bc", -0.5),
    ("abc", -3.0),
    (" ab", -2.5),
    ("aa", -4.0),
    ("aaa", -5.0),
    ("  ", -6.0),
    ("öc", -7.0),
];

fn vocabulary() -> Vec<(String, f32)> {
    let special = ["<unk>", "\n<s>\n", "\n</s>\n"].map(str::to_owned);
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = PIECES.iter().map(|(piece, score)| ((*piece).to_owned(), *score));
    special.into_iter().chain(bytes).map(|token| (token, 0.0)).chain(pieces).collect()
}

fn file() -> Vec<u8> {
    let mut file = 16i32.to_le_bytes().to_vec();
    for (token, score) in vocabulary() {
        file.extend(score.to_le_bytes());
        file.extend((token.len() as i32).to_le_bytes());
        file.extend(token.bytes());
    }
    file
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(GgufVocabulary::from_llama2c(&file()).unwrap()).unwrap()
}

/// Characters or their bytes, then the best-scored pair of neighbors again and again.
fn greedy(text: &str) -> Vec<u32> {
    let vocabulary = vocabulary();
    let find = |token: &str| vocabulary.iter().position(|(candidate, _)| candidate == token);
    let mut ids: Vec<usize> = Vec::new();
    for character in format!(" {text}").chars() {
        let character = character.to_string();
        match find(&character) {
            Some(id) => ids.push(id),
            None => ids.extend(character.bytes().map(|byte| usize::from(byte) + 3)),
        }
    }
    loop {
        let mut best: Option<(f32, usize, usize)> = None;
        for at in 1..ids.len() {
            let joined = format!("{}{}", vocabulary[ids[at - 1]].0, vocabulary[ids[at]].0);
            if let Some(id) = find(&joined).filter(|id| best.is_none_or(|(score, ..)| vocabulary[*id].1 > score)) {
                best = Some((vocabulary[id].1, at - 1, id));
            }
        }
        let Some((_, at, id)) = best else { break };
        ids[at] = id;
        ids.remove(at + 1);
    }
    ids.into_iter().map(|id| id as u32).collect()
}

proptest! {
    #[test]
    fn ids_are_those_of_the_greedy_algorithm(text in "[abcö \nz]{1,24}") {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text, AddSpecial::Never, ParseSpecial::No).unwrap();
        prop_assert_eq!(&ids, &greedy(&text));
        prop_assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep).unwrap(), text);
    }
}

#[test]
fn bos_starts_a_prompt() {
    let ids = tokenizer().encode("ab", AddSpecial::AsConfigured, ParseSpecial::Yes).unwrap();
    assert_eq!(ids, [1, 259 + 9]);
    assert_eq!((tokenizer().bos(), tokenizer().eos()), (Some(1), Some(2)));
}

#[test]
fn broken_files_are_refused() {
    let file = file();
    let cases = [
        (Vec::new(), "vocabulary file: a 4-byte number at byte 0, but got 0 bytes"),
        (file[..4].to_vec(), "vocabulary file: 259 or more tokens at byte 4, but got 0"),
        (file[..14].to_vec(), "vocabulary file: a token at byte 12, but got 2 bytes"),
        ([&file[..8], &[255; 4]].concat(), "vocabulary file: a token length at byte 12, but got -1"),
        ([&file[..8], &[1, 0, 0, 0, 200]].concat(), "vocabulary file: a UTF-8 token at byte 13"),
    ];
    for (file, expected) in cases {
        let message = GgufVocabulary::from_llama2c(&file).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}
