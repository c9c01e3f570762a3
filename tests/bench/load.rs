//! Load, mostly by other makers' generators: wrk for HTTP/1.1 and bytes, h2load for HTTP/2.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use starling_gossip::clock::Clock;
use starling_tests::look_for_program;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::ground::BULK_BYTES;
use crate::pace;
use crate::pair::Running;
use crate::table::{Line, Measure, Work};

/// Connections under full load, and for HTTP/2 connections and streams on each.
const CONNECTIONS: &str = "64";
const H2_CONNECTIONS: &str = "8";
const H2_STREAMS: &str = "16";

/// What is sent before anything is measured, so that pools and caches are as they are in use.
const WARM_UP: Duration = Duration::from_secs(1);

/// How long bulk may take: 10 MB/s.
const BULK_MAX: Duration = Duration::from_secs(110);

/// Bytes read at a time in bulk.
const CHUNK_BYTES: usize = 256 * 1024;

/// Whether the generators are there.
pub fn check_installed() -> Result<(), String> {
    for (program, package) in [("nginx", "nginx"), ("wrk", "wrk"), ("h2load", "nghttp2-client")] {
        if look_for_program(program).is_none() {
            return Err(format!("{program} is not installed: apt-get install {package}"));
        }
    }
    Ok(())
}

/// Whether a request comes through at `port`.
pub async fn comes_through(port: u16) -> bool {
    let once = async {
        let mut stream = TcpStream::connect(local(port)).await.ok()?;
        stream.write_all(&request("/1k", "close")).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        answer.starts_with(b"HTTP/1.1 200").then_some(())
    };
    tokio::time::timeout(Duration::from_secs(3), once).await.ok().flatten().is_some()
}

/// One line's measure.
pub async fn measure(line: Line, port: u16, time: Duration, running: &Running) -> Result<Measure, String> {
    match line.work() {
        Work::Full => drop(wrk(port, WARM_UP, &[]).await?),
        Work::Paced => drop(pace::run(local(port), WARM_UP).await?),
        Work::Fresh | Work::Streams | Work::Bulk => {}
    }
    running.forget_peaks();
    let (before, began) = (running.cost(), Clock::System.now());
    let mut measure = match line.work() {
        Work::Full => wrk(port, time, &[]).await?,
        Work::Fresh => wrk(port, time, &["-H", "Connection: close"]).await?,
        Work::Paced => pace::run(local(port), time).await?,
        Work::Streams => h2load(port, time).await?,
        Work::Bulk => bulk(port).await?,
    };
    let took = (Clock::System.now() - began).as_secs_f64();
    let cost = running.cost();
    let seconds = cost.processor_seconds - before.processor_seconds;
    measure.peak_bytes = Some(cost.peak_bytes as f64);
    measure.idle_bytes = running.idle_bytes.iter().max().map(|bytes| *bytes as f64);
    if line.work() == Work::Bulk {
        measure.processor_seconds_per_gib = Some(seconds);
    } else {
        let requests = measure.per_second.unwrap_or_default() * took;
        measure.processor_micros = Some(seconds * 1e6 / requests.max(1.0));
    }
    Ok(measure)
}

/// A request for the application, which every pair finds by its port alone.
pub fn request(path: &str, connection: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: app.mesh\r\nConnection: {connection}\r\n\r\n").into_bytes()
}

async fn wrk(port: u16, time: Duration, more: &[&str]) -> Result<Measure, String> {
    let (seconds, url) = (format!("-d{}s", time.as_secs()), format!("http://127.0.0.1:{port}/1k"));
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c", CONNECTIONS, &seconds, "--timeout", "5s", "--latency"]);
    command.args(["-H", "Host: app.mesh"]).args(more).arg(url);
    read_wrk(&output(command).await?)
}

/// What wrk prints.
fn read_wrk(said: &str) -> Result<Measure, String> {
    let after = |key: &str| said.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
    let number =
        |text: &str| text.split(',').filter_map(|part| part.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    let errors =
        after("Socket errors:").map_or(0.0, number) + after("Non-2xx or 3xx responses:").map_or(0.0, number);
    let per_second = after("Requests/sec:").and_then(|rate| rate.parse().ok());
    let per_second = per_second.ok_or_else(|| format!("wrk gave no rate: {said}"))?;
    Ok(Measure {
        per_second: Some(per_second),
        p50_millis: after("50%").and_then(millis),
        p99_millis: after("99%").and_then(millis),
        errors,
        ..Measure::default()
    })
}

/// As wrk writes times: `812.00us`, `1.20ms`, `1.03s`.
fn millis(text: &str) -> Option<f64> {
    let at = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let number: f64 = text[..at].parse().ok()?;
    match &text[at..] {
        "us" => Some(number / 1000.0),
        "ms" => Some(number),
        "s" => Some(number * 1000.0),
        "m" => Some(number * 60_000.0),
        _ => None,
    }
}

async fn h2load(port: u16, time: Duration) -> Result<Measure, String> {
    let log = tempfile::NamedTempFile::new().map_err(|error| format!("no file for h2load: {error}"))?;
    let mut command = Command::new("h2load");
    command.args(["-t1", "-c", H2_CONNECTIONS, "-m", H2_STREAMS, "-D", &time.as_secs().to_string()]);
    command.args(["-H", "content-type: application/grpc", "-H", "te: trailers", "--log-file"]);
    command.arg(log.path()).arg(format!("http://127.0.0.1:{port}/1k"));
    let said = output(command).await?;
    let lines = fs::read_to_string(log.path()).map_err(|error| format!("h2load's log: {error}"))?;
    read_h2load(&said, &lines)
}

/// What h2load prints, and its log: when a request began, its status, and the microseconds it took.
fn read_h2load(said: &str, log: &str) -> Result<Measure, String> {
    let rate =
        said.lines().find_map(|line| line.strip_suffix("/s")?.split_once(" req/s")?.0.rsplit(' ').next());
    let per_second: f64 =
        rate.and_then(|rate| rate.parse().ok()).ok_or_else(|| format!("h2load gave no rate: {said}"))?;
    let fields = log.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        Some((fields.next()?, fields.next()?.parse::<f64>().ok()?))
    });
    let mut micros = Vec::new();
    let mut errors = 0.0;
    for (status, took) in fields {
        micros.push(took);
        errors += f64::from(u8::from(status != "200"));
    }
    micros.sort_by(f64::total_cmp);
    Ok(Measure {
        per_second: Some(per_second),
        p50_millis: pace::quantile(&micros, 0.5).map(|micros| micros / 1000.0),
        p99_millis: pace::quantile(&micros, 0.99).map(|micros| micros / 1000.0),
        errors,
        ..Measure::default()
    })
}

async fn bulk(port: u16) -> Result<Measure, String> {
    let began = Clock::System.now();
    let fetch = async {
        let mut stream = TcpStream::connect(local(port)).await?;
        stream.write_all(&request("/big", "close")).await?;
        let (mut all, mut chunk) = (0, vec![0; CHUNK_BYTES]);
        loop {
            match stream.read(&mut chunk).await? {
                0 => return std::io::Result::Ok(all),
                count => all += count as u64,
            }
        }
    };
    let fetched = tokio::time::timeout(BULK_MAX, fetch).await;
    let bytes = fetched.map_err(|_| "bulk took too long".to_owned())?.unwrap_or_default();
    let seconds = (Clock::System.now() - began).as_secs_f64();
    Ok(Measure {
        megabytes_per_second: Some(bytes as f64 / 1e6 / seconds),
        // The head comes on top.
        errors: f64::from(u8::from(bytes < BULK_BYTES)),
        ..Measure::default()
    })
}

async fn output(mut command: Command) -> Result<String, String> {
    let output = command.kill_on_drop(true).output().await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let said = "Running 5s test @ http://127.0.0.1:1/1k\n  Latency Distribution\n     50%  812.00us\n     \
                    99%    1.20ms\n  Socket errors: connect 0, read 2, write 0, timeout 1\n  \
                    Non-2xx or 3xx responses: 4\nRequests/sec:  32071.12\n";
        let measure = read_wrk(said).expect("a measure");
        assert_eq!(measure.per_second, Some(32071.12));
        assert_eq!((measure.p50_millis, measure.p99_millis), (Some(0.812), Some(1.2)));
        assert_eq!(measure.errors, 7.0);
        assert!(read_wrk("unable to connect").is_err());
    }

    #[test]
    fn what_h2load_prints_is_read() {
        let said = "finished in 5.00s, 7741.00 req/s, 7.77MB/s\nrequests: 38705 total";
        let measure = read_h2load(said, "1\t200\t500\n2\t200\t1500\n3\t-1\t90\n").expect("a measure");
        assert_eq!((measure.per_second, measure.p50_millis), (Some(7741.0), Some(0.5)));
        assert_eq!(measure.errors, 1.0);
    }
}
