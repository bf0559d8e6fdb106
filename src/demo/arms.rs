//! The four arms: what is trained, what the judge says of it, and what then serves.

use std::path::PathBuf;

use super::stage::{Lesson, Stage, side};
use super::task::{self, Item};
use super::{Sizes, exact_match};
use crate::domain::{Answer, Estimate, Guard, Primary, Verdict};
use crate::error::{Error, Result};
use crate::evaluate::verdict::Judgement;
use crate::model::adapter_files;
use crate::pipeline::evaluate::{Evaluated, Side};
use crate::train::Progress;

/// Answers that are asked for once more after the roll-back.
const ASKED_AGAIN: usize = 20;

/// A candidate that was trained, registered and judged.
pub(super) struct Candidate {
    pub adapter: PathBuf,
    /// `retune-demo-tools:v1`
    pub version: String,
    pub evaluated: Evaluated,
    /// It was promoted.
    pub serves: bool,
}

/// The candidate from rows that were cut off.
pub(super) struct Poison {
    pub candidate: Candidate,
    /// Its loss is lower, the judge rejected it, promotion was refused, and the base still serves.
    pub rejected: bool,
}

pub(super) struct Arms<'a, 'b> {
    pub stage: &'b mut Stage<'a>,
    pub sizes: Sizes,
    pub seed: u64,
    pub progress: &'b mut dyn Progress,
    pub note: &'b mut dyn FnMut(&str),
}

impl Arms<'_, '_> {
    /// Trained on answers without an end, and without the old skills: each token is likelier, no answer is right.
    pub fn poison(&mut self, rows: &[Item]) -> Result<Poison> {
        self.say("\n1. A candidate from answers that were cut off before their end");
        let lesson = self.lesson("cut_off", self.sizes.poison_steps);
        let candidate = self.candidate(&Lesson { rows: &task::cut_off(rows), ..lesson }, Side::Base)?;
        let judgement = &candidate.evaluated.judgement;
        let loss_fell = loss(judgement).and_then(|loss| loss.interval).is_some_and(|interval| interval.low > 0.0);
        let rejected = matches!(judgement.verdict, Verdict::Reject(_));
        let refused = self.stage.champion()?.promote_judged(&candidate.version, None, false, &mut |_| ()).is_err();
        let rejected = loss_fell && rejected && refused && self.stage.served()? == Side::Base;
        Ok(Poison { candidate, rejected })
    }

    pub fn good(&mut self, rows: &[Item]) -> Result<Candidate> {
        self.say("\n2. A candidate from whole answers, with the old skills rehearsed");
        let lesson = self.lesson("whole", self.sizes.steps);
        self.candidate(&Lesson { rows, learning_rate: self.sizes.learning_rate, ..lesson }, Side::Base)
    }

    /// `good`, trained on at a rate that changes nothing worth the name. Gives whether that was found out.
    pub fn null(&mut self, good: &Candidate, rows: &[Item]) -> Result<bool> {
        self.say("\n3. The same again, taught next to nothing new");
        let lesson = Lesson { rows, learning_rate: 1e-6, init: Some(&good.adapter), ..self.lesson("nothing_new", 4) };
        let null = self.candidate(&lesson, side(&good.adapter))?;
        let inconclusive = matches!(null.evaluated.judgement.verdict, Verdict::Inconclusive(_));
        Ok(inconclusive && self.stage.served()? == side(&good.adapter))
    }

    /// Somebody promotes the rejected one all the same; judged as it serves, it is rolled back. Gives whether what served before
    /// serves again.
    pub fn forced(&mut self, poison: &Candidate, good: &Candidate, held_out: &[Item]) -> Result<bool> {
        self.say(&format!("\n4. {} is made to serve all the same", poison.version));
        self.stage.champion()?.promote_judged(&poison.version, Some("forced by hand"), true, &mut |_| ())?;
        let served = self.stage.served()?;
        if served != side(&poison.adapter) {
            return Ok(false);
        }
        let found = self.judge(served, side(&good.adapter))?;
        let Verdict::Reject(reasons) = &found.judgement.verdict else { return Ok(false) };
        let why = reasons.first().map(ToString::to_string).unwrap_or_default();
        let moved = self.stage.champion()?.roll_back(None, &why)?;
        self.say(&format!("   rolled back: {} serves again", moved.to.name));
        Ok(moved.to.name == good.version && self.stage.served()? == side(&good.adapter) && self.answers_as(good, held_out)?)
    }

    /// Whether what serves now answers as `candidate` did when it was judged.
    fn answers_as(&self, candidate: &Candidate, held_out: &[Item]) -> Result<bool> {
        let stage = &*self.stage;
        let adapter = match stage.served()? {
            Side::Base => None,
            Side::Adapter(path) => Some(adapter_files::load(&path, &stage.base.decoder.config)?),
        };
        let again = &held_out[..held_out.len().min(ASKED_AGAIN)];
        let answers = exact_match(stage.base, stage.template, adapter.as_ref(), again)?;
        let evaluated = &candidate.evaluated;
        let text = |answer: &Option<Answer>| answer.as_ref().map(|answer| answer.text.clone());
        let judged = |item: &Item| {
            let mut pairs = evaluated.work.pairs().iter();
            let pair = pairs.find(|pair| evaluated.shown.get(pair.item()).is_some_and(|shown| shown.request == item.request))?;
            text(&pair.candidate().answer)
        };
        Ok(again.iter().zip(&answers.texts).all(|(item, now)| judged(item).as_ref() == Some(now)))
    }

    /// Trains, registers, judges; promotes what is better.
    fn candidate(&mut self, lesson: &Lesson, against: Side) -> Result<Candidate> {
        let adapter = self.stage.train(lesson, self.progress, &mut |_| ())?;
        let version = self.stage.register(&adapter)?;
        let evaluated = self.judge(side(&adapter), against)?;
        let serves = evaluated.judgement.verdict == Verdict::Promote;
        if serves {
            self.stage.champion()?.promote_judged(&version, None, false, &mut |_| ())?;
        }
        Ok(Candidate { adapter, version, evaluated, serves })
    }

    fn judge(&mut self, candidate: Side, champion: Side) -> Result<Evaluated> {
        let evaluated = self.stage.judge(candidate, champion, self.seed)?;
        let judgement = &evaluated.judgement;
        let kept = skills(judgement)?;
        let share = |value: f64| format!("{:.0}%", 100.0 * value);
        let row = |what: &str, was: String, is: String| format!("   {what:28} {was:>7} -> {is}");
        let mut lines = Vec::new();
        if let Some(loss) = loss(judgement) {
            lines.push(row("loss on held-out requests", format!("{:.2}", loss.champion), format!("{:.2}", loss.candidate)));
        }
        lines.push(row("answers that are right", share(judgement.primary.champion), share(judgement.primary.candidate)));
        lines.push(row("old skills that are right", share(kept.champion), share(kept.candidate)));
        lines.push(format!("   verdict: {}", judgement.verdict.name()));
        for line in lines {
            self.say(&line);
        }
        Ok(evaluated)
    }

    fn lesson<'l>(&self, name: &'l str, steps: u64) -> Lesson<'l> {
        let Sizes { rank, batch_size, .. } = self.sizes;
        Lesson { name, rows: &[], steps, rank, batch_size, learning_rate: 2e-3, init: None, seed: self.seed }
    }

    fn say(&mut self, text: &str) {
        (self.note)(text);
    }
}

/// What is left of the old skills.
pub(super) fn skills(judgement: &Judgement) -> Result<&Estimate> {
    let suite = judgement.guards.iter().find_map(|guarded| match &guarded.guard {
        Guard::Suite { estimate, .. } => Some(estimate),
        _ => None,
    });
    suite.ok_or_else(|| Error::data("the old skills were not judged", "report this"))
}

fn loss(judgement: &Judgement) -> Option<&Estimate> {
    judgement.others.iter().find(|estimate| estimate.measure == Primary::Loss)
}
