//! A part of a set that has something of every task and every age.

use super::eligible::newer_first;
use crate::domain::Candidate;
use std::collections::BTreeMap;

/// At most `limit` of the runs, as places in `runs`: first one of every group, then a second of every group, and so on. Of the last round,
/// which does not fit, the quartiles of age give one each by turns, the newest first; so does a group.
pub fn select(runs: &[&Candidate], limit: usize) -> Vec<usize> {
    if runs.len() <= limit {
        return (0..runs.len()).collect();
    }
    let mut by_age: Vec<usize> = (0..runs.len()).collect();
    by_age.sort_by(|&a, &b| newer_first(runs[a], runs[b]));
    let mut rounds: Vec<[Vec<usize>; 4]> = Vec::new();
    let mut of_group: BTreeMap<&str, usize> = BTreeMap::new();
    for (rank, &place) in by_age.iter().enumerate() {
        let round = of_group.entry(&runs[place].group).or_default();
        if rounds.len() == *round {
            rounds.push(Default::default());
        }
        rounds[*round][rank * 4 / runs.len()].push(place);
        *round += 1;
    }
    let mut chosen = Vec::with_capacity(limit);
    for quartiles in rounds {
        let longest = quartiles.iter().map(Vec::len).max().unwrap_or(0);
        let by_turns = (0..longest).flat_map(|turn| quartiles.iter().filter_map(move |quartile| quartile.get(turn)));
        chosen.extend(by_turns.take(limit - chosen.len()));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::tests::candidate;

    fn chosen(runs: &[Candidate], limit: usize) -> Vec<i64> {
        let mut found: Vec<i64> =
            select(&runs.iter().collect::<Vec<_>>(), limit).into_iter().map(|place| runs[place].run).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn every_group_gives_one_before_any_gives_two() {
        // Ten runs of one task, newer than one of each of three others.
        let mut runs: Vec<Candidate> = (1..=3).map(|i| candidate(i, &format!("g{i}"))).collect();
        runs.extend((4..=13).map(|i| candidate(i, "many")));
        assert_eq!(chosen(&runs, 4), [1, 2, 3, 13]);
        assert_eq!(chosen(&runs, 6), [1, 2, 3, 11, 12, 13]);
        assert_eq!(chosen(&runs, 13).len(), 13);
        assert_eq!(chosen(&runs, 0), [0; 0]);
    }

    #[test]
    fn every_age_is_there_the_newest_of_each_first() {
        let runs: Vec<Candidate> = (1..=16).map(|i| candidate(i, &format!("g{i}"))).collect();
        assert_eq!(chosen(&runs, 8), [3, 4, 7, 8, 11, 12, 15, 16]);
        assert_eq!(chosen(&runs, 5), [4, 8, 12, 15, 16]);
    }
}
