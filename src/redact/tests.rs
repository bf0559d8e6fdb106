use proptest::prelude::*;
use serde_json::json;

use super::*;

fn redactor() -> Redactor {
    Redactor::new(&[]).unwrap()
}

/// The text behind redaction by a fresh pair.
fn redacted(text: &str) -> String {
    redactor().pair().redact(text).unwrap().text
}

/// Each text of a list becomes the one beside it.
#[track_caller]
fn becomes(cases: &[(&str, &str)]) {
    let wrong: Vec<_> =
        cases.iter().map(|(text, wanted)| (*text, *wanted, redacted(text))).filter(|(_, wanted, got)| wanted != got).collect();
    assert!(wrong.is_empty(), "text, wanted, got: {wrong:#?}");
}

/// No text of a list changes.
#[track_caller]
fn stays(texts: &[&str]) {
    let wrong: Vec<_> = texts.iter().map(|text| (*text, redacted(text))).filter(|(text, got)| text != got).collect();
    assert!(wrong.is_empty(), "text, got: {wrong:#?}");
}

#[test]
fn one_value_is_one_placeholder_in_all_texts_of_a_pair() {
    let redactor = redactor();
    let mut pair = redactor.pair();
    let first = pair.redact("From bob@corp.com to eve@corp.com").unwrap();
    let second = pair.redact("eve@corp.com answers, BOB@corp.com and 10.1.2.3 read").unwrap();
    assert_eq!(first.text, "From <EMAIL_1> to <EMAIL_2>");
    assert_eq!(second.text, "<EMAIL_2> answers, <EMAIL_1> and <IP_1> read");
    // Another pair begins anew.
    assert_eq!(redactor.pair().redact("eve@corp.com").unwrap().text, "<EMAIL_1>");
}

#[test]
fn what_was_found_is_told_without_saying_it() {
    let text = "Grüße an bob@corp.com, +49 30 123456";
    let Redacted { found, .. } = redactor().pair().redact(text).unwrap();
    let told: Vec<_> = found.iter().map(|f| (f.kind, f.rule.as_str(), f.placeholder.as_str(), &text[f.start..f.end])).collect();
    let wanted =
        [(Kind::Email, "email", "<EMAIL_1>", "bob@corp.com"), (Kind::Phone, "phone-abroad", "<PHONE_1>", "+49 30 123456")];
    assert_eq!(told, wanted);
    let debug = format!("{found:?} {}", serde_json::to_string(&found).unwrap());
    assert!(!debug.contains("bob") && !debug.contains("123456"), "{debug}");
}

#[test]
fn a_home_folder_keeps_its_shape_and_its_name_is_found_elsewhere() {
    becomes(&[
        ("cd /home/janedoe/src", "cd /home/<USER_1>/src"),
        ("/Users/janedoe", "/Users/<USER_1>"),
        (r"C:\Users\Jane Doe\Documents", r"C:\Users\<USER_1>\Documents"),
        (r#""C:\\Users\\janedoe\\x""#, r#""C:\\Users\\<USER_1>\\x""#),
        ("/mnt/c/Users/janedoe/x and file:///home/janedoe/y", "/mnt/c/Users/<USER_1>/x and file:///home/<USER_1>/y"),
        ("Janedoe ran it in /home/janedoe; janedoe_2 did not", "<USER_1> ran it in /home/<USER_1>; janedoe_2 did not"),
        // A name that is a word is found in its folder only.
        ("/home/mark/x; mark the date", "/home/<USER_1>/x; mark the date"),
    ]);
    stays(&[
        "/home/user/x /home/runner/work /Users/username /home/ubuntu /home/$USER/x /home/{name}/x /Users/<name>/x",
        "https://site.org/home/about src/home/index.js app.get('/home/about') ./home/janedoe",
        "GET /api/Users/17 and /users/janedoe",
    ]);
}

#[test]
fn texts_of_a_pair_are_read_ahead_for_names() {
    let redactor = redactor();
    let all = redactor.pair().redact_all(&["ask janedoe", "ls /home/janedoe"]).unwrap();
    assert_eq!([&all[0].text, &all[1].text], ["ask <USER_1>", "ls /home/<USER_1>"]);
}

#[test]
fn placeholders_that_were_there_stay_and_are_given_to_no_other_value() {
    becomes(&[
        ("<EMAIL_1> and bob@corp.com and <EMAIL_3>", "<EMAIL_1> and <EMAIL_2> and <EMAIL_3>"),
        ("password: <SECRET_1>, token = \"<SECRET_2>\"", "password: <SECRET_1>, token = \"<SECRET_2>\""),
        ("postgres://<USER_1>:<SECRET_1>@db.corp.com/x", "postgres://<USER_1>:<SECRET_1>@db.corp.com/x"),
        // A placeholder inside of a secret hides no secret.
        ("password: \"hunter2x9<EMAIL_1>K7q\"", "password: \"<SECRET_1>\""),
    ]);
}

#[test]
fn all_strings_of_json_are_redacted_and_keys_stay() {
    let row = json!({
        "messages": [
            {"role": "user", "content": "I am bob@corp.com, in /home/janedoe"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "mail", "arguments": "{\"to\": \"bob@corp.com\", \"password\": \"k7Qp!x2z\"}"}}]},
        ],
        "bob@corp.com": 7, "token": "q8Zt4Lw9Xc2Vb6Nm1Kj5", "phone": "5551234567", "id": "q8Zt4Lw9Xc2Vb6Nm1Kj5", "author": "janedoe",
    });
    let wanted = json!({
        "messages": [
            {"role": "user", "content": "I am <EMAIL_1>, in /home/<USER_1>"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "mail", "arguments": "{\"to\": \"<EMAIL_1>\", \"password\": \"<SECRET_1>\"}"}}]},
        ],
        "bob@corp.com": 7, "token": "<SECRET_2>", "phone": "<PHONE_1>", "id": "q8Zt4Lw9Xc2Vb6Nm1Kj5", "author": "<USER_1>",
    });
    assert_eq!(redactor().pair().redact_json(&row).unwrap(), wanted);
}

#[test]
fn credentials_go_out_of_urls_and_the_rest_stays() {
    becomes(&[
        ("postgres://anna7:hunter2@db.corp.com:5432/x", "postgres://<USER_1>:<SECRET_1>@db.corp.com:5432/x"),
        ("https://root:p@ss@h.org https://root:p%40ss@h.org", "https://root:<SECRET_1>@h.org https://root:<SECRET_2>@h.org"),
        ("redis://:s3cr3t@10.0.0.9:6379", "redis://:<SECRET_1>@<IP_1>:6379"),
        ("git clone https://x9Kq2Lm7Zt4Wp8Vb@git.org/a.git", "git clone https://<SECRET_1>@git.org/a.git"),
    ]);
    stays(&["https://user:${PASSWORD}@h.org", "https://{user}:{password}@h.org", "git@github.com:a/b.git", "ssh://git@h.org/a"]);
}

#[test]
fn private_keys_go_whole_or_cut_off() {
    let body = "MIIEpAIBAAKCAQEA7bq98z1rTnQ\nQRSTUVWXYZab12cdefghij\n";
    let key = format!("-----BEGIN RSA {0}-----\n{body}-----END RSA {0}-----", "PRIVATE KEY");
    let begin = format!("-----BEGIN OPENSSH {}-----", "PRIVATE KEY");
    assert_eq!(redacted(&format!("a\n{key}\nb {key}")), "a\n<PRIVATE_KEY_1>\nb <PRIVATE_KEY_1>");
    assert_eq!(redacted(&format!("\"{}\"", key.replace('\n', "\\n"))), "\"<PRIVATE_KEY_1>\"");
    assert_eq!(redacted(&format!("{begin}\n{body}then it was cut")), "<PRIVATE_KEY_1> it was cut");
    // Its first line alone is none.
    assert_eq!(redacted(&format!("starts with {begin}, then base64")), format!("starts with {begin}, then base64"));
}

#[test]
fn tokens_of_three_parts_and_authorizations_are_found() {
    becomes(&[
        ("x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN y", "x <JWT_1> y"),
        ("Authorization: Bearer q8Zt4Lw9Xc2Vb6Nm1Kj5", "Authorization: Bearer <SECRET_1>"),
    ]);
    stays(&["Authorization: Bearer <token>", "Authorization: Bearer ${TOKEN}", "the bearer understands-nothing-of-it"]);
}

#[test]
fn a_random_value_behind_a_telling_name_is_a_secret() {
    let value = "q8Zt4Lw9Xc2Vb6Nm1Kj5";
    for (before, after) in [
        ("password = \"", "\""),
        ("password='", "'"),
        ("DB_PASSWORD=", "\n"),
        ("\"api_key\": \"", "\","),
        ("secret: ", "\n"),
        ("config['token'] = '", "'"),
        ("set_token(\"", "\")"),
        ("token: str = \"", "\""),
        ("--auth-token ", " run"),
        ("<password>", "</password>"),
        ("The password is ", "."),
        ("client_secret := `", "`"),
        ("?access_token=", "&x=1"),
        (r#"{\"token\": \""#, r#"\"}"#),
        ("API KEY: ", ";"),
        ("the token for the test server is ", ","),
    ] {
        assert_eq!(redacted(&format!("{before}{value}{after}")), format!("{before}<SECRET_1>{after}"));
    }
    becomes(&[
        ("password: Tr0ub4dor&3", "password: <SECRET_1>"),
        ("SECRET_KEY = '5f4dcc3b5aa765d61d8327deb882cf99'", "SECRET_KEY = '<SECRET_1>'"),
        ("api_key: 0b6bd2c1-3f7a-4e0e-9d7e-2c1f0a9b8d7e", "api_key: <SECRET_1>"),
    ]);
}

#[test]
fn code_hashes_and_templates_are_no_secrets() {
    stays(&[
        "password = input(\"Password: \")",
        "token = tokens[i + 1]",
        "let token = self.next_token2();",
        "password: string;",
        "password = os.environ['PASSWORD2']",
        "secret = config.get(\"client_secret\", default_value)",
        "token = request.headers.token2.value",
        "token_count = 12345678901234567890",
        "password=\"password123\"",
        "api_key = \"YOUR_API_KEY_HERE_123\"",
        "token = \"getUserAccessToken2\"",
        "token: ${{ secrets.TOKEN2 }}",
        "pub const PASSWORD_TOO_LONG: u32 = 2151809298u32;",
        "KeyToken: D3D10_RESOURCE_MISC_FLAG,",
        "getUserAccessToken2, setUserAccessToken3",
        // By themselves they tell nothing.
        "commit 83d9cd684c87d95d656c1458ef04895a7f1cbd8e",
        "id 0b6bd2c1-3f7a-4e0e-9d7e-2c1f0a9b8d7e",
        "assert md5('password') == '5f4dcc3b5aa765d61d8327deb882cf99'",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ]);
}

#[test]
fn addresses_of_hosts_are_found_and_versions_are_not() {
    becomes(&[
        ("10.1.2.3, 192.168.0.1/24 and 203.0.113.7:8080", "<IP_1>, <IP_2>/24 and <IP_3>:8080"),
        ("[2001:db8::1]:80 fe80::1%eth0 fd00:1:2:3:4:5:6:7", "[<IP_1>]:80 <IP_2>%eth0 <IP_3>"),
        ("2001:DB8:0:0:8:800:200C:417A, ::ffff:192.0.2.128", "<IP_1>, <IP_2>"),
    ]);
    stays(&[
        "127.0.0.1 0.0.0.0 255.255.255.0 ::1 ::",
        "version 1.2.3.4, v1.2.3.4, foo==1.2.3.4, tar-1.2.3.4.gz, \"version\": \"1.2.3.4\"",
        "1.2.3 1.2.3.4.5 256.1.1.1 a1.2.3.4 section 3.2.1.4",
        "std::fmt::Debug de::fa::ce 12:34:56 a::b",
    ]);
}

#[test]
fn numbers_that_people_call_are_found_and_others_are_not() {
    becomes(&[
        ("+49 30 123456, +442079460958; +44 (0)20 7946 0958.", "<PHONE_1>, <PHONE_2>; <PHONE_3>."),
        ("(201) 555-0123 or 201-555-0123 or 1-201-555-0123", "<PHONE_1> or <PHONE_1> or <PHONE_2>"),
        ("0049 30 123456, 0171/1234567, 01 23 45 67 89, (11) 96123-4567", "<PHONE_1>, <PHONE_2>, <PHONE_3>, <PHONE_4>"),
        ("Phone: 612 345 678, call me at 5551234567, tel. 555-0123", "Phone: <PHONE_1>, call me at <PHONE_2>, tel. <PHONE_3>"),
        ("+1 201-555-0123 24 hours a day", "<PHONE_1> 24 hours a day"),
    ]);
    stays(&[
        "2024-01-31 10:15, 31/01/2024 12 h, 01-02-2003",
        "x = a +1000000007; n = 998244353",
        "01 02 03 04 05",
        "pi is 3.14159265358979",
        "978-3-16-148410-0",
        "call f(1000000) 2 times",
        "0123456789",
        "$555-123-4567",
        "the phone costs $1200 in 2024",
        "1,234,567,890",
        "11 00 55 44 77 66 88 99 aa",
        "id 123-45-6789 and 4111 1111 1111 1111",
    ]);
}

#[test]
fn mail_addresses_are_found_and_code_is_not() {
    becomes(&[
        ("<bob.o'neil+x@mail.corp.co.uk>, to=jürgen@bücher.de.", "<<EMAIL_1>>, to=<EMAIL_2>."),
        ("mailto:bob@corp.com?subject=x", "mailto:<EMAIL_1>?subject=x"),
    ]);
    stays(&[
        "@app.route",
        "weights@self.matrix",
        "a@b",
        "icon@2x.png",
        "q@k.transpose(1, 2)",
        "x@ y.com",
        "pkg@1.2.3",
        "git@h.org",
    ]);
}

#[test]
fn extra_patterns_are_the_users_own() {
    let redactor = Redactor::new(&[r"(?i)project-\d+".to_owned(), "Ærø".to_owned()]).unwrap();
    let text = redactor.pair().redact("Project-12 in Ærø, PROJECT-13, Project-12").unwrap().text;
    assert_eq!(text, "<CUSTOM_1> in <CUSTOM_2>, <CUSTOM_3>, <CUSTOM_1>");
    for (pattern, why) in [("(", "unclosed group"), (r"(?=x)", "look-around"), ("x*", "matches the empty text")] {
        let error = Redactor::new(&["ok".to_owned(), pattern.to_owned()]).err().unwrap();
        assert!(matches!(error, Error::Usage { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("extra pattern 2") && said.contains(&format!("{pattern:?}")) && said.contains(why), "{said}");
    }
}

#[test]
fn a_failure_is_an_error_and_never_the_text() {
    // Each look eats one letter more in front of what is gone already, and never ends.
    let redactor = Redactor::new(&["z<".to_owned()]).unwrap();
    let error = redactor.pair().redact("zzzzzzzzzzzzzzzz<").unwrap_err().to_string();
    assert_eq!(error, "the text cannot be redacted: each look at it finds more");
    let broken = pattern::Pattern::owned("(".to_owned());
    let error = broken.get().unwrap_err().to_string();
    assert!(error.starts_with("the text cannot be redacted: a built-in pattern does not compile"), "{error}");
}

#[test]
fn letters_of_several_bytes_and_nul_are_texts_too() {
    becomes(&[
        ("é10.1.2.3é", "é<IP_1>é"),
        ("日本bob@corp.com日本", "日本<EMAIL_1>日本"),
        ("\0password=q8Zt4Lw9Xc2Vb6Nm1Kj5\0", "\0password=<SECRET_1>\0"),
        ("", ""),
    ]);
}

/// Pieces that rules look for, put together in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "bob@corp.com",
        "@",
        "password",
        ": ",
        "=",
        "\"",
        "q8Zt4Lw9Xc2Vb6Nm1Kj5",
        "/home/janedoe",
        "janedoe",
        "C:\\Users\\",
        "+49 30 123456",
        "10.1.2.3",
        "https://",
        "a:b@h.org",
        "<EMAIL_1>",
        "<SECRET_2>",
        "token",
        " is ",
        "-----BEGIN PRIVATE KEY-----",
        "MIIEpAIBAAKCAQEA7bq98z1r",
        "eyJhbGciOiJI.",
        "eyJzdWIiOiIx",
        "é",
        "\n",
        " ",
        ".",
        "phone",
        "0171/1234567",
        "fe80::1",
        "algolia",
        "Bearer ",
        "<",
        ">",
        "_1",
        "\\n",
        "日",
        "\0",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn redacting_twice_changes_nothing(text in pieces()) {
        let redactor = redactor();
        let once = redactor.pair().redact(&text).unwrap();
        let twice = redactor.pair().redact(&once.text).unwrap();
        prop_assert_eq!(&twice.text, &once.text);
        prop_assert!(twice.found.is_empty());
    }

    #[test]
    fn what_was_found_lies_in_the_text_in_order(text in pieces()) {
        let out = redactor().pair().redact(&text).unwrap();
        let (mut again, mut at) = (String::new(), 0);
        for found in &out.found {
            prop_assert!(found.start >= at && found.end > found.start);
            again.push_str(&text[at..found.start]);
            again.push_str(&found.placeholder);
            at = found.end;
        }
        again.push_str(&text[at..]);
        prop_assert_eq!(again, out.text);
    }
}
