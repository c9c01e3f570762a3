//! What a node says about itself: metrics and logs.
//!
//! Metrics go through the `metrics` facade and are rendered for Prometheus; logs go through
//! `tracing`. Both are set up once per process.

pub(crate) mod exchange;

use std::fs::OpenOptions;
use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::Metadata;
use tracing_subscriber::filter::{self, FilterExt as _, LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{AccessLog, Log, LogFormat};

/// The access log's events carry this target.
const ACCESS_TARGET: &str = "access";

/// Upper bounds of latency buckets, seconds: from a loopback hop to a slow query.
const LATENCY_BUCKETS: [f64; 14] =
    [0.000_5, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 4.0, 16.0];

/// How often recorded samples are folded into their buckets.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// What is worth a line in the process's log; may change.
#[derive(Clone)]
pub struct LogLevel(reload::Handle<Targets, Registry>);

impl LogLevel {
    /// Takes over `level`, which a configuration has judged.
    pub(crate) fn set(&self, level: &str) {
        // A process that has replaced its log has nothing to change here.
        let _ = level.parse().map(|targets: Targets| self.0.reload(targets));
    }
}

/// The process's metrics.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the process's recorder. Once per process.
    pub fn install() -> anyhow::Result<Self> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_BUCKETS)
            .context("latency buckets")?
            .install_recorder()
            .context("metrics can be set up once per process")?;
        describe();
        metrics::gauge!("starling_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(Self(handle))
    }

    /// All metrics in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps the memory of histograms bounded for as long as it is polled.
    pub(crate) async fn upkeep(self) {
        loop {
            tokio::time::sleep(UPKEEP_PERIOD).await;
            self.0.run_upkeep();
        }
    }
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("starling_requests_total", "Requests and connections, by outcome");
    describe_counter!(
        "starling_retries_total",
        "Requests that were sent again, or would have been, by outcome"
    );
    describe_counter!(
        "starling_upstream_overflow_total",
        "Work refused for a limit of [[upstream]], by service and limit"
    );
    describe_counter!("starling_ejections_total", "Endpoints left out for their answers, by reason");
    describe_gauge!("starling_ejected_endpoints", "Endpoints that are left out for their answers");
    describe_histogram!(
        "starling_request_duration_seconds",
        Unit::Seconds,
        "From a request's head to its answer's end; from a connection's start to its end"
    );
    describe_counter!(
        "starling_request_bytes_total",
        Unit::Bytes,
        "Bytes of connections, towards the service"
    );
    describe_counter!("starling_response_bytes_total", Unit::Bytes, "Bytes of answers and connections");
    describe_counter!("starling_access_decisions_total", "Streams of callers let in or denied, by rule");
    describe_counter!("starling_gossip_records_total", "Records and renewals taken in");
    describe_counter!("starling_gossip_rejected_total", "Records and renewals refused, by reason");
    describe_counter!("starling_gossip_malformed_total", "Messages that nobody can read, dropped");
    describe_counter!("starling_gossip_hearsay_refused_total", "Parts of repairs refused, by reason");
    describe_counter!(
        "starling_gossip_over_budget_total",
        "Questions of peers left unanswered: they ask too much"
    );
    describe_counter!("starling_gossip_shunned_total", "Times a peer was cut off because it sent too much");
    describe_counter!("starling_gossip_referred_total", "Newcomers told to ask other members");
    describe_counter!("starling_gossip_news_left_to_repair_total", "News not passed on: there was too much");
    describe_counter!("starling_gossip_restarts_total", "Times the repair path had to be started again");
    describe_gauge!("starling_catalogue_members", "Members whose lease runs");
    describe_gauge!("starling_catalogue_services", "Services that somebody announces");
    describe_counter!("starling_route_tables_total", "Route tables computed");
    describe_gauge!(
        "starling_route_retained_endpoints",
        "Endpoints that are kept although their leases ran out, because most of their service did at once"
    );
    describe_gauge!("starling_store_healthy", "1 while node.data_dir can be written");
    describe_counter!("starling_store_errors_total", "Errors of node.data_dir, by operation");
    describe_counter!("starling_store_set_aside_total", "Damaged store files set aside");
    describe_counter!("starling_store_dropped_total", "Entries not remembered because the store is full");
    describe_gauge!("starling_certificate_valid", "1 while this node's own certificate is valid");
    describe_counter!("starling_config_reloads_total", "Times the configuration was read again, by outcome");
    describe_gauge!("starling_config_stale", "1 while the configuration file says what does not run");
    describe_gauge!("starling_build_info", "1, labelled with the program's version");
}

/// Sets the process's logs up: the node's own on standard error, the access log where it is
/// wanted.
pub fn init_logs(log: &Log, access_log: Option<&AccessLog>) -> anyhow::Result<LogLevel> {
    let filter = log.level.parse::<Targets>().context("log.level")?;
    let (filter, level) = reload::Layer::new(filter);
    // One filter of both: two that disagree about a library's span would have it made and entered each time.
    let other = filter::filter_fn(|metadata: &Metadata<'_>| metadata.target() != ACCESS_TARGET);
    let filter = filter.and(other.with_max_level_hint(LevelFilter::TRACE));
    let stderr_is_terminal = std::io::stderr().is_terminal();
    let own = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(stderr_is_terminal);
    let own: Box<dyn Layer<Registry> + Send + Sync> = match log.format {
        LogFormat::Text => own.with_filter(filter).boxed(),
        LogFormat::Json => own.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let mut layers = vec![own];
    if let Some(access_log) = access_log {
        layers.push(access_layer(access_log)?);
    }
    tracing_subscriber::registry().with(layers).try_init().context("logs can be set up once per process")?;
    Ok(LogLevel(level))
}

fn access_layer(access_log: &AccessLog) -> anyhow::Result<Box<dyn Layer<Registry> + Send + Sync>> {
    let writer = match &access_log.path {
        None => BoxMakeWriter::new(std::io::stdout),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.with_context(|| format!("access_log.path: cannot write {}", path.display()))?;
            BoxMakeWriter::new(std::sync::Mutex::new(file))
        }
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match access_log.format {
        LogFormat::Text => layer.with_ansi(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let only = filter::filter_fn(|metadata: &Metadata<'_>| metadata.target() == ACCESS_TARGET);
    // Its events are of this level; without the hint, no library's span could be passed over by its level alone.
    let only = only.with_max_level_hint(LevelFilter::INFO);
    Ok(layer.with_filter(only).boxed())
}
