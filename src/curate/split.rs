//! Which task groups are held out. What was decided once stays; a new group is decided by its hash.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sha2::{Digest as _, Sha256};

use super::{Part, Settings};

/// Items of one held-out group at most, so that no task dominates what a candidate is judged on.
pub const OF_A_HELD_OUT_GROUP: usize = 3;
/// Never changes: the same group has the same place in every project and role.
const SALT: &[u8] = b"retune held-out 1\n";

/// A group with something in it.
#[derive(Clone, Debug, Default)]
pub struct Group<'a> {
    /// Items that are neither duplicates nor over the cap.
    pub items: usize,
    /// Groups that ask nearly the same.
    pub like: BTreeSet<&'a str>,
}

/// Where the order of groups comes from.
pub fn place(group: &str) -> [u8; 32] {
    Sha256::new().chain_update(SALT).chain_update(group).finalize().into()
}

/// The parts of the groups that are new, in the order of their places.
///
/// A group that asks nearly the same as one that is decided goes where that is: with the trained one if there are both, as what was
/// trained on proves nothing any more. Others are held out until the target is reached: `held_out_share` of the items, at least
/// `min_held_out`. Never more than `max_held_out`, and never more than half.
pub fn decide(groups: &BTreeMap<&str, Group>, parts: &HashMap<String, Part>, settings: &Settings) -> Vec<(String, Part)> {
    let counted = |group: &Group| group.items.min(OF_A_HELD_OUT_GROUP);
    let items: usize = groups.values().map(|group| group.items).sum();
    let target = ((settings.held_out_share * items as f64).round() as usize).max(settings.min_held_out);
    let most = settings.max_held_out.min(items / 2);
    let is = |name: &str, part: Part| parts.get(name) == Some(&part);
    let mut held: usize = groups.iter().filter(|(name, _)| is(name, Part::HeldOut)).map(|(_, group)| counted(group)).sum();
    let mut new: Vec<(&str, &Group)> =
        groups.iter().filter(|(name, _)| !parts.contains_key(**name)).map(|(name, group)| (*name, group)).collect();
    new.sort_by_key(|(name, _)| place(name));
    let mut decided: HashMap<&str, Part> = HashMap::new();
    let mut made = Vec::with_capacity(new.len());
    for (name, group) in new {
        let beside = |part: Part| group.like.iter().any(|other| is(other, part) || decided.get(other) == Some(&part));
        let more = counted(group);
        let part = if beside(Part::Train) || held + more > most {
            Part::Train
        } else if beside(Part::HeldOut) || held < target {
            held += more;
            Part::HeldOut
        } else {
            Part::Train
        };
        decided.insert(name, part);
        made.push((name.to_owned(), part));
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(names: &[String], items: usize) -> BTreeMap<&str, Group<'static>> {
        names.iter().map(|name| (name.as_str(), Group { items, like: BTreeSet::new() })).collect()
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("task {i}")).collect()
    }

    fn held(parts: &[(String, Part)]) -> usize {
        parts.iter().filter(|(_, part)| *part == Part::HeldOut).count()
    }

    #[test]
    fn a_tenth_is_held_out_at_least_fifty_at_most_five_hundred_never_more_than_half() {
        let settings = Settings::default();
        for (n, expected) in [(1, 0), (2, 1), (30, 15), (99, 49), (100, 50), (400, 50), (1000, 100), (9000, 500)] {
            let names = names(n);
            assert_eq!(held(&decide(&groups(&names, 1), &HashMap::new(), &settings)), expected, "{n} groups");
        }
        // Groups of eight count as three of the items that are held out, and as eight of all: 34 groups for a tenth of 1000.
        let names = names(125);
        assert_eq!(held(&decide(&groups(&names, 8), &HashMap::new(), &settings)), 34);
    }

    #[test]
    fn what_is_decided_stays_and_only_what_is_missing_is_added() {
        let settings = Settings::default();
        let all = names(3000);
        let mut parts: HashMap<String, Part> = HashMap::new();
        let mut before = 0;
        for n in [40, 200, 600, 2000, 3000] {
            let some = groups(&all[..n], 1);
            let new = decide(&some, &parts, &settings);
            assert_eq!(new.len(), n - before, "only new groups are decided");
            parts.extend(new);
            before = n;
            let held = parts.values().filter(|part| **part == Part::HeldOut).count();
            assert_eq!(held, (n / 10).max(50).min(n / 2), "{n} groups");
        }
        assert_eq!(decide(&groups(&all, 1), &parts, &settings), []);
    }

    #[test]
    fn a_group_that_asks_the_same_goes_where_the_other_is() {
        let settings = Settings::default();
        let names = names(200);
        let mut all = groups(&names, 1);
        let parts: HashMap<String, Part> = [("task 0".to_owned(), Part::HeldOut), ("task 1".to_owned(), Part::Train)].into();
        all.get_mut("task 10").unwrap().like.insert("task 0");
        all.get_mut("task 11").unwrap().like.insert("task 1");
        all.get_mut("task 12").unwrap().like.extend(["task 0", "task 1"]);
        let many: Vec<String> = (20..60).map(|i| format!("task {i}")).collect();
        let (first, rest) = many.split_first().unwrap();
        rest.iter().for_each(|name| all.get_mut(name.as_str()).unwrap().like.extend([first.as_str()]));
        all.get_mut(first.as_str()).unwrap().like.extend(rest.iter().map(String::as_str));
        let made: HashMap<String, Part> = decide(&all, &parts, &settings).into_iter().collect();
        assert_eq!((made["task 10"], made["task 11"], made["task 12"]), (Part::HeldOut, Part::Train, Part::Train));
        assert!(rest.iter().all(|name| made[name] == made[first]), "groups that are like each other are on one side");
    }
}
