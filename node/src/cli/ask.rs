//! Asks the admin API of a node: one request, one answer.

use std::io::{self, Read as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A node answers from memory; one that does not is stuck.
const TIMEOUT: Duration = Duration::from_secs(5);

/// To act, it may have to read files from a slow disk first.
const ACT_TIMEOUT: Duration = Duration::from_secs(60);

/// An answer longer than this is no admin API's.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A reason given in words is no longer.
const REASON_CHARS_MAX: usize = 1_024;

/// A node has answered, and not with what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the node refuses ({status}): {reason}")]
pub(super) struct Refusal {
    /// Of the answer.
    pub(super) status: u16,
    reason: String,
    /// The whole answer, if it is JSON.
    pub(super) answer: Option<Value>,
}

/// Which node is asked, and as whom.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Asked {
    /// The node's admin address, or unix:PATH for its socket (which may also act).
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7402", env = "STARLING_ADMIN")]
    pub(crate) admin: String,
    /// A file with the admin token.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<std::path::PathBuf>,
}

impl Asked {
    /// A node at `admin`, without a token.
    pub(crate) fn at(admin: impl Into<String>) -> Self {
        Self { admin: admin.into(), token_file: None }
    }

    /// What is at `path`.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let body = self.request("GET", path)?;
        serde_json::from_slice(&body)
            .with_context(|| format!("{} does not answer as a node does", self.admin))
    }

    /// Acts at `path`.
    pub(crate) fn post(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.request("POST", path)?)?)
    }

    /// The body at `path`, whatever it is.
    pub(crate) fn request(&self, method: &str, path: &str) -> anyhow::Result<Vec<u8>> {
        let unreachable = || {
            format!("no node answers at {}; is one running there? (--admin says where to ask)", self.admin)
        };
        let token = self.token()?;
        let host = if self.admin.starts_with("unix:") { "localhost" } else { &self.admin };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{token}connection: close\r\n\r\n");
        let timeout = if method == "GET" { TIMEOUT } else { ACT_TIMEOUT };
        let answer = match self.admin.strip_prefix("unix:") {
            Some(path) => {
                let stream = UnixStream::connect(path).with_context(unreachable)?;
                stream.set_read_timeout(Some(timeout))?;
                exchange(stream, &head)
            }
            None => {
                let stream = TcpStream::connect(&self.admin).with_context(unreachable)?;
                stream.set_read_timeout(Some(timeout))?;
                exchange(stream, &head)
            }
        };
        let answer = answer.map_err(|error| match error.kind() {
            // What a read that takes too long is called depends on the socket.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                anyhow::anyhow!(
                    "the node at {} has not answered within {timeout:?}; its log may say why",
                    self.admin
                )
            }
            _ => anyhow::Error::from(error).context(unreachable()),
        });
        read_answer(&answer?)
    }

    fn token(&self) -> anyhow::Result<String> {
        let Some(path) = &self.token_file else { return Ok(String::new()) };
        let token =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(format!("authorization: Bearer {}\r\n", token.trim()))
    }
}

fn exchange(mut stream: impl io::Read + io::Write, head: &str) -> io::Result<Vec<u8>> {
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The body of an answer that ends with its connection. The admin API sends no chunks to a client
/// that asks it to close, for it knows every length.
fn read_answer(answer: &[u8]) -> anyhow::Result<Vec<u8>> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("the answer has no head")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    let body = answer[end + 4..].to_vec();
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let answer = serde_json::from_slice::<Value>(&body).ok();
    let told = answer.as_ref().and_then(|value| value["error"].as_str().map(str::to_owned));
    let words = || String::from_utf8_lossy(&body).trim().chars().take(REASON_CHARS_MAX).collect::<String>();
    let reason = match told.unwrap_or_else(words) {
        nothing if nothing.is_empty() => "no reason given".to_owned(),
        reason => reason,
    };
    Err(Refusal { status, reason, answer }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(answer: &str) -> (String, Option<Value>) {
        let error = read_answer(answer.as_bytes()).expect_err("a refusal");
        let answer = error.downcast_ref::<Refusal>().expect("the node's").answer.clone();
        (error.to_string(), answer)
    }

    #[test]
    fn a_refusal_is_told_in_the_nodes_words() {
        let (told, answer) = refusal("HTTP/1.1 503 \r\nx: y\r\n\r\ndraining\n");
        assert_eq!((told.as_str(), answer), ("the node refuses (503): draining", None));
        let (told, answer) = refusal("HTTP/1.1 422 \r\n\r\n{\"error\": \"no\", \"mistakes\": [1]}");
        assert_eq!(told, "the node refuses (422): no");
        assert_eq!(answer.expect("JSON")["mistakes"][0], 1);
        assert_eq!(refusal("HTTP/1.1 500 \r\n\r\n").0, "the node refuses (500): no reason given");
        let long = refusal(&format!("HTTP/1.1 500 \r\n\r\n{}", "e".repeat(100_000))).0;
        assert!(long.len() < REASON_CHARS_MAX + 64);
    }
}
