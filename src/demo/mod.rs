//! `retune demo`: a small model of our own making learns a task that it fails, and keeps what it could.

pub mod make_base;
pub mod task;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use retune_kernels::rng::Rng;
use serde::Serialize;

use self::task::{Item, SKILLS, Split};
use crate::base::{Base, DEMO};
use crate::domain::Message;
use crate::error::{Error, Result};
use crate::infer::generate::{Request, generate};
use crate::model::{Adapter, AdapterSpec, Module, adapter_files};
use crate::pipeline::{self, Reading, TrainRequest};
use crate::text::render::Renderer;
use crate::text::template::Template;
use crate::train::{Progress, TrainSettings};

/// Held-out items of the new task.
const HELD_OUT: usize = 100;
/// Held-out items of each old skill.
const SKILL_ITEMS: usize = 12;

/// What to show.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    pub seed: u64,
    /// The control: answers shuffled among the requests, so that nothing can be learnt but the form.
    pub shuffled: bool,
    pub quick: bool,
}

/// What the demo ends with. What the judge decides is not known before there is a judge.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// Exact matches on held-out items, 0..1.
    pub before: f64,
    pub after: f64,
    pub skills_before: f64,
    pub skills_after: f64,
    pub promoted: Option<bool>,
    pub poisoned_rejected: Option<bool>,
    pub null_inconclusive: Option<bool>,
    pub rolled_back: Option<bool>,
    pub seconds: f64,
    #[serde(skip)]
    pub examples: Vec<Comparison>,
}

/// One held-out request, answered before and after.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub item: Item,
    pub before: String,
    pub after: String,
}

/// Answers to items, and how many are right to the letter.
#[derive(Clone, Debug)]
pub struct Answers {
    pub texts: Vec<String>,
    pub right: usize,
}

impl Answers {
    pub fn share(&self) -> f64 {
        self.right as f64 / self.texts.len().max(1) as f64
    }
}

/// Lets the model answer every item greedily.
pub fn exact_match(base: &Base, template: &Template, adapter: Option<&Adapter>, items: &[Item]) -> Result<Answers> {
    let renderer = Renderer { tokenizer: &base.tokenizer, template, system: None };
    let prompts = items
        .iter()
        .map(|item| Ok(renderer.prompt(&[Message::new("user", &item.request)], None)?.1))
        .collect::<Result<Vec<_>>>()?;
    let request = Request { max_tokens: 96, end_ids: base.tokenizer.end_ids(), ..Request::default() };
    let answers = generate(&base.decoder, &prompts, adapter, &request, |_, _| {});
    let texts = answers.iter().map(|a| base.tokenizer.decode(&a.ids(), true)).collect::<Result<Vec<_>>>()?;
    let right =
        texts.iter().zip(items).zip(&answers).filter(|((text, item), answer)| answer.ended && **text == item.answer).count();
    Ok(Answers { texts, right })
}

/// Trains on the new task in `folder` and measures before and after.
pub fn run(folder: &Path, options: &DemoOptions, progress: &mut dyn Progress, note: &mut dyn FnMut(&str)) -> Result<DemoReport> {
    let clock = Instant::now();
    let base = Base::open(DEMO)?;
    let template = base.template(None)?;
    let (rows, steps) = if options.quick { (2000, 100) } else { (8000, 420) };
    let mut rng = Rng::new(options.seed);
    let mut train = task::items(rows, || task::tool_call(&mut rng, Split::Train));
    let held_out = task::items(HELD_OUT, || task::tool_call(&mut rng, Split::HeldOut));
    let skills: Vec<Item> =
        SKILLS.iter().flat_map(|&name| task::items(SKILL_ITEMS, || task::skill(name, &mut rng, Split::HeldOut))).collect();
    if options.shuffled {
        train = task::shuffled(&train, &mut rng);
    }
    // One row in five is of the old skills: what is not rehearsed is forgotten.
    let rehearsed: Vec<Item> = (0..rows / 4).map(|n| task::skill(SKILLS[n % SKILLS.len()], &mut rng, Split::Train)).collect();
    train.extend(rehearsed);
    let before = exact_match(&base, &template, None, &held_out)?;
    let skills_before = exact_match(&base, &template, None, &skills)?;
    note(&format!(
        "before: {} of {HELD_OUT} held-out requests answered exactly; {:.0}% of its own skills",
        before.right,
        100.0 * skills_before.share()
    ));

    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let data = folder.join("tool_calls.jsonl");
    crate::formats::durable::write_with(&data, |out| {
        for item in &train {
            let line = serde_json::json!({"instruction": item.request, "input": "", "output": item.answer});
            writeln!(out, "{line}").map_err(Error::io("write", &data))?;
        }
        Ok(())
    })?;
    let request = TrainRequest {
        data,
        eval_data: None,
        eval_share: 0.0,
        out: folder.join("adapter"),
        reading: Reading::default(),
        adapter: AdapterSpec { rank: 64, alpha: 128.0, rslora: false, dora: false, targets: Module::ALL.to_vec() },
        init_adapter: None,
        settings: TrainSettings {
            max_steps: Some(steps),
            batch_size: 20,
            grad_accum: 1,
            learning_rate: 2e-3,
            seed: options.seed,
            ..TrainSettings::default()
        },
        memory_budget: None,
        save_every: 100,
        resume: false,
        overwrite: true,
    };
    pipeline::train(&base, &request, progress, &AtomicBool::new(false), note)?;
    // Through the files, as a user's own adapter goes.
    let adapter = adapter_files::load(&request.out, &base.decoder.config)?;
    let after = exact_match(&base, &template, Some(&adapter), &held_out)?;
    let skills_after = exact_match(&base, &template, Some(&adapter), &skills)?;
    note(&format!(
        "after:  {} of {HELD_OUT} held-out requests answered exactly; {:.0}% of its own skills",
        after.right,
        100.0 * skills_after.share()
    ));
    let examples = held_out
        .iter()
        .zip(before.texts.iter().zip(&after.texts))
        .map(|(item, (b, a))| Comparison { item: item.clone(), before: b.clone(), after: a.clone() })
        .collect();
    Ok(DemoReport {
        before: before.share(),
        after: after.share(),
        skills_before: skills_before.share(),
        skills_after: skills_after.share(),
        promoted: None,
        poisoned_rejected: None,
        null_inconclusive: None,
        rolled_back: None,
        seconds: clock.elapsed().as_secs_f64(),
        examples,
    })
}
