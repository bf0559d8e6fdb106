//! A file becomes rows ready for the model: read as a method wants it, rendered, brought to length, some held out.

use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::base::{Base, hex};
use crate::domain::{Example, Tokens};
use crate::error::{Error, Result};
use crate::formats::rows::{self, Wanted};
use crate::text::render::{Fitted, Long, Renderer, fit};
use crate::text::template::Template;
use crate::train::Method;

/// How rows become tokens.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub template: Option<String>,
    /// A system text before every row.
    pub system: Option<String>,
    pub max_length: Option<usize>,
    pub long: Long,
}

/// Rows ready for the model, and what happened to them on the way.
#[derive(Debug)]
pub struct Dataset {
    /// Of a pair, the chosen answer and then the rejected one, each with its prompt.
    pub rows: Vec<Tokens>,
    /// Whether each row is good work.
    pub good: Vec<bool>,
    /// The number in the file (from 1) of each row.
    pub numbers: Vec<usize>,
    /// A hash of what stands before each row's answer.
    prompts: Vec<u64>,
    pub read: usize,
    /// Rows of bad work, in a file that is read for the good.
    pub unwanted: usize,
    /// Pairs that are learnt from as a good and a bad row.
    pub unpaired: usize,
    /// Pairs left out because both answers are the same tokens.
    pub same: usize,
    /// Pairs left out because one of their rows was.
    pub broken: usize,
    pub trailing_user_turns: usize,
    pub fitted: Fitted,
    pub max_length: usize,
    /// SHA-256 over ids and masks.
    pub digest: String,
}

impl Dataset {
    /// What a user should know of the rows, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |n: usize, what: &str| {
            if n > 0 {
                notes.push(format!("{n} of {} rows {what}", self.read));
            }
        };
        note(
            self.fitted.cut,
            &format!("were longer than {} tokens and cut at the end (--long drop|error changes that)", self.max_length),
        );
        note(self.fitted.dropped, &format!("were longer than {} tokens and left out", self.max_length));
        note(self.fitted.without_target, "had nothing to train and were left out");
        note(self.trailing_user_turns, "ended on a user's turn, which was left out");
        note(self.unwanted, "are marked as bad work and were left out (--method kto learns from them, too)");
        for (n, what) in [
            (self.unpaired, "pairs are learnt from as a good and a bad row each (--method dpo or orpo keeps them together)"),
            (self.same, "pairs were left out: both of their answers are the same tokens"),
            (self.broken, "pairs were left out, because one of their rows was"),
        ] {
            if n > 0 {
                notes.push(format!("{n} {what}"));
            }
        }
        notes
    }
}

/// Reads a file of good work, renders every row, brings it to length.
pub fn load_dataset(base: &Base, template: &Template, path: &Path, reading: &Reading) -> Result<Dataset> {
    load_for(Method::Sft, base, template, path, reading)
}

/// Reads a file as a method wants it, renders every row, brings it to length.
pub(super) fn load_for(method: Method, base: &Base, template: &Template, path: &Path, reading: &Reading) -> Result<Dataset> {
    let wanted = match method {
        Method::Sft => Wanted::GoodWork,
        Method::Dpo { .. } | Method::Orpo { .. } => Wanted::Pairs,
        Method::Kto { .. } => Wanted::Labelled,
    };
    let file = rows::read_as(path, wanted)?;
    let renderer = Renderer { tokenizer: &base.tokenizer, template, system: reading.system.clone() };
    let read = file.examples.len() + file.unwanted_rows;
    let prompts: Vec<u64> = file.examples.iter().map(prompt_hash).collect();
    let numbers: Vec<usize> = file.examples.iter().map(|e| e.row).collect();
    let tokens = file.examples.iter().map(|e| Ok(renderer.render(e)?.tokens)).collect::<Result<Vec<_>>>()?;
    let max_length = reading.max_length.unwrap_or_else(|| base.default_max_length());
    let context = base.decoder.config.context_length;
    if max_length > context {
        return Err(Error::usage(
            format!("--max-length {max_length} is more than the {context} tokens that {} can see", base.name),
            format!("use at most {context}"),
        ));
    }
    let (mut kept, fitted) = fit(tokens, max_length, reading.long)?;
    let (mut same, mut broken) = (0, 0);
    if method.takes_pairs() {
        (kept, same, broken) = whole_pairs(kept);
    }
    let (rows, places): (Vec<Tokens>, Vec<usize>) = kept.into_iter().unzip();
    let good: Vec<bool> = places.iter().map(|&place| file.good[place]).collect();
    check_preferences(method, path, &good, same)?;
    Ok(Dataset {
        digest: digest_rows(&rows),
        rows,
        good,
        numbers: places.iter().map(|&place| numbers[place]).collect(),
        prompts: places.iter().map(|&place| prompts[place]).collect(),
        read,
        unwanted: file.unwanted_rows,
        unpaired: file.unpaired,
        same,
        broken,
        trailing_user_turns: file.trailing_user_turns,
        fitted,
        max_length,
    })
}

/// Rows with their places in the file.
type Placed = Vec<(Tokens, usize)>;

/// The pairs of which both rows are left and differ; how many pairs were the same twice, and how many lost a row.
fn whole_pairs(kept: Placed) -> (Placed, usize, usize) {
    let (mut pairs, mut same, mut broken) = (Vec::with_capacity(kept.len()), 0, 0);
    let mut rest = kept.into_iter().peekable();
    while let Some(first) = rest.next() {
        let is_other = |(_, place): &(Tokens, usize)| first.1.is_multiple_of(2) && *place == first.1 + 1;
        match rest.next_if(is_other) {
            None => broken += 1,
            Some(second) if first.0.ids == second.0.ids => same += 1,
            Some(second) => pairs.extend([first, second]),
        }
    }
    (pairs, same, broken)
}

/// There must be something to prefer.
fn check_preferences(method: Method, path: &Path, good: &[bool], same: usize) -> Result<()> {
    let wanted = good.iter().filter(|&&good| good).count();
    let one_kind = if wanted == good.len() { "good" } else { "bad" };
    match method {
        Method::Sft => Ok(()),
        _ if good.is_empty() => Err(Error::file(
            path,
            format!("no pair is left to learn from ({same} of them have the same answer twice)"),
            "raise --max-length if answers were cut before they part, or look at the pairs: the two answers must differ",
        )),
        Method::Kto { .. } if wanted == 0 || wanted == good.len() => Err(Error::file(
            path,
            format!("all {} rows that can be trained are marked {one_kind}", good.len()),
            "--method kto learns from the difference: add rows of the other kind, or train on good work alone with --method sft",
        )),
        _ => Ok(()),
    }
}

/// Tells where rows of one kind outweigh the others: TRL's guide to KTO advises 1 to 1 up to 4 to 3.
pub(super) fn lopsided(method: Method, good: &[bool]) -> Option<String> {
    let Method::Kto { desirable_weight, undesirable_weight, .. } = method else { return None };
    let wanted = good.iter().filter(|&&good| good).count();
    let unwanted = good.len() - wanted;
    let ratio = desirable_weight * wanted as f64 / (undesirable_weight * unwanted as f64);
    if (0.75..=1.34).contains(&ratio) {
        return None;
    }
    let (flag, weight) = match wanted > unwanted {
        true => ("--undesirable-weight", desirable_weight * wanted as f64 / unwanted as f64),
        false => ("--desirable-weight", undesirable_weight * unwanted as f64 / wanted as f64),
    };
    Some(format!(
        "{wanted} good rows and {unwanted} bad ones, weighed {ratio:.2} to 1: KTO learns best between 1 and 1.33 to 1; {flag} {weight:.2} makes them equal"
    ))
}

/// The first bytes of a hash.
fn hash_head(bytes: &[u8]) -> u64 {
    let hash = Sha256::digest(bytes);
    u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

fn prompt_hash(example: &Example) -> u64 {
    hash_head(json!([example.prompt(), example.tools]).to_string().as_bytes())
}

/// Takes rows out (and whether they are good work) by a hash of their ids, so that the same row is held out however the
/// file grows or is ordered; rows of preferences by a hash of their prompt, so that none stands on both sides.
pub(super) fn hold_out(dataset: &mut Dataset, method: Method, share: f64) -> Result<(Vec<Tokens>, Vec<bool>)> {
    if !(0.0..1.0).contains(&share) {
        return Err(Error::usage(
            format!("--eval-share is {share}"),
            "it must be at least 0 and less than 1; 0.1 holds out a tenth",
        ));
    }
    let heads: Vec<u64> = match method {
        Method::Sft => dataset.rows.iter().map(|row| hash_head(bytemuck::cast_slice::<u32, u8>(&row.ids))).collect(),
        _ => std::mem::take(&mut dataset.prompts),
    };
    let rows = std::mem::take(&mut dataset.rows).into_iter().zip(std::mem::take(&mut dataset.good));
    let (held_out, kept): (Vec<_>, Vec<_>) =
        heads.into_iter().zip(rows).partition(|(head, _)| (*head as f64 / u64::MAX as f64) < share);
    if kept.is_empty() || (share > 0.0 && held_out.is_empty()) {
        let n = method.rows_per_example();
        return Err(Error::data(
            format!(
                "holding out {share} of {} {} leaves {} to train and {} to evaluate",
                (kept.len() + held_out.len()) / n,
                if n == 2 { "pairs" } else { "rows" },
                kept.len() / n,
                held_out.len() / n
            ),
            "give more rows, another --eval-share, or a file with --eval-data",
        ));
    }
    (dataset.rows, dataset.good) = kept.into_iter().map(|(_, row)| row).unzip();
    Ok(held_out.into_iter().map(|(_, row)| row).unzip())
}

pub(super) fn digest_rows(rows: &[Tokens]) -> String {
    let mut hash = Sha256::new();
    for row in rows {
        hash.update((row.ids.len() as u64).to_le_bytes());
        hash.update(bytemuck::cast_slice::<u32, u8>(&row.ids));
        hash.update(row.trained.iter().map(|&t| u8::from(t)).collect::<Vec<_>>());
    }
    format!("sha256:{}", hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DPO: Method = Method::Dpo { beta: 0.1, label_smoothing: 0.0 };

    fn load(method: Method, rows: &[serde_json::Value], reading: &Reading) -> Result<Dataset> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        let base = Base::open("demo").unwrap();
        let template = base.template(Some("alpaca")).unwrap();
        load_for(method, &base, &template, &path, reading)
    }

    fn pair(prompt: &str, chosen: &str, rejected: &str) -> serde_json::Value {
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    }

    #[test]
    fn a_pair_stays_a_pair_or_is_left_out_and_counted() {
        let long = "hide ".repeat(60);
        let rows = [pair("a", "x", "y"), pair("b", "same", "same"), pair("c", &long, "z"), pair("d", "v", "w")];
        let reading = Reading { max_length: Some(60), long: Long::Drop, ..Reading::default() };
        let dataset = load(DPO, &rows, &reading).unwrap();
        assert_eq!((dataset.numbers, dataset.good), (vec![1, 1, 4, 4], [true, false].repeat(2)));
        assert_eq!((dataset.same, dataset.broken, dataset.fitted.dropped), (1, 1, 1));
        // Cut where both are still the same, a pair has nothing to prefer.
        let twins = [pair("a", &format!("{long} good"), &format!("{long} bad"))];
        let error = load(DPO, &twins, &Reading { max_length: Some(60), ..Reading::default() }).unwrap_err();
        assert!(error.to_string().contains("no pair is left to learn from (1 of them"), "{error}");
    }

    #[test]
    fn no_prompt_stands_on_both_sides() {
        let rows: Vec<_> = (0..120).map(|i| pair(&format!("hide {}", i % 30), &format!("yes {i}"), &format!("no {i}"))).collect();
        let kto = Method::Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 };
        for method in [DPO, kto] {
            let mut dataset = load(method, &rows, &Reading::default()).unwrap();
            let all = dataset.rows.len();
            let (held_out, good) = hold_out(&mut dataset, method, 0.3).unwrap();
            let prompts = |rows: &[Tokens]| -> std::collections::BTreeSet<Vec<u32>> {
                rows.iter().map(|row| row.ids[..row.prompt_tokens()].to_vec()).collect()
            };
            let (train, test) = (prompts(&dataset.rows), prompts(&held_out));
            assert!(train.is_disjoint(&test) && train.len() + test.len() == 30 && test.len() >= 4, "{} held out", test.len());
            assert_eq!((held_out.len() + dataset.rows.len(), good.len()), (all, held_out.len()));
            assert!(good.chunks(2).chain(dataset.good.chunks(2)).all(|pair| pair == [true, false]));
        }
    }

    #[test]
    fn rows_of_bad_work_and_lopsided_files_are_told() {
        let row = |i: usize, good: bool| json!({"instruction": format!("hide {i}"), "output": "***", "label": good});
        let rows: Vec<_> = (0..8).map(|i| row(i, i < 6)).collect();
        let notes = load(Method::Sft, &rows, &Reading::default()).unwrap().notes();
        assert_eq!(notes, ["2 of 8 rows are marked as bad work and were left out (--method kto learns from them, too)"]);
        let kto = |undesirable_weight| Method::Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight };
        let dataset = load(kto(1.0), &rows, &Reading::default()).unwrap();
        let told = lopsided(kto(1.0), &dataset.good).unwrap();
        assert!(told.starts_with("6 good rows and 2 bad ones") && told.contains("--undesirable-weight 3.00"), "{told}");
        assert_eq!(lopsided(kto(3.0), &dataset.good), None);
    }
}
