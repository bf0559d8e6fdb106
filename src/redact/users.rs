//! Home folders, and the names in them. A name that was seen in a home folder is then found as a word of its own, too.

use std::collections::BTreeSet;
use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::pattern::{Pattern, failed};
use super::{Hit, Kind};
use crate::error::Result;

static UNIX: Pattern = Pattern::new(r"/(?:home|Users)/([A-Za-z0-9_\x80-\xff][A-Za-z0-9._\x80-\xff-]{0,63})");
static WINDOWS: Pattern = Pattern::new(
    r#"(?i)\b[a-z]:(?:\\{1,4}|/)(?:users|documents and settings)(?:\\{1,4}|/)(?:([^\\/:*?"<>|\r\n\t]{1,64})[\\/]|([A-Za-z0-9_\x80-\xff][A-Za-z0-9._\x80-\xff-]{0,63}))"#,
);

/// Accounts that are nobody's, and what documentation writes in a name's place.
const NOBODY: &str = " root user users username user_name user-name your_username yourusername yourname your_name your-username youruser \
    your_user your-user name me you someone somebody foo bar baz test tester testuser test_user demo example default guest public shared \
    all admin administrator ubuntu debian centos fedora ec2-user azureuser vagrant runner runneradmin git github gitlab gitlab-runner jenkins \
    circleci travis build builder buildbot ci app appuser node deno python ruby rust docker podman container codespace vscode coder jovyan \
    kaggle colab sandbox work worker workspace developer dev deploy deployer nobody www www-data nginx apache http httpd postgres mysql mongo \
    redis hadoop spark airflow oracle tomcat git-user linuxbrew homebrew pi steam server service system local src lib bin etc tmp data project \
    projects code repo home desktop documents downloads ";
/// What follows /home/ on the web rather than on a disk.
const PAGES: &str = " about index index.html index.js index.php dashboard page main contact login logout search news settings profile help \
    welcome overview feed blog products cart shop api static assets images img css js view views list details stats ";
/// Names that are words as well: found in home folders only.
const WORDS: &str = " mark will bill rose grace hope faith joy art rich frank jack drew dean chase hunter mason carter cooper parker taylor \
    page miles sky summer april june august autumn dawn crystal amber ruby pearl ivy lily daisy violet iris olive rusty sandy penny \
    dusty guy ray pat rob sue gene herb skip chip chuck nick josh max ian don ron dan tom tim jim sam ben ken len lee kim jan ann \
    eve ada lang long short young king bishop price chance case grant trace wade cliff glen heath dale ford reed lane heather holly \
    angel star storm rain river stone wood baker cook smith brown black white green gray grey gold silver model token query value \
    string table input output error debug trace class state start final first last many most some that this with from have ";

fn is_in(list: &str, name: &[u8]) -> bool {
    let lower = String::from_utf8_lossy(name).to_lowercase();
    !lower.contains(' ') && list.contains(&format!(" {lower} "))
}

/// Whether an account may be a person's.
pub fn is_personal(name: &[u8]) -> bool {
    name.iter().any(u8::is_ascii_alphanumeric)
        && !name.iter().all(u8::is_ascii_digit)
        && !is_in(NOBODY, name)
        && !super::shape::is_template(name)
}

/// The names of home folders in a text.
pub fn home_folders(text: &[u8]) -> Result<Vec<Range<usize>>> {
    let mut found = Vec::new();
    for captures in UNIX.get()?.captures_iter(text) {
        let (Some(whole), Some(name)) = (captures.get(0), captures.get(1)) else { continue };
        let range = trimmed(text, name.range());
        let has_more = matches!(text.get(range.end), Some(b'/' | b'\\'));
        let page = whole.as_bytes().starts_with(b"/home") && !has_more && is_in(PAGES, &text[range.clone()]);
        if begins_a_path(&text[..whole.start()]) && !page && is_personal(&text[range.clone()]) {
            found.push(range);
        }
    }
    for captures in WINDOWS.get()?.captures_iter(text) {
        let Some(name) = captures.get(1).or_else(|| captures.get(2)) else { continue };
        let range = trimmed(text, name.range());
        if is_personal(&text[range.clone()]) {
            found.push(range);
        }
    }
    Ok(found)
}

/// A full stop at the end is the sentence's.
fn trimmed(text: &[u8], mut range: Range<usize>) -> Range<usize> {
    while range.end > range.start + 1 && matches!(text[range.end - 1], b'.' | b'-' | b' ') {
        range.end -= 1;
    }
    range
}

/// Whether a path can begin behind this text: `https://host/home/x` and `src/home/x` are none.
fn begins_a_path(before: &[u8]) -> bool {
    const MOUNTS: [&[u8]; 6] = [b"/export", b"/var", b"/usr", b"/private", b"/System/Volumes/Data", b"file://"];
    if let Some(rest) = MOUNTS.iter().find_map(|mount| before.strip_suffix(*mount)) {
        return !rest.last().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    }
    // /mnt/c/Users, /c/Users
    if let [rest @ .., b'/', drive] = before
        && drive.is_ascii_alphabetic()
    {
        let rest = rest.strip_suffix(b"/mnt").unwrap_or(rest);
        return !rest.last().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/'));
    }
    !before
        .last()
        .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b'~' | b'}' | b')' | b'%'))
}

/// The names that a pair has shown in its home folders, to be found as words.
#[derive(Default)]
pub struct Names {
    known: BTreeSet<String>,
    /// Of the known ones those that are looked for; built again when one is added.
    search: Option<AhoCorasick>,
}

impl Names {
    pub fn learn(&mut self, text: &[u8]) -> Result<()> {
        let mut new = false;
        for range in home_folders(text)? {
            let name = String::from_utf8_lossy(&text[range]).to_lowercase();
            if is_distinctive(&name) {
                new |= self.known.insert(name);
            }
        }
        if new {
            let automaton =
                AhoCorasick::builder().ascii_case_insensitive(true).match_kind(MatchKind::LeftmostLongest).build(&self.known);
            self.search = Some(automaton.map_err(|error| failed(&format!("the names of home folders: {error}")))?);
        }
        Ok(())
    }

    pub fn find(&self, text: &[u8], hits: &mut Vec<Hit>) {
        let Some(search) = &self.search else { return };
        let is_word = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        for found in search.find_iter(text) {
            let before = found.start().checked_sub(1).and_then(|i| text.get(i));
            if !is_word(before) && !is_word(text.get(found.end())) {
                hits.push(Hit::new(found.range(), Kind::User, "user-name"));
            }
        }
    }
}

fn is_distinctive(name: &str) -> bool {
    name.chars().count() >= 4 && !is_in(WORDS, name.as_bytes()) && !is_in(PAGES, name.as_bytes())
}
