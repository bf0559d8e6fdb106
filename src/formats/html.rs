//! Pages of ours: one file that needs nothing else, light and dark, readable on a phone.

/// The look that all pages share.
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1rem;margin:1.6rem 0 .2rem}table{border-collapse:collapse}th{text-align:left;font-weight:500;color:#666;padding-right:1.5rem}\
td,th{padding-block:.1rem;vertical-align:top}svg{width:100%;height:auto}.small{color:#888;font-size:12px;overflow-wrap:anywhere}\
@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}th,.small{color:#999}}";

/// A whole page. `title` is text and is escaped here; `style` and `body` are ours and stand as they are. Nothing is fetched, and no script runs.
pub fn page(title: &str, style: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>retune: {}</title><style>{STYLE}{style}</style>{body}</html>\n",
        escape(title)
    )
}

/// Text as it stands in HTML, in an element or in an attribute's quotes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_markup_comes_from_text() {
        assert_eq!(escape("<a href=\"x\" b='y'>&amp;"), "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp;amp;");
        let page = page("</title><script>", "", "<p>");
        assert!(!page.contains("<script") && page.contains("<p></html>"), "{page}");
    }
}
