//! Waiting until something holds, for as long as a busy machine may need.

use std::time::Duration;

/// Five times the longest thing anybody waits for here, a connection's idle timeout of 30 s; nothing
/// waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// How often a condition is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// Fails the test when `future` takes longer than [`PATIENCE`].
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_elapsed) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

/// Waits until `look` finds something, and gives it.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    })
    .await
}
