//! `retune render`: what a model is trained on, row by row.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use serde_json::json;

use super::args::{BaseArgs, MethodArg};
use super::print_json;
use crate::error::Result;
use crate::formats::rows;
use crate::text::render::{Rendered, Renderer};

/// Show rows as the model will see them, and which of it is trained.
///
/// On a terminal what is trained is green; elsewhere it stands between ⟦ and ⟧.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    base: BaseArgs,
    /// The rows: alpaca, prompt/completion, messages or sharegpt, as JSON lines or a JSON array
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Show them as this method learns from them: of a pair, the chosen answer and then the rejected one
    #[arg(long, value_enum, default_value = "sft")]
    method: MethodArg,
    /// Show the first rows only
    #[arg(long, value_name = "ROWS")]
    limit: Option<usize>,
    /// A line of JSON a row: row, text, ids, and trained as 0 or 1 for each id; for preferences also good, whether the answer
    /// is wanted
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let base = args.base.open(args.json)?;
    let template = args.base.template(&base)?;
    let renderer = Renderer { tokenizer: &base.tokenizer, template: &template, system: args.base.system_text()? };
    let rows = rows::read_as(&args.data, args.method.wanted())?;
    let judged = args.method != MethodArg::Sft;
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A row may hold two answers.
    let (mut shown, mut last) = (0, None);
    for (example, good) in rows.examples.iter().zip(&rows.good) {
        shown += usize::from(last.replace(example.row) != Some(example.row));
        if shown > args.limit.unwrap_or(usize::MAX) {
            break;
        }
        let rendered = renderer.render(example)?;
        if args.json {
            let trained: Vec<u8> = rendered.tokens.trained.iter().map(|&trained| trained.into()).collect();
            let mut line = json!({"row": example.row, "text": rendered.text, "ids": rendered.tokens.ids, "trained": trained});
            if judged {
                line["good"] = json!(good);
            }
            print_json(&line)?;
        } else {
            let (tokens, trained) = (rendered.tokens.ids.len(), rendered.tokens.trained_tokens());
            let kind = if !judged {
                ""
            } else if *good {
                " (good)"
            } else {
                " (bad)"
            };
            say!("row {}{kind}: {tokens} tokens, {trained} of them trained\n{}\n", example.row, marked(&rendered, colour))?;
        }
    }
    Ok(())
}

/// The text with what is trained marked in it.
pub(super) fn marked(rendered: &Rendered, colour: bool) -> String {
    let (open, close) = if colour { ("\x1b[32m", "\x1b[0m") } else { ("⟦", "⟧") };
    let mut out = String::new();
    let mut position = 0;
    for span in rendered.trained_spans() {
        // A token may hold part of a character: the mark goes behind the whole of it.
        let (start, end) = (rendered.text.ceil_char_boundary(span.start), rendered.text.ceil_char_boundary(span.end));
        out.push_str(&visible(&rendered.text[position..start]));
        out.push_str(open);
        out.push_str(&visible(&rendered.text[start..end]));
        out.push_str(close);
        position = end;
    }
    out.push_str(&visible(&rendered.text[position..]));
    out
}

/// Control characters of a row are shown, not sent to the terminal.
fn visible(text: &str) -> String {
    let show = |c: char| if c.is_control() && c != '\n' && c != '\t' { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Tokens;

    #[test]
    fn what_is_trained_is_marked_and_control_characters_are_shown() {
        let rendered = Rendered {
            text: "a\x1b é b".to_owned(),
            tokens: Tokens { ids: vec![1, 2, 3, 4, 5], trained: vec![false, true, true, false, true] },
            // The third token is the first byte of é, the fourth its second and the space.
            ranges: vec![0..2, 2..3, 3..4, 4..6, 6..7],
        };
        assert_eq!(marked(&rendered, false), "a\\u{1b}⟦ é⟧ ⟦b⟧");
        assert_eq!(marked(&rendered, true), "a\\u{1b}\x1b[32m é\x1b[0m \x1b[32mb\x1b[0m");
    }
}
