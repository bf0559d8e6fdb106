use super::*;

/// An answer of ours: piece, log-probability with the adapter, without.
fn own(tokens: &[(&str, f64, f64)], ended: bool) -> OwnAnswer {
    let tokens = tokens.iter().map(|(piece, logprob, base)| OwnToken {
        piece: piece.as_bytes().to_vec(),
        logprob: *logprob,
        base_logprob: Some(*base),
        top: vec![
            (Some(piece.as_bytes().to_vec()), *logprob),
            (Some(b"near".to_vec()), logprob - 0.05),
            (Some(b"far".to_vec()), logprob - 2.0),
            (None, logprob - 0.08),
        ],
    });
    let end = ended.then(|| OwnEnd {
        logprob: -0.4,
        top: vec![(None, -0.4), (Some(b"near".to_vec()), -0.45), (Some(b"far".to_vec()), -2.4)],
    });
    OwnAnswer { name: "row 1".to_owned(), prompt: "p".to_owned(), prompt_tokens: 7, tokens: tokens.collect(), end }
}

fn served(tokens: &[(&str, f64)], reason: &str) -> Answer {
    let tokens =
        tokens.iter().map(|(text, logprob)| ServedToken { text: (*text).to_owned(), logprob: *logprob, top: Vec::new() });
    Answer { tokens: tokens.collect(), done_reason: reason.to_owned(), prompt_tokens: Some(7), done: true, ..Answer::default() }
}

fn verdict(own: &OwnAnswer, served: &Answer) -> Verdict {
    judge(&[compare_answer(own, served)], 0.01)
}

const OURS: [(&str, f64, f64); 3] = [("On", -0.5, -1.5), ("ce", -0.1, -0.2), (" upon", -0.2, -0.9)];

#[test]
fn the_same_tokens_with_near_log_probabilities_are_the_same_model() {
    let theirs = served(&[("On", -0.503), ("ce", -0.1), (" upon", -0.199)], "length");
    let compared = compare_answer(&own(&OURS, false), &theirs);
    assert_eq!((compared.same_tokens, &compared.divergence), (3, &None));
    assert!((compared.max_abs_difference - 0.003).abs() < 1e-9);
    assert!((compared.adapter_effect.unwrap() - 1.0).abs() < 1e-9);
    assert!((compared.from_base.unwrap() - 0.997).abs() < 1e-9);
    assert_eq!(verdict(&own(&OURS, false), &theirs), Verdict::Same { ties: 0 });
}

#[test]
fn the_base_served_in_place_of_the_adapter_is_found_out() {
    let theirs = served(&[("On", -1.5), ("ce", -0.2), (" upon", -0.9)], "length");
    let Verdict::Different(why) = verdict(&own(&OURS, false), &theirs) else { panic!() };
    assert!(why.contains("up to 1.0000 apart"), "{why}");
}

#[test]
fn an_adapter_that_changes_nothing_proves_nothing() {
    let ours = own(&[("On", -0.5, -0.501), ("ce", -0.1, -0.1)], false);
    let theirs = served(&[("On", -0.503), ("ce", -0.1)], "length");
    assert!(matches!(verdict(&ours, &theirs), Verdict::CannotTell(_)));
}

#[test]
fn a_parting_is_forgiven_where_two_tokens_are_within_a_tenth_and_nowhere_else() {
    let near = served(&[("On", -0.5), ("near", -0.1), ("x", -0.2)], "length");
    assert_eq!(verdict(&own(&OURS, false), &near), Verdict::Same { ties: 1 });
    let far = served(&[("On", -0.5), ("far", -0.1), ("x", -0.2)], "length");
    let Verdict::Different(why) = verdict(&own(&OURS, false), &far) else { panic!() };
    assert!(why.contains("token 2 is \"far\" where it is served, \"ce\" as trained (2.000 apart"), "{why}");
    let unknown = served(&[("On", -0.5), ("never seen", -0.1)], "length");
    assert!(matches!(verdict(&own(&OURS, false), &unknown), Verdict::Different(_)));
    // The served side knows our token though our side does not know theirs.
    let mut known = unknown.clone();
    known.tokens[1].top = vec![("never seen".to_owned(), -0.1), ("ce".to_owned(), -0.15)];
    assert_eq!(verdict(&own(&OURS, false), &known), Verdict::Same { ties: 1 });
}

#[test]
fn an_end_is_a_token_like_any_other() {
    let whole = [("On", -0.5), ("ce", -0.1), (" upon", -0.2)];
    assert_eq!(verdict(&own(&OURS, true), &served(&whole, "stop")), Verdict::Same { ties: 0 });
    // Ours ended, theirs goes on.
    let longer = served(&[whole[0], whole[1], whole[2], ("x", -0.1)], "length");
    let Verdict::Different(why) = verdict(&own(&OURS, true), &longer) else { panic!() };
    assert!(why.contains("token 4 is \"x\" where it is served, the end as trained"), "{why}");
    // What it goes on with is nearly as probable as our end (.05), or it is not (2).
    let goes_on = |text| served(&[whole[0], whole[1], whole[2], (text, -0.1)], "length");
    assert_eq!(verdict(&own(&OURS, true), &goes_on("near")), Verdict::Same { ties: 1 });
    let Verdict::Different(why) = verdict(&own(&OURS, true), &goes_on("far")) else { panic!() };
    assert!(why.contains("the end as trained (2.000 apart"), "{why}");
    // Theirs ends where ours goes on: near enough by our own alternatives (.08).
    assert_eq!(verdict(&own(&OURS, false), &served(&whole[..2], "stop")), Verdict::Same { ties: 1 });
}

#[test]
fn another_number_of_prompt_tokens_and_a_missing_log_probability_are_no_agreement() {
    let mut theirs = served(&[("On", -0.5), ("ce", -0.1), (" upon", -0.2)], "length");
    theirs.prompt_tokens = Some(8);
    let Verdict::Different(why) = verdict(&own(&OURS, false), &theirs) else { panic!() };
    assert!(why.contains("has 8 tokens"), "{why}");
    let missing = served(&[("On", f64::NAN), ("ce", -0.1), (" upon", -0.2)], "length");
    assert!(matches!(verdict(&own(&OURS, false), &missing), Verdict::Different(_)));
}

#[test]
fn a_piece_of_a_character_is_known_by_its_replacement() {
    assert!(is_same(&[0xe6], "\u{fffd}"));
    assert!(is_same("é".as_bytes(), "é"));
    assert!(!is_same(b"e", "é"));
}
