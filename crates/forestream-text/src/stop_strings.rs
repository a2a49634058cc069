//! Finds the first stop string in text that arrives in pieces.
//!
//! Text that may still become a stop string is held back, so nothing after a stop string, and no part of it, is shown.
//! The match that ends first counts, the longer one if two end together: the result does not depend on the pieces.

use crate::TextError;

/// Watches a growing text for stop strings.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far, as long as a stop string may begin in it.
    held: String,
}

/// What a piece of text released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// The stop string that was found, by its place in the list; the text after it is dropped.
    pub stop: Option<usize>,
}

impl StopStrings {
    /// Watches for any of `stops`.
    ///
    /// # Errors
    /// A stop string is empty.
    pub fn new(stops: Vec<String>) -> Result<Self, TextError> {
        match stops.iter().position(String::is_empty) {
            Some(index) => Err(TextError::EmptyStopString { index }),
            None => Ok(Self { stops, held: String::new() }),
        }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Scanned {
        self.held.push_str(piece);
        if let Some((start, index)) = self.first_match() {
            self.held.truncate(start);
            return Scanned { text: std::mem::take(&mut self.held), stop: Some(index) };
        }
        let kept = self.held.split_off(self.held.len() - self.open_len());
        Scanned { text: std::mem::replace(&mut self.held, kept), stop: None }
    }

    /// Ends the text and returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start and index of the stop string that ends first; of two that end together, the longer.
    fn first_match(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        found.min().map(|(_, start, index)| (start, index))
    }

    /// The length of the longest end of the held text that begins a stop string.
    fn open_len(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest.saturating_sub(1));
        let opens =
            |at: &usize| self.held.get(*at..).is_some_and(|end| self.stops.iter().any(|stop| stop.starts_with(end)));
        (first..self.held.len()).find(opens).map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut watch = StopStrings::new(stops.iter().map(ToString::to_string).collect()).unwrap();
        let mut texts = Vec::new();
        for piece in pieces {
            let scanned = watch.push(piece);
            texts.push(scanned.text);
            if scanned.stop.is_some() {
                return (texts, scanned.stop);
            }
        }
        texts.push(watch.finish());
        (texts, None)
    }

    #[test]
    fn stop_strings_are_found_across_pieces() {
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], Option<usize>);
        let cases: [Case<'_>; 9] = [
            (&[], &["any", "thing"], &["any", "thing", ""], None),
            (&["\n\n"], &["one\n", "two\n", "\nthree"], &["one", "\ntwo", ""], Some(0)),
            (&["STOP"], &["a ST", "OP and more"], &["a ", ""], Some(0)),
            (&["STOP"], &["a ST", "ILL", "S"], &["a ", "STILL", "", "S"], None),
            (&["</s>", "User:"], &["Hi! Us", "er", ": yo"], &["Hi! ", "", ""], Some(1)),
            (&["aab"], &["a", "a", "a", "b"], &["", "", "a", ""], Some(0)),
            (&["é"], &["caf", "é!"], &["caf", ""], Some(0)),
            (&["bc", "abcd"], &["xabcd"], &["xa"], Some(0)),
            (&["b", "ab"], &["xab"], &["x"], Some(1)),
        ];
        for (stops, pieces, texts, stop) in cases {
            let expected = (texts.iter().map(ToString::to_string).collect(), stop);
            assert_eq!(run(stops, pieces), expected, "{stops:?} in {pieces:?}");
        }
    }

    #[test]
    fn an_empty_stop_string_is_an_error() {
        let error = StopStrings::new(vec!["x".to_owned(), String::new()]).unwrap_err();
        assert_eq!(error.to_string(), "stop string 1 is empty; remove it");
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(
            pieces in prop::collection::vec("[abé]{0,3}", 0..8),
            stops in prop::collection::vec("[abé]{1,4}", 1..4),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let whole = pieces.concat();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (in_pieces, stop) = run(&stops, &pieces);
            let (at_once, same_stop) = run(&stops, &[&whole]);
            prop_assert_eq!((in_pieces.concat(), stop), (at_once.concat(), same_stop));
        }
    }
}
