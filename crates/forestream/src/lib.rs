//! The facade that an application embeds.

pub mod dataset;
pub mod inspect;
pub mod places;
pub mod pull;
