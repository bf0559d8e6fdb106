//! Candidate against champion on the same frozen items: what each item says, how sure that is, and the verdict.

pub mod quantiles;
pub mod statistics;
pub mod verifier;
