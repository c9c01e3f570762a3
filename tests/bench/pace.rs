//! Requests at a fixed rate over kept connections, whoever is slow: open loop. What a request takes counts from
//! when it was due, so a proxy that stalls does not hide what waited for it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use starling_gossip::clock::{Clock, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::load::request;
use crate::table::Measure;

/// Requests a second: what the table's paced lines are named after.
pub const PER_SECOND: u32 = 2_000;

/// Connections that share them.
const CONNECTIONS: usize = 16;

/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests that are due and wait for a connection.
#[derive(Default)]
struct Due {
    waiting: Mutex<(VecDeque<Instant>, bool)>,
    some: Notify,
}

/// Sends [`PER_SECOND`] for `time`.
pub async fn run(address: SocketAddr, time: Duration) -> Result<Measure, String> {
    let due = Arc::new(Due::default());
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        asking.spawn(ask(address, due.clone()));
    }
    let (began, all) = (Clock::System.now(), PER_SECOND * time.as_secs() as u32);
    for number in 0..all {
        let at = began + Duration::from_secs(1) * number / PER_SECOND;
        if at > Clock::System.now() {
            tokio::time::sleep_until(at).await;
        }
        due.waiting.lock().expect("nobody panicked").0.push_back(at);
        due.some.notify_one();
    }
    due.waiting.lock().expect("nobody panicked").1 = true;
    due.some.notify_waiters();
    let (mut millis, mut errors) = (Vec::new(), 0.0);
    let ended = tokio::time::timeout(PATIENCE, async {
        while let Some(asked) = asking.join_next().await {
            let (took, failed) = asked.expect("no panic");
            millis.extend(took);
            errors += failed;
        }
    });
    let is_late = ended.await.is_err();
    let seconds = (Clock::System.now() - began).as_secs_f64().min(time.as_secs_f64());
    millis.sort_by(f64::total_cmp);
    let unanswered = f64::from(all) - millis.len() as f64;
    Ok(Measure {
        per_second: Some(millis.len() as f64 / seconds),
        p50_millis: quantile(&millis, 0.5),
        p99_millis: quantile(&millis, 0.99),
        errors: if is_late { unanswered } else { errors },
        ..Measure::default()
    })
}

/// The least that is not less than `share` of `sorted`.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Sends what is due, one after the other; how many milliseconds each took, and how many failed.
async fn ask(address: SocketAddr, due: Arc<Due>) -> (Vec<f64>, f64) {
    let (mut millis, mut errors) = (Vec::new(), 0.0);
    let mut connection = None;
    while let Some(at) = due.next().await {
        match one(address, &mut connection).await {
            Ok(true) => millis.push((Clock::System.now() - at).as_secs_f64() * 1000.0),
            Ok(false) | Err(_) => {
                errors += 1.0;
                connection = None;
            }
        }
    }
    (millis, errors)
}

impl Due {
    /// The next that is due; `None` once there are no more.
    async fn next(&self) -> Option<Instant> {
        loop {
            let some = self.some.notified();
            {
                let mut waiting = self.waiting.lock().expect("nobody panicked");
                if let Some(at) = waiting.0.pop_front() {
                    return Some(at);
                }
                if waiting.1 {
                    return None;
                }
            }
            some.await;
        }
    }
}

/// One request; whether it was answered with 200.
async fn one(address: SocketAddr, connection: &mut Option<BufReader<TcpStream>>) -> std::io::Result<bool> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            connection.insert(BufReader::new(stream))
        }
    };
    stream.get_mut().write_all(&request("/1k", "keep-alive")).await?;
    let (mut line, mut length, mut is_good) = (String::new(), 0, false);
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let head = line.trim_end();
        if head.is_empty() {
            break;
        }
        is_good |= head.starts_with("HTTP/1.1 200");
        if let Some((name, value)) = head.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(is_good)
}
