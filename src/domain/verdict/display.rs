//! How verdicts, reasons, guards and estimates read.

use std::fmt;

use super::{Estimate, Guard, Guarded, Interval, Primary, Reason, Standing};

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worse { measure, interval } => {
                write!(f, "it is worse than the champion, by {}", lost(*measure, interval))
            }
            Self::Guard(guarded) => guarded.fmt(f),
            Self::NothingDiffers { measure: Primary::Loss, items } => {
                write!(f, "the losses of all {items} items are the champion's")
            }
            Self::NothingDiffers { measure: Primary::Judged, items } => {
                write!(f, "the judge prefers neither side's answer on any of the {items} items")
            }
            Self::NothingDiffers { items, .. } => {
                write!(f, "on each of the {items} items it is right or wrong as the champion is")
            }
            Self::SpansZero { measure, interval, smallest_effect } => {
                write!(
                    f,
                    "the true difference may be anything from {} to {}",
                    measure.signed(interval.low),
                    measure.with_unit(interval.high)
                )?;
                match smallest_effect {
                    Some(effect) => write!(
                        f,
                        ": so many items show a difference of {} or more in 8 of 10 evaluations",
                        measure.with_unit(*effect).trim_start_matches('+')
                    ),
                    None => Ok(()),
                }
            }
            Self::TextSaysWorse { interval } => {
                let by = lost(Primary::Exact, interval);
                write!(f, "the judge prefers its answers, but it gives the expected text more rarely, by {by}")
            }
            Self::TooFewItems { items, min_items } => {
                write!(
                    f,
                    "{items} items are too few to promote on; gather {} more ({min_items} are the least)",
                    min_items - items
                )
            }
            Self::TooFewGroups { effective_groups, min_groups } => write!(
                f,
                "the items are of too few groups of tasks to tell chance from change: they say as much as {effective_groups:.1} equal groups, {min_groups} are the least"
            ),
            Self::Skewed { skewness, groups } => write!(
                f,
                "a few of the {groups} groups of tasks {} far more than the others (skewness {skewness:+.1}), and more such may not have been seen; gather more items",
                if *skewness < 0.0 { "lose" } else { "gain" }
            ),
            Self::TooFewDiffer { groups_that_differ, needed } => write!(
                f,
                "the sides differ in {groups_that_differ} {} of tasks only; even if all went one way, {needed} are needed to rule out chance",
                if *groups_that_differ == 1 { "group" } else { "groups" }
            ),
        }
    }
}

/// `2.0 to 14.0 points`, from the near end to the far one.
fn lost(measure: Primary, interval: &Interval) -> String {
    let bare = |value: f64| measure.signed(-value).trim_start_matches('+').to_owned();
    format!("{} to {} {}", bare(interval.high), bare(interval.low), measure.unit())
}

impl fmt::Display for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)?;
        match (&self.guard, self.standing) {
            (_, Standing::Held) => Ok(()),
            (_, Standing::InDoubt) => f.write_str("; too much to pass over, too little to be sure"),
            (Guard::Suite { estimate, tolerance, limit, .. }, Standing::Fell) => {
                let bare = |share: f64| estimate.measure.with_unit(share).trim_start_matches('+').to_owned();
                write!(f, "; a sure fall of {} or a measured one of {} is too much", bare(*tolerance), bare(*limit))
            }
            (Guard::Collapse { limit, .. }, Standing::Fell) => write!(f, "; {:.0} points more are too many", 100.0 * limit),
            (Guard::Speed { least, .. }, Standing::Fell) => write!(f, "; at least {:.0}% are wanted", 100.0 * least),
            (Guard::Memory { most, .. }, Standing::Fell) => write!(f, "; at most {:.0}% are wanted", 100.0 * most),
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = (1 << 20) as f64;
        match self {
            Self::Suite { name, estimate, .. } => write!(f, "{name}: {estimate}"),
            Self::Speed { candidate, champion, .. } => write!(
                f,
                "speed: {candidate:.1} tokens/s where the champion has {champion:.1} ({:.0}%)",
                100.0 * candidate / champion
            ),
            Self::Memory { candidate, champion, .. } => write!(
                f,
                "memory: {:.0} MiB where the champion has {:.0} ({:.0}%)",
                *candidate as f64 / MIB,
                *champion as f64 / MIB,
                100.0 * *candidate as f64 / *champion as f64
            ),
            Self::Collapse { estimate, .. } => {
                let count = |share: f64| ((1.0 - share) * estimate.items as f64).round();
                write!(
                    f,
                    "empty or looping answers: {} of {} where the champion has {}",
                    count(estimate.candidate),
                    estimate.items,
                    count(estimate.champion)
                )
            }
        }
    }
}

impl fmt::Display for Estimate {
    /// `61 of 100 right where the champion has 40: +21.0 points (95% interval +10.2 to +31.5)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items = self.items as f64;
        match self.measure {
            Primary::Loss => write!(f, "loss {:.3} where the champion has {:.3}", self.candidate, self.champion)?,
            Primary::Judged => write!(
                f,
                "{:.0} of {} answers preferred by the judge, of the champion's {:.0}",
                self.candidate * items,
                self.items,
                self.champion * items
            )?,
            _ => write!(
                f,
                "{:.0} of {} right where the champion has {:.0}",
                self.candidate * items,
                self.items,
                self.champion * items
            )?,
        }
        let gain = if self.measure == Primary::Loss { "gain " } else { "" };
        write!(f, ": {gain}{}", self.measure.with_unit(self.point))?;
        match &self.interval {
            Some(interval) => write!(
                f,
                " ({}% interval {} to {})",
                (1000.0 * interval.confidence).round() / 10.0,
                self.measure.signed(interval.low),
                self.measure.signed(interval.high)
            ),
            None => write!(f, " (no interval from {} group{})", self.groups, if self.groups == 1 { "" } else { "s" }),
        }
    }
}
