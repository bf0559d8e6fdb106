//! Answers of a model that broke: nothing, or one piece again and again.

/// A loop is at least so many characters, ...
const LOOP_CHARS: usize = 64;
/// ... and at least so many times its piece, ...
const LOOP_TIMES: usize = 5;
/// ... which has at most so many characters.
const PIECE_CHARS: usize = 200;

/// Whether an answer is empty (white space aside) or ends in a loop.
pub fn is_collapsed(text: &str) -> bool {
    text.trim().is_empty() || is_looping(text)
}

/// Whether the end of a text is one piece five times or more, 64 characters or more in all; the last time may be cut off.
pub fn is_looping(text: &str) -> bool {
    // A text that has looped for longer loops in its last part, too.
    let tail: Vec<char> = text.trim_end().chars().rev().take((LOOP_TIMES + 1) * PIECE_CHARS).collect();
    (1..=PIECE_CHARS.min(tail.len())).any(|piece| {
        let again = tail.iter().zip(&tail[piece..]).take_while(|(a, b)| a == b).count();
        again + piece >= LOOP_CHARS.max(LOOP_TIMES * piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_seen_and_work_is_not() {
        let long = "a piece of some length that differs from itself, 1, 2, 3; ";
        for looping in [
            "a".repeat(64),
            format!("The answer is {}", "no, yes, ".repeat(10)),
            format!("{}{}", long.repeat(5), &long[..20]),
            format!("ends in white space {}\n\n", "\nfoo();".repeat(12)),
            "\u{1f980}!".repeat(40),
        ] {
            assert!(is_looping(&looping), "{looping}");
        }
        for fine in [
            "a".repeat(63),
            format!("{}{}", long.repeat(4), &long[..20]),
            "no, yes, no, yes, no.".to_owned(),
            (1..40).map(|n| format!("row {n}\n")).collect(),
            format!("{}, and that is all", "a".repeat(100)),
            String::new(),
        ] {
            assert!(!is_looping(&fine), "{fine}");
        }
        assert!(is_collapsed(" \n\t") && is_collapsed("") && !is_collapsed("0"));
    }
}
