//! Measuring what passes and drafts cost, in a time that is bounded whatever they cost.
//!
//! On a slow machine a pass of a large model takes a second, and what is measured has to be chosen: a first turn goes through
//! the sizes in rising order as far as half of the time allows, then through the drafts; further turns repeat what it has
//! measured while time is left. Larger sizes get the marginal cost per node of the last measured ones. However long they
//! take, passes over one and over two nodes and one draft are measured: without a slope all drafts would seem free. A measurement
//! that is stopped ends after the pass under way, with a curve that serves for the moment.

use forestream_decode::{CostCurve, DecodeError};
use forestream_model::Model;

use crate::tree_passes::TreePasses;

/// Sizes that are measured; most drafts that pay are small.
pub(super) const SIZES: &[usize] = &[1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32];
/// How often a size is measured in each turn; its fastest pass counts, as the one that nothing else disturbed. Another pass goes
/// before them: rounds follow rounds of about their own size, and find in the caches what these leave.
const TURNS: &[usize] = &[1, 2, 2, 3];
/// Seconds that a measurement takes at most, and a pass: enough for a model of some billion weights to be measured more than once,
/// since single passes are disturbed on a busy machine.
const SECONDS: f64 = 5.0;
/// After so many seconds the first turn goes on to no larger size.
const RISING_SECONDS: f64 = SECONDS / 2.0;
/// After so many seconds no further tokens are put into the cache.
const FILLING_SECONDS: f64 = 0.125;
/// What takes longer finds nothing in the caches that would matter, and no other pass goes before it.
const LONG_SECONDS: f64 = 0.125;
/// Sizes up to this one are measured in any case.
const LEAST_SIZE: usize = 2;
/// A node beyond the measured sizes costs at least this part of a pass over one: what was not measured is not free.
const LEAST_MARGINAL_COST: f64 = 0.1;
/// Tokens in the cache while measuring, as far as context and time allow.
const DEPTH: usize = 128;
/// Whoever waits is told so after as many seconds.
const TOLD_SECONDS: f64 = 0.5;

/// A clock, and whoever waits for a measurement.
pub(crate) struct Supervision<'a> {
    /// Seconds since some moment.
    pub(crate) clock: &'a dyn Fn() -> f64,
    /// Is told once where the measurement takes longer than a moment.
    pub(crate) note: Option<fn(&str)>,
    /// Whether the measurement shall end early.
    pub(crate) is_stopped: Option<fn() -> bool>,
}

impl Supervision<'_> {
    /// The seconds that `work` takes.
    pub(super) fn seconds(&self, work: impl FnOnce() -> Result<(), DecodeError>) -> Result<f64, DecodeError> {
        let start = (self.clock)();
        work()?;
        Ok((self.clock)() - start)
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.is_some_and(|is_stopped| is_stopped())
    }
}

/// A curve, and whether it is worth keeping.
pub(crate) struct MeasuredCurve {
    /// The curve, over all sizes.
    pub(crate) curve: CostCurve,
    /// Whether nobody has stopped its measurement.
    pub(crate) is_complete: bool,
}

/// Measures a model.
///
/// # Errors
/// If a pass fails.
pub(super) fn measure(model: &dyn Model, supervision: &Supervision<'_>) -> Result<MeasuredCurve, DecodeError> {
    let largest = SIZES[SIZES.len() - 1];
    let depth = DEPTH.min(model.config().max_position_embeddings.saturating_sub(largest));
    let num_streams = model.streams().map_or(0, |streams| streams.adapter().streams.num_streams);
    let mut measurement = Measurement {
        passes: TreePasses::new(model, 0, depth + largest)?,
        supervision,
        start: (supervision.clock)(),
        note: supervision.note,
        fastest: Vec::new(),
    };
    measurement.fill(depth)?;
    measurement.first_turn(num_streams)?;
    for &repetitions in &TURNS[1..] {
        measurement.further_turn(repetitions)?;
    }
    Ok(MeasuredCurve { curve: measurement.curve(num_streams)?, is_complete: !supervision.is_stopped() })
}

/// Something whose time is measured.
#[derive(Clone, Copy)]
enum Subject {
    /// A pass over so many nodes.
    Pass(usize),
    /// A stream pass with so many streams, and its proposals.
    Draft(usize),
}

/// A measurement under way.
struct Measurement<'m, 's> {
    passes: TreePasses<'m>,
    supervision: &'s Supervision<'s>,
    start: f64,
    /// Whom to tell that it takes longer than a moment; nobody, once that is done.
    note: Option<fn(&str)>,
    /// What was measured so far, and the fewest seconds that it took.
    fastest: Vec<(Subject, f64)>,
}

impl<'m> Measurement<'m, '_> {
    /// Fills the cache with `depth` tokens, or what there is time for: twice as many each time, at least one.
    fn fill(&mut self, depth: usize) -> Result<(), DecodeError> {
        let mut len = 0;
        while len < depth && self.goes_on(FILLING_SECONDS, len == 0) {
            let more = len.max(1).min(depth - len);
            self.run(|passes| passes.fill(more))?;
            len += more;
        }
        Ok(())
    }

    fn first_turn(&mut self, num_streams: usize) -> Result<(), DecodeError> {
        for &nodes in SIZES {
            if nodes > 1 && !self.goes_on(RISING_SECONDS, nodes <= LEAST_SIZE) {
                break;
            }
            self.add(Subject::Pass(nodes))?;
        }
        for streams in 1..=num_streams {
            if !self.goes_on(SECONDS, streams == 1) {
                break;
            }
            self.add(Subject::Draft(streams))?;
        }
        Ok(())
    }

    fn add(&mut self, subject: Subject) -> Result<(), DecodeError> {
        let mut seconds = self.time(subject)?;
        if seconds < LONG_SECONDS {
            seconds = self.time(subject)?;
        }
        self.fastest.push((subject, seconds));
        Ok(())
    }

    fn further_turn(&mut self, repetitions: usize) -> Result<(), DecodeError> {
        for index in 0..self.fastest.len() {
            let (subject, known) = self.fastest[index];
            let unmeasured = usize::from(known < LONG_SECONDS);
            for repetition in 0..unmeasured + repetitions {
                if !self.goes_on(SECONDS, false) {
                    return Ok(());
                }
                let seconds = self.time(subject)?;
                if repetition >= unmeasured {
                    self.fastest[index].1 = seconds.min(self.fastest[index].1);
                }
            }
        }
        Ok(())
    }

    /// Seconds of one pass or draft. Before a draft a pass pushes the weights of the streams out of the caches, as rounds do.
    fn time(&mut self, subject: Subject) -> Result<f64, DecodeError> {
        match subject {
            Subject::Pass(nodes) => self.run(|passes| passes.run(nodes)),
            Subject::Draft(streams) => {
                if self.fastest[0].1 < LONG_SECONDS {
                    self.run(|passes| passes.run(1))?;
                }
                self.run(|passes| passes.draft(streams))
            }
        }
    }

    fn run(&mut self, work: impl FnOnce(&mut TreePasses<'m>) -> Result<(), DecodeError>) -> Result<f64, DecodeError> {
        let seconds = self.supervision.seconds(|| work(&mut self.passes))?;
        if self.elapsed() > TOLD_SECONDS
            && !self.supervision.is_stopped()
            && let Some(note) = self.note.take()
        {
            note("measuring how long passes of this model take on this machine, for a few seconds");
        }
        Ok(seconds)
    }

    fn elapsed(&self) -> f64 {
        (self.supervision.clock)() - self.start
    }

    /// Whether something else is measured: until `limit` seconds have passed, or where it `is_needed`; nothing once stopped.
    fn goes_on(&self, limit: f64, is_needed: bool) -> bool {
        !self.supervision.is_stopped() && (is_needed || self.elapsed() < limit)
    }

    /// The curve through what was measured, up to the largest size and `num_streams` streams.
    fn curve(&self, num_streams: usize) -> Result<CostCurve, DecodeError> {
        let passes = self.fastest.iter().filter_map(|&(subject, seconds)| match subject {
            Subject::Pass(nodes) => Some((nodes, seconds)),
            Subject::Draft(_) => None,
        });
        let drafts = self.fastest.iter().filter_map(|&(subject, seconds)| match subject {
            Subject::Pass(_) => None,
            Subject::Draft(streams) => Some((streams, seconds)),
        });
        let drafts = extended(drafts.collect(), 1..=num_streams);
        let draft_seconds = drafts.into_iter().map(|(_, seconds)| seconds).collect();
        Ok(CostCurve::new(&extended(passes.collect(), SIZES.iter().copied()))?.with_draft_seconds(draft_seconds))
    }
}

/// Points of the first of `sizes`, and those of the others by the marginal cost of the upper half.
fn extended(mut points: Vec<(usize, f64)>, sizes: impl Iterator<Item = usize>) -> Vec<(usize, f64)> {
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else { return points };
    let middle = points.iter().rfind(|(size, _)| 2 * size <= last.0).unwrap_or(&first);
    let marginal = match last.0 - middle.0 {
        0 => last.1 / last.0 as f64,
        more => ((last.1 - middle.1) / more as f64).max(LEAST_MARGINAL_COST * first.1),
    };
    points.extend(sizes.skip(points.len()).map(|size| (size, last.1 + marginal * (size - last.0) as f64)));
    points
}

#[cfg(test)]
pub(super) mod tests;
