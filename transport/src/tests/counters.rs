//! What the metrics facade was told, on this thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, LocalRecorderGuard, Metadata, Recorder, SharedString, Unit,
};

/// Counts while it lives. Only for tests whose runtime is one thread.
pub(super) struct Counters {
    store: &'static Store,
    _guard: LocalRecorderGuard<'static>,
}

#[derive(Default)]
struct Store {
    counters: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
}

impl Counters {
    pub(super) fn here() -> Self {
        // Leaked: the guard wants a lifetime, and a test's process is short.
        let store: &'static Store = Box::leak(Box::default());
        Self { store, _guard: metrics::set_default_local_recorder(store) }
    }

    /// The sum of `name`'s series that have a label with this value.
    pub(super) fn total(&self, name: &str, label: &str) -> u64 {
        self.total_of(name, &[label])
    }

    /// The same, with all of these values.
    pub(super) fn total_of(&self, name: &str, labels: &[&str]) -> u64 {
        let counters = self.store.counters.lock().expect("not poisoned");
        let series = counters.iter().filter(|(key, _)| key.starts_with(name));
        let labelled =
            series.filter(|(key, _)| labels.iter().all(|label| key.split(' ').any(|part| part == *label)));
        labelled.map(|(_, count)| count.load(Ordering::SeqCst)).sum()
    }
}

impl Recorder for Store {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<_> = key.labels().map(|label| label.value()).collect();
        let name = format!("{} {}", key.name(), labels.join(" "));
        let mut counters = self.counters.lock().expect("not poisoned");
        Counter::from_arc(counters.entry(name).or_default().clone())
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
