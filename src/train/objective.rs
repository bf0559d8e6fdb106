//! The losses of preferences as functions of log-probabilities, each with its slopes. The reference implementation is TRL's.
//!
//! A ratio is `log p(answer) - log p(answer) of the reference`, the log-probabilities summed over the answer's tokens.

/// The loss of a pair, and its derivatives by the two values that it was made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    pub loss: f64,
    pub chosen_slope: f64,
    pub rejected_slope: f64,
}

/// DPO (Rafailov et al., 2023, eq. 7) of the ratios of a pair's answers, with conservative labels (Mitchell, 2023):
/// `-(1 - e) log s(beta margin) - e log s(-beta margin)`, s the logistic function.
pub fn dpo(chosen: f64, rejected: f64, beta: f64, label_smoothing: f64) -> PairLoss {
    let z = beta * (chosen - rejected);
    let loss = -(1.0 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z);
    let slope = beta * (label_smoothing * sigmoid(z) - (1.0 - label_smoothing) * sigmoid(-z));
    PairLoss { loss, chosen_slope: slope, rejected_slope: -slope }
}

/// The preference part of ORPO (Hong et al., 2024, eq. 7) of the mean log-probabilities of a pair's answers:
/// `-beta log s(log odds(chosen) - log odds(rejected))` with `odds = p / (1 - p)`.
pub fn odds_ratio(chosen: f64, rejected: f64, beta: f64) -> PairLoss {
    // A probability that rounds to 1 has infinite odds: one rounding error of f32 below is all that a loss can tell.
    let (chosen, rejected) = (chosen.min(-f64::from(f32::EPSILON)), rejected.min(-f64::from(f32::EPSILON)));
    // log(1 - p) = log(-expm1(log p)), and d log odds / d log p = 1 / (1 - p).
    let log_odds = |log_p: f64| log_p - (-log_p.exp_m1()).ln();
    let z = log_odds(chosen) - log_odds(rejected);
    let slope = -beta * sigmoid(-z);
    PairLoss { loss: -beta * log_sigmoid(z), chosen_slope: slope / -chosen.exp_m1(), rejected_slope: -slope / -rejected.exp_m1() }
}

/// KTO (Ethayarajh et al., 2024, eq. 8) of the ratio of one answer: `1 - s(beta (ratio - kl))` for a good one,
/// `1 - s(beta (kl - ratio))` for a bad one. Gives the loss and its derivative by the ratio; `kl` is a constant.
pub fn kto(ratio: f64, kl: f64, good: bool, beta: f64) -> (f64, f64) {
    let side = if good { 1.0 } else { -1.0 };
    let value = sigmoid(side * beta * (ratio - kl));
    (1.0 - value, -side * beta * value * (1.0 - value))
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

fn log_sigmoid(z: f64) -> f64 {
    z.min(0.0) - (-z.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slope of `f` at `x` by differences.
    fn slope(f: impl Fn(f64) -> f64, x: f64) -> f64 {
        let h = 1e-5 * x.abs().max(1e-3);
        (f(x + h) - f(x - h)) / (2.0 * h)
    }

    fn assert_near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-6 * expected.abs() + 1e-9, "{found} against {expected}");
    }

    #[test]
    fn slopes_are_those_of_the_losses() {
        for (c, r) in [(-3.0, -7.5), (2.0, -1.0), (-0.4, -0.1), (-40.0, -2.0)] {
            for e in [0.0, 0.2] {
                let found = dpo(c, r, 0.3, e);
                assert_near(found.chosen_slope, slope(|c| dpo(c, r, 0.3, e).loss, c));
                assert_near(found.rejected_slope, slope(|r| dpo(c, r, 0.3, e).loss, r));
            }
            for (good, kl) in [(true, 0.0), (false, 1.5)] {
                assert_near(kto(c, kl, good, 0.3).1, slope(|c| kto(c, kl, good, 0.3).0, c));
            }
        }
        for (c, r) in [(-3.0, -7.5), (-0.01, -1.0), (-2.0, -0.001)] {
            let found = odds_ratio(c, r, 0.3);
            assert_near(found.chosen_slope, slope(|c| odds_ratio(c, r, 0.3).loss, c));
            assert_near(found.rejected_slope, slope(|r| odds_ratio(c, r, 0.3).loss, r));
        }
    }

    #[test]
    fn an_untouched_model_has_the_loss_of_a_coin() {
        assert_near(dpo(0.0, 0.0, 0.1, 0.0).loss, 2f64.ln());
        assert_near(kto(0.0, 0.0, true, 0.1).0, 0.5);
        assert_near(kto(0.0, 0.0, false, 0.1).0, 0.5);
    }

    #[test]
    fn extreme_log_probabilities_give_finite_numbers() {
        for (c, r) in [(0.0, -1e4), (-1e4, 0.0), (0.0, 0.0), (-1e4, -1e4)] {
            for found in [dpo(c, r, 5.0, 0.1), odds_ratio(c, r, 5.0)] {
                assert!(
                    [found.loss, found.chosen_slope, found.rejected_slope].iter().all(|v| v.is_finite()),
                    "{c} {r}: {found:?}"
                );
            }
            assert!(kto(c, r, true, 5.0).0.is_finite() && kto(c, r, true, 5.0).1.is_finite());
        }
    }
}
