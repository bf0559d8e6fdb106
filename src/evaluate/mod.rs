//! Candidate against champion on the same frozen items: what each item says, how sure that is, and the verdict.

pub mod collapse;
pub mod items;
pub mod judge_model;
pub mod quantiles;
pub mod report;
pub mod statistics;
pub mod verdict;
pub mod verifier;
