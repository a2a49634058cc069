//! Who is told what `pull` does.

/// Told what happens while a model is looked for and fetched.
pub trait Reporter {
    /// One line about what happens next.
    fn say(&mut self, line: &str);

    /// How far the file is; called often.
    fn advance(&mut self, done_bytes: u64, total_bytes: u64);
}

/// Nobody is told.
impl Reporter for () {
    fn say(&mut self, _line: &str) {}

    fn advance(&mut self, _done_bytes: u64, _total_bytes: u64) {}
}
