//! Lines that the requests of a role share (a prompt's fixed text): two tasks are not the same because they are asked in one form.

use std::collections::{BTreeMap, HashSet};

use super::words::{ByHash, Said, line_hash};
use super::{Texts, split};
use crate::domain::Candidate;
use crate::error::Result;

/// Groups that are looked at.
pub const SAMPLE: usize = 2000;
/// A line is shared by more groups than this...
pub const MANY_GROUPS: usize = 10;
/// ... and by more than this share of them: what fewer ask in the same words are near duplicates.
const SHARE: f64 = 0.1;

/// The lines that many requests share.
#[derive(Clone, Debug, Default)]
pub struct Boilerplate(HashSet<u64>);

impl Boilerplate {
    /// From the first run of each of some groups: those whose places come first, so that it does not matter which came when.
    pub fn of_runs<'a>(runs: impl Iterator<Item = &'a Candidate>, texts: &mut Texts) -> Result<Self> {
        let mut first: BTreeMap<[u8; 32], i64> = BTreeMap::new();
        for run in runs {
            first.entry(split::place(&run.group)).or_insert(run.run);
        }
        let said = first.into_values().take(SAMPLE).map(|run| Ok(Said::of(&texts(run)?))).collect::<Result<Vec<_>>>()?;
        Ok(Self::of(said.iter()))
    }

    /// From one example of each group.
    pub fn of<'a>(said: impl Iterator<Item = &'a Said>) -> Self {
        let mut groups = 0;
        let mut seen: ByHash<usize> = ByHash::default();
        for said in said {
            groups += 1;
            let lines: HashSet<u64> = said.request.iter().flat_map(|text| text.lines()).filter_map(line_hash).collect();
            lines.into_iter().for_each(|line| *seen.entry(line).or_default() += 1);
        }
        let many = MANY_GROUPS.max((SHARE * f64::from(groups)) as usize);
        Self(seen.into_iter().filter(|(_, groups)| *groups > many).map(|(line, _)| line).collect())
    }

    /// The request without them: what is asked in this example and not in all. It may be empty.
    pub fn strip(&self, said: Said) -> Said {
        if self.0.is_empty() {
            return said;
        }
        let own = |line: &&str| line_hash(line).is_some_and(|hash| !self.0.contains(&hash));
        let request = said.request.iter().map(|text| text.lines().filter(own).collect::<Vec<_>>().join("\n"));
        Said { request: request.collect(), answer: said.answer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(request: String) -> Said {
        Said { request: vec![request], answer: vec!["a".to_owned()] }
    }

    #[test]
    fn lines_that_more_than_ten_groups_and_a_tenth_of_them_share_are_no_part_of_a_request() {
        let requests: Vec<Said> = (0..200)
            .map(|i| {
                let rare = if i < 15 { "Seldom said.\n" } else { "" };
                said(format!("You write Rust.\n\n{rare}Task: number {i}\n  You WRITE rust."))
            })
            .collect();
        let shared = Boilerplate::of(requests.iter());
        assert_eq!(shared.strip(requests[3].clone()).request, ["Seldom said.\nTask: number 3"]);
        assert_eq!(shared.strip(requests[3].clone()).answer, ["a"]);
        assert_eq!(shared.strip(said("You write Rust.".to_owned())).request, [""]);
        // Of 60 groups, 15 are many.
        let shared = Boilerplate::of(requests[..60].iter());
        assert_eq!(shared.strip(requests[3].clone()).request, ["Task: number 3"]);
        // Ten are few, however few there are.
        assert_eq!(Boilerplate::of(requests[..10].iter()).strip(requests[3].clone()), requests[3]);
    }
}
