//! Plain decoding: nothing is drafted, every round verifies the root alone.

use super::{Requires, Strategy};
use crate::draft::DraftRequest;
use crate::{DecodeError, Draft, Drafter};

/// The name of plain decoding, which all else is compared with.
pub const PLAIN: &str = "none";

pub(super) static STRATEGY: Strategy = Strategy {
    name: PLAIN,
    summary: "plain decoding, one token per pass",
    requires: Requires::Nothing,
    build: |_| Ok(Box::new(Plain)),
};

/// Drafts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Drafter for Plain {
    fn draft(&mut self, _request: &mut DraftRequest<'_>, _draft: &mut Draft) -> Result<(), DecodeError> {
        Ok(())
    }

    fn drafts(&self) -> bool {
        false
    }
}
