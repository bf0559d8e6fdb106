//! Rows become one packed stream with its targets.

use retune_kernels::cross_entropy::Target;

use super::decoder::Stream;
use crate::domain::Tokens;

/// Rows that go through the model together.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub stream: Stream,
    /// In the order of the rows; every weight is 1.
    pub targets: Vec<Target>,
    /// How many of the targets belong to each row.
    pub row_targets: Vec<usize>,
}

impl Batch {
    pub fn new(rows: &[&Tokens]) -> Self {
        Self::with_prompts(rows, |_| false)
    }

    /// Every token of the rows that `whole` names (by their place in `rows`) is a target, its prompt too.
    pub fn with_prompts(rows: &[&Tokens], whole: impl Fn(usize) -> bool) -> Self {
        let ids: Vec<&[u32]> = rows.iter().map(|r| r.ids.as_slice()).collect();
        let mut targets = Vec::new();
        let mut row_targets = Vec::new();
        let mut start = 0;
        for (place, row) in rows.iter().enumerate() {
            let (before, whole) = (targets.len(), whole(place));
            for i in (1..row.ids.len()).filter(|&i| whole || row.trained[i]) {
                targets.push(Target { position: start + i - 1, id: row.ids[i], weight: 1.0 });
            }
            row_targets.push(targets.len() - before);
            start += row.ids.len();
        }
        Self { stream: Stream::packed(&ids), targets, row_targets }
    }

    /// Tokens in the stream.
    pub fn tokens(&self) -> usize {
        self.stream.len()
    }
}

/// Splits rows into consecutive groups of at most `budget` tokens (a longer row stands alone): batches for scoring.
pub fn groups(lengths: impl Iterator<Item = usize>, budget: usize) -> Vec<std::ops::Range<usize>> {
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    let mut used = 0;
    for (i, n) in lengths.enumerate() {
        match groups.last_mut() {
            Some(last) if used + n <= budget => {
                last.end = i + 1;
                used += n;
            }
            _ => {
                groups.push(i..i + 1);
                used = n;
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_predicted_by_the_token_before_it_in_its_own_row() {
        let first = Tokens { ids: vec![5, 6, 7], trained: vec![true, false, true] };
        let second = Tokens { ids: vec![8, 9], trained: vec![true, true] };
        let batch = Batch::new(&[&first, &second]);
        assert_eq!(batch.targets, [Target { position: 1, id: 7, weight: 1.0 }, Target { position: 3, id: 9, weight: 1.0 }]);
        assert_eq!(batch.row_targets, [1, 1]);
        assert_eq!(batch.stream.positions, [0, 1, 2, 0, 1]);
        let with_prompt = Batch::with_prompts(&[&first, &second], |place| place == 0);
        assert_eq!(with_prompt.targets[0], Target { position: 0, id: 6, weight: 1.0 });
        assert_eq!((&with_prompt.targets[1..], with_prompt.row_targets), (&batch.targets[..], vec![2, 1]));
    }

    #[test]
    fn groups_hold_every_row_once_and_keep_to_the_budget() {
        assert_eq!(groups([3, 4, 9, 1, 1].into_iter(), 7), [0..2, 2..3, 3..5]);
        assert!(groups(std::iter::empty(), 7).is_empty());
    }
}
