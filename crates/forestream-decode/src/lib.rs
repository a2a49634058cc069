//! Drafting, verification, acceptance and sampling.
