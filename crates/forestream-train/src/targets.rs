//! What each stream of each position should foresee, and how much it counts.

use forestream_model::TokenId;

use crate::data::Example;
use crate::draft_vocabulary::DraftRows;

/// What one stream row should foresee.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// A token that streams can propose, by its row of the draft vocabulary.
    Row(u32),
    /// A token that they cannot propose: a certain miss.
    OutsideVocabulary,
    /// The text has ended.
    None,
}

/// The targets of stream rows, `[positions, num_streams]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Targets {
    pub(crate) num_streams: usize,
    /// The weight of each depth over that of the one before.
    pub(crate) depth_decay: f32,
    pub(crate) rows: Vec<Target>,
    /// By position: the token after it, which the early exit should foresee.
    pub(crate) next: Vec<Target>,
    /// What the frozen model itself expects, where streams learn from that.
    pub(crate) teacher: Option<Teacher>,
}

/// The frozen model's probabilities of the draft vocabulary's tokens, by the position whose main row gives them. They add up
/// to less than 1 where it expects other tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Teacher {
    /// Of the positions after the segment's first one, `[positions, width]`.
    pub(crate) probabilities: Vec<f32>,
    /// Tokens of the draft vocabulary.
    pub(crate) width: usize,
}

impl Targets {
    /// The targets of consecutive positions of an example: stream `j` of position `t` foresees token `t + 1 + j`.
    /// `following` has the token after each position, and `num_streams` more.
    pub(crate) fn of(
        example: &Example,
        first_position: usize,
        following: &[TokenId],
        num_streams: usize,
        depth_decay: f32,
        vocabulary: &DraftRows,
    ) -> Self {
        let num_positions = following.len() - num_streams;
        let num_following = example.prompt.len() + example.completion.len() - 1 - first_position;
        let target = |index: usize| match following.get(index).filter(|_| index < num_following) {
            Some(&token) => vocabulary.row(token).map_or(Target::OutsideVocabulary, Target::Row),
            None => Target::None,
        };
        let rows = (0..num_positions).flat_map(|i| (1..=num_streams).map(move |j| i + j)).map(target).collect();
        Self { num_streams, depth_decay, rows, next: (0..num_positions).map(target).collect(), teacher: None }
    }

    /// The weight of each row in the loss. A teacher counts in every row, since it says how much
    /// of it streams can propose.
    pub(crate) fn weight(&self, row: usize) -> f32 {
        match self.rows[row] {
            Target::OutsideVocabulary if self.teacher.is_none() => 0.0,
            Target::None => 0.0,
            Target::Row(_) | Target::OutsideVocabulary => self.depth_decay.powi((row % self.num_streams) as i32),
        }
    }

    /// What the frozen model expects where stream `j` of position `t` foresees: the distribution of main row `t + j`.
    pub(crate) fn taught(&self, row: usize) -> Option<&[f32]> {
        let Teacher { probabilities, width } = self.teacher.as_ref()?;
        let (position, depth) = (row / self.num_streams, row % self.num_streams);
        Some(&probabilities[(position + depth) * width..][..*width])
    }

    /// The weight of all rows.
    pub(crate) fn total_weight(&self) -> f64 {
        (0..self.rows.len()).map(|row| f64::from(self.weight(row))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_foresee_the_tokens_after_the_emitted_one() {
        // Position 1 (the prompt's end) emits 5; its streams foresee 6 and 7. Token 7 is not in the vocabulary.
        let example = Example { prompt: vec![1, 2], completion: vec![5, 6, 7] };
        let targets = Targets::of(&example, 1, &[5, 6, 7, 0], 2, 0.9, &DraftRows::new(&[6, 5], 10));
        assert_eq!(targets.rows, [Target::Row(0), Target::OutsideVocabulary, Target::OutsideVocabulary, Target::None]);
        assert_eq!([0, 1, 2, 3].map(|row| targets.weight(row)), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(targets.next, [Target::Row(1), Target::Row(0)], "the early exit foresees the emitted one");
    }

    #[test]
    fn a_teacher_is_the_main_row_that_predicts_the_same_token() {
        let example = Example { prompt: vec![1, 2], completion: vec![5, 6, 7] };
        let mut targets = Targets::of(&example, 1, &[5, 6, 7, 0], 2, 0.9, &DraftRows::new(&[6, 5], 10));
        // Position 1 foresees 6 and 7, which main rows 2 and 3 predict; position 2 foresees 7.
        targets.teacher = Some(Teacher { probabilities: vec![0.2, 0.8, 0.3, 0.5], width: 2 });
        assert_eq!([0, 1, 2].map(|row| targets.taught(row).unwrap()[0]), [0.2, 0.3, 0.3]);
        assert_eq!([0, 1, 2, 3].map(|row| targets.weight(row)), [1.0, 0.9, 1.0, 0.0]);
    }

    #[test]
    fn deeper_streams_count_less() {
        let example = Example { prompt: vec![1], completion: vec![1, 2, 3, 4] };
        for (depth_decay, total) in [(0.9, 2.71), (0.5, 1.75), (1.0, 3.0)] {
            let targets = Targets::of(&example, 0, &[1, 2, 3, 4], 3, depth_decay, &DraftRows::new(&[], 10));
            assert_eq!(targets.rows, [Target::Row(2), Target::Row(3), Target::Row(4)]);
            assert!((targets.total_weight() - total).abs() < 1e-6);
        }
    }
}
