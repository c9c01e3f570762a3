//! What a local HTTP client hears when there is no room for its connection: one answer, unasked.
//!
//! Its request is not read for its meaning; it is only taken off the wire, because a connection
//! closed with unread bytes is reset, and a reset may overtake the answer (RFC 9112, section 9.6).

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::proxy::failure::{Flag, RETRY_AFTER_SECONDS};
use crate::proxy::headers::FLAGS;

/// Connections that are told at a time; those beyond are reset.
pub(crate) const REFUSALS_MAX: usize = 64;

/// How long one may take to hear it.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is read of a client before it is left alone: more than a head.
const READ_BYTES_MAX: usize = 128 * 1024;

/// Answers 503 with the flag `UO` and closes.
pub(crate) async fn tell(mut client: impl AsyncRead + AsyncWrite + Unpin) {
    // Whatever goes wrong: the client is gone, and so is its place.
    let _ = tokio::time::timeout(PATIENCE, async {
        client.write_all(answer().as_bytes()).await?;
        client.shutdown().await?;
        let (mut buffer, mut left) = ([0; 4096], READ_BYTES_MAX);
        while left > 0 {
            match client.read(&mut buffer).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok::<_, std::io::Error>(())
    })
    .await;
}

fn answer() -> String {
    let flag = Flag::Overflow;
    let (status, name) = (flag.status(), flag.as_str());
    let line = format!("starling: {name}: this node has as many connections as it may; try again later\n");
    format!(
        "HTTP/1.1 {status}\r\nserver: starling\r\n{FLAGS}: {name}\r\n\
         retry-after: {RETRY_AFTER_SECONDS}\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n{line}",
        line.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_whole() {
        let answer = answer();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with(
            "HTTP/1.1 503 Service Unavailable\r\nserver: starling\r\nx-starling-flags: UO\r\n\
                 retry-after: 1\r\n"
        ));
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
    }
}
