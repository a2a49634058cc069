//! The facade that an application embeds.

pub mod places;
pub mod pull;
