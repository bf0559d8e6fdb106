//! What a secret looks like, when only a name says that it is one: no word, no template, no sample, and hard to guess.

use std::sync::OnceLock;

/// Shannon entropy of the bytes, in bits a byte.
pub fn entropy(value: &[u8]) -> f64 {
    let mut counts = [0usize; 256];
    for byte in value {
        counts[usize::from(*byte)] += 1;
    }
    let total = value.len().max(1) as f64;
    counts.iter().filter(|n| **n > 0).map(|n| *n as f64 / total).map(|p| -p * p.log2()).sum()
}

/// Whether it reads as words put together (`getUserAccessToken`, `next-page-token-2`): of its pairs of letters, common ones
/// outweigh those that words hardly have. Of random values of 32 characters 1 in 10,000 does, of 16 characters 1 in 150.
pub fn reads_as_words(value: &[u8]) -> bool {
    let letters = value.iter().filter(|b| b.is_ascii_alphabetic()).count();
    let (mut pairs, mut score) = (0, 0.0);
    for pair in value.windows(2).filter(|pair| pair.iter().all(u8::is_ascii_alphabetic)) {
        pairs += 1;
        score += weight(pair);
    }
    letters * 5 >= value.len() * 3 && pairs >= 5 && score >= 0.2 * f64::from(pairs)
}

/// Of two letters: 1 for a common pair, 0 for a fair one.
fn weight(pair: &[u8]) -> f64 {
    static WEIGHTS: OnceLock<[f64; 26 * 26]> = OnceLock::new();
    let place = |pair: &[u8]| {
        let letter = |byte: u8| usize::from(byte.to_ascii_lowercase() - b'a');
        letter(pair[0]) * 26 + letter(pair[1])
    };
    let weights = WEIGHTS.get_or_init(|| {
        let mut weights = [-1.5; 26 * 26];
        COMMON.split_whitespace().for_each(|pair| weights[place(pair.as_bytes())] = 1.0);
        FAIR.split_whitespace().for_each(|pair| weights[place(pair.as_bytes())] = 0.0);
        weights
    });
    weights[place(pair)]
}

/// Something to be filled in, a reference to a variable, or what stands in the place of a secret already.
pub fn is_template(value: &[u8]) -> bool {
    const OPENERS: [&[u8]; 10] = [b"${", b"$(", b"{{", b"#{", b"%(", b"%{", b"{%", b"<%", b"***", b"..."];
    let Some((&first, &last)) = value.first().zip(value.last()) else { return true };
    let variable = matches!(first, b'$' | b'@' | b'%')
        && value[1..].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'%' | b'@' | b':'));
    let bracketed = matches!((first, last), (b'<', b'>') | (b'{', b'}') | (b'[', b']'));
    let one_letter = value.iter().all(|b| b.eq_ignore_ascii_case(&first));
    variable || bracketed || one_letter || OPENERS.iter().any(|opener| contains(value, opener))
}

/// A sample that documentation uses, or a run through the alphabet.
pub fn is_sample(value: &[u8]) -> bool {
    const WORDS: [&str; 17] = [
        "example",
        "placeholder",
        "changeme",
        "change_me",
        "change-me",
        "your_",
        "your-",
        "yourpass",
        "yourtoken",
        "yourkey",
        "insert",
        "dummy",
        "redacted",
        "replace",
        "xxxx",
        "0123456789",
        "abcdefgh",
    ];
    let lower = value.to_ascii_lowercase();
    let steps = lower.windows(2).filter(|pair| pair[1] == pair[0].wrapping_add(1)).count();
    steps * 2 >= lower.len() || WORDS.iter().any(|word| contains(&lower, word.as_bytes()))
}

/// Behind a name that tells of a token or a key: long and random.
pub fn is_random_token(value: &[u8]) -> bool {
    let hex = value.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-');
    let digits = value.iter().filter(|b| b.is_ascii_digit()).count();
    // Of 24 random letters, large and small, one in 60 values has no digit.
    let mixed = value.len() >= 24 && value.iter().any(u8::is_ascii_lowercase) && value.iter().any(u8::is_ascii_uppercase);
    value.len() >= 16
        && value.iter().all(u8::is_ascii_graphic)
        && (digits >= 1 || mixed)
        && digits < value.len()
        && entropy(value) >= if hex { 2.8 } else { 3.2 }
        && is_no_text(value)
}

/// Behind a name that tells of a password: eight characters of two kinds or more, one of them no letter.
pub fn is_strong_password(value: &[u8]) -> bool {
    let kind = |b: &u8| match b {
        b'a'..=b'z' => 1,
        b'A'..=b'Z' => 2,
        b'0'..=b'9' => 4,
        b'_' | b'-' | b'.' | b'/' => 0,
        _ => 8,
    };
    let kinds = value.iter().fold(0u32, |all, b| all | kind(b));
    value.len() >= 8
        && value.iter().all(|b| b.is_ascii_graphic() || !b.is_ascii())
        && kinds & 12 != 0
        && kinds & 3 != 0
        && entropy(value) >= 2.5
        && is_no_text(value)
}

fn is_no_text(value: &[u8]) -> bool {
    !is_template(value) && !is_sample(value) && !reads_as_words(value) && !contains(value, b"://") && !is_well_known(value)
}

/// `password123`, `Secret1!`, `admin2024`: named after itself, hides nothing.
fn is_well_known(value: &[u8]) -> bool {
    let lower = value.to_ascii_lowercase();
    let letters: Vec<u8> = lower.iter().copied().take_while(u8::is_ascii_alphabetic).collect();
    let rest = &lower[letters.len()..];
    let word = matches!(
        letters.as_slice(),
        b"password"
            | b"passwd"
            | b"passphrase"
            | b"secret"
            | b"token"
            | b"admin"
            | b"test"
            | b"testing"
            | b"user"
            | b"apikey"
            | b"pass"
    );
    word && rest.len() <= 5
}

pub fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The 100 pairs of letters that English and names in code have most (measured on rows of instructions and on Rust sources).
const COMMON: &str = " ac ad ag al am an ar as at be ca ce ch co ct da de di ea ec ed ee el em en er es et ex fi fo ge ha he hi ho ic id ie \
    il im in io is it ke la le li ll lo ma me na nc nd ne ng ns nt of ol om on op or ot ou ow pa pe pl po pr ra re ri ro \
    rs rt se sh si so ss st ta te th ti to tr ts ty un ur us ut ve wi ";
/// The next 140.
const FAIR: &str = " ab ai ak ap au av ay ba bi bl bo br bu by cc ci ck cl cr cu dd do dr ds eb ef eg ei eo ep ev ew ey fa fe ff fl fr ft \
    fu ga gd gh gi go gr gs gu hr ht ia ib if ig ip ir iv iz ki ks ld lp ls lt lu ly mb mi mm mo mp ms mu nf ni nn no nu \
    ny ob oc od og oi ok oo os ov ph pi pp ps pt pu qu rc rd rg rk rl rm rn rr ru ry sa sc sk sm sp su sw tc tl tm tp tt \
    tu tw ua ub uc ue ug ui ul um up va vi wa we wh wo xt ye yo yp ys ze ";
