//! Rows brought to a length.

use crate::domain::Tokens;
use crate::error::{Error, Result};

/// What to do with rows longer than the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Long {
    /// Cut at the end, counted and told.
    #[default]
    Cut,
    Drop,
    Error,
}

/// Counts of what `fit` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fitted {
    pub cut: usize,
    pub dropped: usize,
    /// Rows left out because nothing to train was left in them.
    pub without_target: usize,
}

/// Brings rows to at most `max_length` tokens. Rows with nothing left to train are left out and counted (a row that was cut
/// and then left out counts as both); if none is left at all, that is an error that says what to change. The second value
/// of each pair is the index in `rows`.
pub fn fit(rows: Vec<Tokens>, max_length: usize, long: Long) -> Result<(Vec<(Tokens, usize)>, Fitted)> {
    let total = rows.len();
    let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    let mut fitted = Fitted::default();
    let mut kept = Vec::with_capacity(total);
    for (index, mut row) in rows.into_iter().enumerate() {
        let length = row.ids.len();
        if length > max_length {
            match long {
                Long::Cut => {
                    row.ids.truncate(max_length);
                    row.trained.truncate(max_length);
                    fitted.cut += 1;
                }
                Long::Drop => {
                    fitted.dropped += 1;
                    continue;
                }
                Long::Error => {
                    return Err(Error::data(
                        format!(
                            "row {} of the rendered rows has {length} tokens, more than --max-length {max_length}",
                            index + 1
                        ),
                        format!(
                            "raise --max-length to {longest} (the longest row), shorten the row, or let --long cut|drop decide"
                        ),
                    ));
                }
            }
        }
        if row.trained_tokens() == 0 {
            fitted.without_target += 1;
        } else {
            kept.push((row, index));
        }
    }
    if kept.is_empty() {
        return Err(nothing_left(total, longest, max_length, fitted));
    }
    Ok((kept, fitted))
}

fn nothing_left(total: usize, longest: usize, max_length: usize, fitted: Fitted) -> Error {
    if total == 0 {
        return Error::data("there are no rows to train on", "check the data file: it is empty or holds only unusable rows");
    }
    let Fitted { cut, dropped, without_target } = fitted;
    let counts = format!(
        "nothing is left to train in any of the {total} rows: {dropped} dropped as too long, {without_target} without an \
         answer to train on ({cut} of the rows were cut at --max-length {max_length}; the longest has {longest} tokens)"
    );
    let hint = if cut + dropped > 0 {
        format!("raise --max-length: {longest} keeps every row whole")
    } else {
        "check that the rows have assistant turns: `retune render` shows what is trained".to_owned()
    };
    Error::data(counts, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of `len` tokens of which the last `trained` are trained.
    fn row(len: usize, trained: usize) -> Tokens {
        Tokens { ids: (0..len as u32).collect(), trained: (0..len).map(|i| i >= len - trained).collect() }
    }

    #[test]
    fn long_rows_are_cut_at_the_end_and_rows_without_a_target_left_out() {
        let rows = vec![row(4, 2), row(9, 6), row(9, 3), row(3, 0), row(6, 1)];
        let (kept, fitted) = fit(rows, 6, Long::Cut).unwrap();
        assert_eq!(fitted, Fitted { cut: 2, dropped: 0, without_target: 2 });
        assert_eq!(kept.iter().map(|(_, index)| *index).collect::<Vec<_>>(), [0, 1, 4]);
        assert_eq!(kept[1].0.ids, [0, 1, 2, 3, 4, 5]);
        assert_eq!(kept[1].0.trained, [false, false, false, true, true, true]);
    }

    #[test]
    fn long_rows_are_dropped_or_refused_where_asked() {
        let (kept, fitted) = fit(vec![row(4, 2), row(9, 6)], 6, Long::Drop).unwrap();
        assert_eq!((kept.len(), fitted), (1, Fitted { cut: 0, dropped: 1, without_target: 0 }));
        let error = fit(vec![row(4, 2), row(9, 6)], 6, Long::Error).unwrap_err();
        assert!(error.to_string().contains("row 2 of the rendered rows has 9 tokens"), "{error}");
        assert!(error.hint().unwrap().contains("--max-length to 9"));
    }

    #[test]
    fn the_first_token_is_no_target() {
        let only_first = Tokens { ids: vec![1, 2], trained: vec![true, false] };
        assert!(fit(vec![only_first], 8, Long::Cut).is_err());
    }

    #[test]
    fn nothing_left_at_all_says_what_to_change() {
        let error = fit(vec![row(9, 3)], 6, Long::Cut).unwrap_err();
        assert_eq!(error.hint().unwrap(), "raise --max-length: 9 keeps every row whole");
        assert!(fit(vec![row(3, 0)], 6, Long::Cut).unwrap_err().hint().unwrap().contains("assistant turns"));
        assert!(fit(vec![], 6, Long::Cut).unwrap_err().to_string().contains("no rows"));
    }
}
