//! Where a server listens, from `OLLAMA_HOST` or `LLAMA_SERVER_HOST` in all spellings. Source of the rules: ollama,
//! envconfig/config.go.

use std::fmt;
use std::net::IpAddr;

use crate::error::{Error, Result};

/// Which program is asked: what messages call it, and how a user reaches it.
#[derive(Debug, PartialEq, Eq)]
pub struct ServerKind {
    pub name: &'static str,
    /// `an Ollama`
    pub one: &'static str,
    /// The environment's name of its address.
    pub host_variable: &'static str,
    /// The environment's name of its token.
    pub key_variable: &'static str,
    pub default_port: u16,
    /// What starts it, as a command in a sentence.
    pub start: &'static str,
    /// Where its load is seen.
    pub busy: &'static str,
}

pub static OLLAMA: ServerKind = ServerKind {
    name: "Ollama",
    one: "an Ollama",
    host_variable: "OLLAMA_HOST",
    key_variable: "OLLAMA_API_KEY",
    default_port: 11434,
    start: "`ollama serve`",
    busy: "`ollama ps` shows what keeps it busy",
};

/// llama.cpp's. Its own environment calls the token so, too.
pub static LLAMA_SERVER: ServerKind = ServerKind {
    name: "llama-server",
    one: "a llama-server",
    host_variable: "LLAMA_SERVER_HOST",
    key_variable: "LLAMA_API_KEY",
    default_port: 8080,
    start: "the start script in .agent/llama-server",
    busy: "its /slots shows what keeps it busy",
};

/// Scheme, host, port and path of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub(super) kind: &'static ServerKind,
    https: bool,
    /// A name or an IP address, without brackets.
    host: String,
    port: u16,
    /// With a leading slash and without a trailing one; empty where there is none.
    path: String,
}

impl Default for Address {
    fn default() -> Self {
        Self::loopback(&OLLAMA, OLLAMA.default_port)
    }
}

impl Address {
    /// `OLLAMA_HOST`, or 127.0.0.1:11434 where it is not set.
    pub fn from_env() -> Result<Self> {
        Self::from_env_of(&OLLAMA)
    }

    /// What the kind's variable says, or its port on this machine where it is not set.
    pub fn from_env_of(kind: &'static ServerKind) -> Result<Self> {
        match std::env::var(kind.host_variable) {
            Ok(text) => Self::parse_of(kind, &text),
            Err(std::env::VarError::NotPresent) => Ok(Self::loopback(kind, kind.default_port)),
            Err(std::env::VarError::NotUnicode(_)) => Err(wrong(kind, "is no UTF-8")),
        }
    }

    /// A port of this machine.
    pub fn loopback(kind: &'static ServerKind, port: u16) -> Self {
        Self { kind, https: false, host: "127.0.0.1".to_owned(), port, path: String::new() }
    }

    /// `parse_of` for an Ollama.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_of(&OLLAMA, text)
    }

    /// `host`, `host:port`, `:port`, `[::1]:port`, `http://host`, `https://host:port/path`. The address that a server
    /// binds to say "every interface" (0.0.0.0, ::) is the loopback address for a client. The default port is the kind's,
    /// with `http://` 80 and with `https://` 443, as Ollama's own client has it.
    pub fn parse_of(kind: &'static ServerKind, text: &str) -> Result<Self> {
        // Ollama strips quotes that a shell script or a systemd unit left around the value.
        let text = text.trim().trim_matches(['"', '\'']).trim();
        let (https, default_port, rest) = match text.split_once("://") {
            None if *kind == OLLAMA && text == "ollama.com" => (true, 443, text),
            None => (false, kind.default_port, text),
            Some(("http", rest)) => (false, 80, rest),
            Some(("https", rest)) => (true, 443, rest),
            Some((scheme, _)) => return Err(wrong(kind, format!("has the scheme '{scheme}', expected http or https"))),
        };
        let (host_port, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = split_host_port(host_port);
        let port = match port {
            None | Some("") => default_port,
            Some(digits) => {
                digits.parse().map_err(|_| wrong(kind, format!("has the port '{digits}', expected a number from 0 to 65535")))?
            }
        };
        let path = path.trim_end_matches('/');
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { kind, https, host: connectable(kind, host)?, port, path })
    }

    /// The URL of an endpoint: `path` begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{self}{path}")
    }

    /// Whether nothing sent there leaves this machine.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost") || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether nobody on the way can read what is sent.
    pub fn is_private(&self) -> bool {
        self.https || self.is_loopback()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}{}", self.host, self.port, self.path)
    }
}

/// Host and, where one is given, port. A bare IPv6 address has colons and no port.
fn split_host_port(text: &str) -> (&str, Option<&str>) {
    if let Some(rest) = text.strip_prefix('[')
        && let Some((host, after)) = rest.split_once(']')
    {
        return (host, after.strip_prefix(':'));
    }
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
}

fn connectable(kind: &ServerKind, host: &str) -> Result<String> {
    if host.is_empty() {
        return Ok("127.0.0.1".to_owned());
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(match ip {
            IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
            IpAddr::V6(ip) if ip.is_unspecified() => "::1".to_owned(),
            ip => ip.to_string(),
        });
    }
    let valid = host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if valid { Ok(host.to_owned()) } else { Err(wrong(kind, format!("has the host '{host}', expected a name or an IP address"))) }
}

fn wrong(kind: &ServerKind, what: impl std::fmt::Display) -> Error {
    let (variable, port) = (kind.host_variable, kind.default_port);
    Error::usage(
        format!("{variable} {what}"),
        format!("set {variable} to host:port or to a URL, for example 127.0.0.1:{port} or https://models.example.org"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_ollama_host_leads_to_the_url_that_ollama_itself_would_use() {
        for (text, url) in [
            ("", "http://127.0.0.1:11434"),
            ("  ", "http://127.0.0.1:11434"),
            ("example.com", "http://example.com:11434"),
            ("example.com:56789", "http://example.com:56789"),
            (":56789", "http://127.0.0.1:56789"),
            ("1.2.3.4", "http://1.2.3.4:11434"),
            ("\"1.2.3.4:1\"", "http://1.2.3.4:1"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("0.0.0.0:8080", "http://127.0.0.1:8080"),
            ("::", "http://[::1]:11434"),
            ("::1", "http://[::1]:11434"),
            ("[::1]", "http://[::1]:11434"),
            ("[0:0:0:0:0:0:0:0]:5", "http://[::1]:5"),
            ("[fe80::2]:56789", "http://[fe80::2]:56789"),
            ("http://example.com", "http://example.com:80"),
            ("https://example.com", "https://example.com:443"),
            ("https://example.com:1234", "https://example.com:1234"),
            ("https://example.com:1234/ollama/", "https://example.com:1234/ollama"),
            ("example.com/ollama", "http://example.com:11434/ollama"),
            ("example.com:", "http://example.com:11434"),
            ("ollama.com", "https://ollama.com:443"),
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), url, "OLLAMA_HOST={text}");
        }
    }

    #[test]
    fn another_server_has_its_own_variable_and_port() {
        let parse = |text: &str| Address::parse_of(&LLAMA_SERVER, text);
        assert_eq!(parse("gpu").unwrap().to_string(), "http://gpu:8080");
        let error = parse("gpu:x").unwrap_err();
        assert!(error.to_string().starts_with("LLAMA_SERVER_HOST has the port 'x'"), "{error}");
        assert!(error.hint().unwrap().contains("127.0.0.1:8080"), "{error:?}");
    }

    #[test]
    fn a_wrong_ollama_host_is_a_usage_error_that_names_the_part() {
        for (text, part) in [
            ("host:70000", "'70000'"),
            ("host:x", "'x'"),
            ("ftp://host", "'ftp'"),
            ("a b", "'a b'"),
            ("user@host", "'user@host'"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn only_loopback_and_https_are_private() {
        for (text, private) in
            [("", true), ("localhost:1", true), ("::1", true), ("https://a.b", true), ("a.b", false), ("10.0.0.1", false)]
        {
            assert_eq!(Address::parse(text).unwrap().is_private(), private, "{text}");
        }
    }
}
