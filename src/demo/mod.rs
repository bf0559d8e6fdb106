//! `retune demo`: the whole loop on a small model of our own making. A base that fails a task gets three candidates: one from rows
//! that were cut off (rejected, though its loss is far lower), one from good rows (promoted), one that nothing was taught
//! (inconclusive). Then somebody forces the first, and it is rolled back.

mod arms;
pub mod make_base;
mod stage;
pub mod task;

use std::path::{Path, PathBuf};
use std::time::Instant;

use retune_kernels::rng::Rng;
use serde::Serialize;

use self::arms::{Arms, Candidate};
use self::stage::Stage;
use self::task::{Item, SKILLS, Split};
use crate::base::{Base, DEMO};
use crate::domain::{Answer, Message};
use crate::error::Result;
use crate::infer::generate::{Request, generate};
use crate::model::Adapter;
use crate::text::render::Renderer;
use crate::text::template::Template;
use crate::train::Progress;

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

/// What the demo ends with.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// Exact matches on held-out items, 0..1: of the base, and of the candidate from good rows.
    pub before: f64,
    pub after: f64,
    pub skills_before: f64,
    pub skills_after: f64,
    /// The candidate from good rows serves.
    pub promoted: bool,
    /// The one from rows that were cut off was rejected, although its loss is lower. `None`: not tried, as in the control.
    pub poisoned_rejected: Option<bool>,
    /// The one that was taught nothing was found to be neither better nor worse.
    pub null_inconclusive: Option<bool>,
    /// The rejected one was made to serve, found out, and what served before serves again, with the same answers.
    pub rolled_back: Option<bool>,
    pub seconds: f64,
    #[serde(skip)]
    pub examples: Vec<Example>,
    /// Reports to look at: of the training, and of its verdict.
    #[serde(skip)]
    pub pages: Vec<PathBuf>,
    /// The demo's own project, for `retune history --root`.
    #[serde(skip)]
    pub project: PathBuf,
}

impl DemoReport {
    /// Everything went as it should.
    pub fn is_whole(&self) -> bool {
        self.promoted && [self.poisoned_rejected, self.null_inconclusive, self.rolled_back].iter().all(|arm| *arm == Some(true))
    }
}

/// One held-out request, answered before and after.
#[derive(Clone, Debug)]
pub struct Example {
    pub request: String,
    pub right: String,
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

/// Plays the whole loop in `folder`.
pub fn run(folder: &Path, options: &DemoOptions, progress: &mut dyn Progress, note: &mut dyn FnMut(&str)) -> Result<DemoReport> {
    let clock = Instant::now();
    let base = Base::open(DEMO)?;
    let template = base.template(None)?;
    let sizes = if options.quick { QUICK } else { WHOLE };
    let mut rng = Rng::new(options.seed);
    let rows = task::items(sizes.rows, || task::tool_call(&mut rng, Split::Train, sizes.wordings));
    let held_out = task::items(HELD_OUT, || task::tool_call(&mut rng, Split::HeldOut, sizes.wordings));
    let skills: Vec<Item> =
        SKILLS.iter().flat_map(|&name| task::items(SKILL_ITEMS, || task::skill(name, &mut rng, Split::HeldOut))).collect();
    let mut stage = Stage::new(folder, &base, &template, &held_out, &skills)?;
    stage.register_base()?;
    let mut arms = Arms { stage: &mut stage, sizes, seed: options.seed, progress, note };

    let poison = if options.shuffled { None } else { Some(arms.poison(&rows)?) };
    let mut good_rows = if options.shuffled { task::shuffled(&rows, &mut rng) } else { rows };
    let rehearsed = (0..(sizes.rehearsed * good_rows.len() as f64) as usize)
        .map(|n| task::skill(SKILLS[n % SKILLS.len()], &mut rng, Split::Train));
    good_rows.extend(rehearsed);
    let good = arms.good(&good_rows)?;
    let (null_inconclusive, rolled_back) = match &poison {
        // What is not better than the base leaves nothing to compare others with.
        Some(poison) if good.serves => {
            (Some(arms.null(&good, &good_rows)?), Some(arms.forced(&poison.candidate, &good, &held_out)?))
        }
        _ => (None, None),
    };
    let judgement = &good.evaluated.judgement;
    let kept = arms::skills(judgement)?;
    Ok(DemoReport {
        before: judgement.primary.champion,
        after: judgement.primary.candidate,
        skills_before: kept.champion,
        skills_after: kept.candidate,
        promoted: good.serves,
        poisoned_rejected: poison.map(|poison| poison.rejected),
        null_inconclusive,
        rolled_back,
        seconds: clock.elapsed().as_secs_f64(),
        examples: examples(&good),
        pages: vec![good.adapter.join("report.html"), good.evaluated.report.clone()],
        project: stage.root().to_owned(),
    })
}

/// The first requests with what was said to them, in the order of the items.
fn examples(good: &Candidate) -> Vec<Example> {
    let text = |answer: &Option<Answer>| answer.as_ref().map_or_else(String::new, |answer| answer.text.clone());
    let pairs = good.evaluated.work.pairs().iter();
    let told = pairs.filter_map(|pair| {
        let shown = good.evaluated.shown.get(pair.item())?;
        Some(Example {
            request: shown.request.clone(),
            right: shown.expected.clone(),
            before: text(&pair.champion().answer),
            after: text(&pair.candidate().answer),
        })
    });
    told.collect()
}

/// How much of everything, so that it takes about a minute on two cores, or a third of it. Found by trying: fewer steps or a higher
/// rate cost old skills, more rehearsal costs the new task.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    /// Ways to word a request, of `task::WORDINGS`.
    wordings: u64,
    /// Rows of the old skills for each new row: what is not rehearsed is forgotten.
    rehearsed: f64,
    rank: usize,
    batch_size: usize,
    learning_rate: f64,
    steps: u64,
    poison_steps: u64,
}

const WHOLE: Sizes = Sizes {
    rows: 8000,
    wordings: task::WORDINGS,
    rehearsed: 0.5,
    rank: 64,
    batch_size: 20,
    learning_rate: 1.4e-3,
    steps: 420,
    poison_steps: 60,
};
const QUICK: Sizes = Sizes {
    rows: 2000,
    wordings: 1,
    rehearsed: 3.0,
    rank: 32,
    batch_size: 16,
    learning_rate: 1.2e-3,
    steps: 150,
    poison_steps: 20,
};
