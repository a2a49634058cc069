//! The facade that an application embeds.
