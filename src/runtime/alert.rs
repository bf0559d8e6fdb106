//! Telling people: JSON to a webhook, and to a command's standard input. What could not be told never undoes what it is about.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::Alerts;
use crate::fault;

/// A webhook that takes longer is told as silent.
const WEBHOOK_PATIENCE: Duration = Duration::from_secs(15);
/// A command that takes longer is ended.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// Something that people should know.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// `rollback`, `cycle_failed`, ...
    pub event: &'static str,
    /// One sentence.
    pub text: String,
    /// What else is known, for machines: a JSON object.
    pub details: Value,
}

impl Alert {
    /// `text` is what Slack, Mattermost and Teams show, `content` what Discord shows.
    fn to_json(&self) -> Value {
        json!({ "event": self.event, "text": self.text, "content": self.text, "details": self.details })
    }
}

/// Tells everyone who is to be told. Gives what went wrong, a sentence each.
pub fn send(alerts: &Alerts, alert: &Alert) -> Vec<String> {
    let body = alert.to_json();
    let webhook = alerts.webhook.as_deref().map(|url| post(url, &body));
    let command = alerts.command.as_deref().map(|command| run(command, alert, &body));
    webhook.into_iter().chain(command).filter_map(Result::err).collect()
}

fn post(url: &str, body: &Value) -> Result<(), String> {
    fault::point("http alert");
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(WEBHOOK_PATIENCE))
        .user_agent(concat!("retune/", env!("CARGO_PKG_VERSION")));
    let agent: ureq::Agent = config.build().into();
    // The address of a webhook is a secret: only its host is told.
    let host = url.split('/').nth(2).unwrap_or_default().rsplit('@').next().unwrap_or_default().to_owned();
    match agent.post(url).send_json(body) {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("the webhook at {host} answered {}", answer.status())),
        Err(error) => Err(format!("the webhook at {host} was not reached: {}", error.to_string().replace(url, &host))),
    }
}

fn run(command: &str, alert: &Alert, body: &Value) -> Result<(), String> {
    fault::point("run alert");
    let failed = |why: String| format!("the command of alerts.command {why}");
    let mut child = Command::new("sh")
        .args(["-c", command])
        .env("RETUNE_EVENT", alert.event)
        .env("RETUNE_TEXT", &alert.text)
        .stdin(Stdio::piped())
        // What it says belongs to no machine's output.
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| failed(format!("could not be started: {e}")))?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read is its own matter; the text is far shorter than a pipe.
        let _ = writeln!(input, "{body}");
    }
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(failed(format!("ended with {status}"))),
            Ok(None) if start.elapsed() < COMMAND_PATIENCE => std::thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("was ended after {} s", COMMAND_PATIENCE.as_secs())));
            }
            Err(error) => return Err(failed(format!("was lost: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ollama::scripted::{Say, Scripted};

    fn alert() -> Alert {
        Alert { event: "rollback", text: "v2 was rolled back".into(), details: json!({"to": "v1"}) }
    }

    #[test]
    fn a_webhook_and_a_command_get_the_same_json() {
        let server = Scripted::start(|_| Say::Json(200, json!({})));
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("told");
        let alerts = Alerts {
            webhook: Some(format!("{}/hook/secret", server.ollama.address())),
            command: Some(format!("{{ echo \"$RETUNE_EVENT: $RETUNE_TEXT\"; cat; }} > '{}'", file.display())),
        };
        assert_eq!(send(&alerts, &alert()), Vec::<String>::new());
        let seen = server.seen();
        assert_eq!((seen.len(), seen[0].line.as_str()), (1, "POST /hook/secret"));
        assert_eq!(seen[0].json(), alert().to_json());
        let told = std::fs::read_to_string(file).unwrap();
        let (first, rest) = told.split_once('\n').unwrap();
        assert_eq!(first, "rollback: v2 was rolled back");
        assert_eq!(serde_json::from_str::<Value>(rest).unwrap(), alert().to_json());
    }

    #[test]
    fn what_could_not_be_told_is_said_without_the_secret() {
        let server = Scripted::start(|_| Say::Text(404, "no such hook"));
        let alerts =
            Alerts { webhook: Some(format!("{}/hook/SECRET", server.ollama.address())), command: Some("exit 3".to_owned()) };
        let failures = send(&alerts, &alert());
        assert_eq!(failures.len(), 2);
        assert!(failures[0].contains("answered 404") && failures[0].contains("127.0.0.1"), "{failures:?}");
        assert!(failures[1].contains("exit status: 3"), "{failures:?}");
        let dead = Alerts { webhook: Some("http://127.0.0.1:1/hook/SECRET".to_owned()), command: None };
        let more = send(&dead, &alert());
        assert!(more[0].starts_with("the webhook at 127.0.0.1:1 was not reached"), "{more:?}");
        assert!(!failures.concat().contains("SECRET") && !more.concat().contains("SECRET"));
        assert_eq!(send(&Alerts::default(), &alert()), Vec::<String>::new());
    }
}
