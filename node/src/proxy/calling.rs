//! How a request is sent to the local workload: in the version of HTTP that it speaks, and once more if
//! that is safe.
//!
//! Caller and workload mostly speak the same, and then nothing is done here but sending. Otherwise the
//! request is told in the workload's version, which its first connections show: one that does not
//! speak a version has not processed anything in it, so the request can be told anew.

use starling_gossip::clock::Clock;
use starling_transport::header::RefusalReason;

use crate::proxy::forward::Underway;
use crate::proxy::kept::{self, Before};
use crate::proxy::spare::Spare;
use crate::proxy::workload::Workload;
use crate::proxy::{headers, translate, websocket};
use crate::telemetry::exchange::{Direction, count_retry};
use crate::upstream::{Answered, ConnectFailure, HttpVersion, SendError, SendFailure};

/// Makes sure that the workload can be connected to for callers of `version`.
pub(crate) async fn warm(
    workload: &Workload,
    version: HttpVersion,
    clock: &Clock,
) -> Result<(), ConnectFailure> {
    let hop = workload.spoken.version_for(version, false, clock.now());
    match workload.upstream.warm(hop).await {
        Err(failure) if failure.is_other_version() => {
            workload.spoken.handle_refusal(hop, clock.now());
            let warmed = workload.upstream.warm(hop.other()).await;
            if warmed.is_err() {
                workload.spoken.forget();
            }
            warmed
        }
        // What that means shows when there is something to say: it may only be about to stop.
        Err(ConnectFailure::HungUp) => workload.upstream.warm(hop.other()).await,
        warmed => warmed,
    }
}

/// Sends to the workload a request that came in `version`; the answer is told in the same. `again` gives the request once
/// more, if it may be sent twice.
pub(crate) async fn send(
    workload: &Workload,
    request: Underway,
    version: HttpVersion,
    again: impl FnOnce() -> Option<Underway>,
    clock: &Clock,
) -> Result<Answered, SendError> {
    let request = if workload.spoken.has_answered(version) {
        match send_in(workload, request, version, again, clock).await {
            Err(error) if may_not_speak(version, &error) => {
                // The workload may be another program than the one that answered before.
                workload.spoken.forget();
                match error {
                    SendError { unsent: Some(unsent), .. } => unsent,
                    error => return Err(error),
                }
            }
            sent => return sent,
        }
    } else {
        request
    };
    // On the heap: no ordinary request's future needs room for it.
    Box::pin(send_told(workload, request, version, clock)).await
}

/// Why a request that was sent in a version which may not be spoken got no answer.
enum Unanswered {
    Failed(SendError),
    /// It is not spoken. The request can be told anew, unless too much of its body has gone.
    NotSpoken(Result<Underway, SendError>),
}

/// The same where it is not known that the workload speaks `version`.
async fn send_told(
    workload: &Workload,
    request: Underway,
    version: HttpVersion,
    clock: &Clock,
) -> Result<Answered, SendError> {
    let in_need = version == HttpVersion::Http2 && headers::needs_http2(request.headers());
    let mut first = workload.spoken.version_for(version, in_need, clock.now());
    if workload.spoken.has_answered(version.other()) && !in_need && !kept::fits(request.body()) {
        // No probe: it could not be sent once more.
        first = version.other();
    }
    let tried = match try_in(workload, request, first, in_need, clock).await {
        Err(Unanswered::NotSpoken(again)) => {
            workload.spoken.handle_refusal(first, clock.now());
            let second = try_in(workload, again?, first.other(), in_need, clock).await;
            if second.is_err() && !in_need {
                // It fails in either: that says nothing of what it speaks.
                workload.spoken.forget();
            }
            second
        }
        tried => tried,
    };
    match tried {
        Ok(mut answered) => {
            translate::answer(&mut answered.response, version);
            Ok(answered)
        }
        Err(Unanswered::Failed(error) | Unanswered::NotSpoken(Err(error))) => Err(error),
        Err(Unanswered::NotSpoken(Ok(unsent))) => Err(not_spoken(first.other(), unsent)),
    }
}

/// Sends `request` in `hop`, and finds out whether the workload speaks that.
async fn try_in(
    workload: &Workload,
    mut request: Underway,
    hop: HttpVersion,
    in_need: bool,
    clock: &Clock,
) -> Result<Answered, Unanswered> {
    if in_need && hop == HttpVersion::Http1 {
        return Err(Unanswered::Failed(not_spoken(HttpVersion::Http2, request)));
    }
    let mut handshake = None;
    if HttpVersion::of(request.version()) != hop {
        if hop == HttpVersion::Http2 {
            handshake = websocket::enter_http2(&mut request);
        }
        if translate::request(&mut request, hop, workload.service.as_str()).is_err() {
            let detail = format!("the request cannot be told in {hop}, which the workload speaks");
            let failure = ConnectFailure::Refused(RefusalReason::UnsupportedKind, detail);
            return Err(Unanswered::Failed(SendError { failure: failure.into(), unsent: Some(request) }));
        }
        // Of HTTP/2, hyper hears no 100.
        request.body().send_anyway();
    }
    if handshake.is_some()
        && let Err(failure) = takes_websockets(workload).await
    {
        return Err(Unanswered::Failed(SendError { failure: failure.into(), unsent: Some(request) }));
    }
    let is_new = !workload.spoken.has_answered(hop);
    let (request, before) = if is_new && hop == HttpVersion::Http1 {
        let (request, before) = kept::keep(request);
        (request, Some(before))
    } else {
        (request, None)
    };
    let spare = Spare::of(&request);
    match send_in(workload, request, hop, || spare?.request(), clock).await {
        Ok(mut answered) => {
            workload.spoken.handle_answer(hop);
            handshake.into_iter().for_each(|made| made.answer_in_http1(&mut answered.response));
            Ok(answered)
        }
        Err(error) if is_not_spoken(workload, hop, (is_new, in_need), &error).await => {
            let SendError { failure, unsent } = error;
            let again = unsent.or_else(|| before.and_then(Before::request));
            Err(Unanswered::NotSpoken(again.ok_or(SendError { failure, unsent: None })))
        }
        Err(error) => Err(Unanswered::Failed(error)),
    }
}

/// Whether a workload that has spoken HTTP/2 takes WebSockets in it, or why not.
async fn takes_websockets(workload: &Workload) -> Result<(), ConnectFailure> {
    match workload.upstream.takes_websockets().await {
        Ok(true) => Ok(()),
        Ok(false) => {
            let detail = "the workload speaks HTTP/2, and takes no WebSockets in it (RFC 8441)".to_owned();
            Err(ConnectFailure::Refused(RefusalReason::UnsupportedKind, detail))
        }
        Err(failure) => {
            if failure.is_other_version() {
                // It is another program than the one that did.
                workload.spoken.forget();
            }
            Err(failure)
        }
    }
}

/// Whether `error` comes of a workload that does not speak `hop`; then it has processed nothing. One that
/// hangs up may only be about to stop; then it takes no second connection, and who is `in_need` of `hop` looks
/// elsewhere.
async fn is_not_spoken(
    workload: &Workload,
    hop: HttpVersion,
    (is_new, in_need): (bool, bool),
    error: &SendError,
) -> bool {
    match &error.failure {
        SendFailure::Connect(ConnectFailure::HungUp) => {
            !in_need || matches!(workload.upstream.warm(hop).await, Err(ConnectFailure::HungUp))
        }
        SendFailure::Connect(failure) => failure.is_other_version(),
        // It is asked, for garbage cannot be read either.
        _ if is_new && may_not_speak(hop, error) => workload.upstream.warm(HttpVersion::Http2).await.is_ok(),
        _ => false,
    }
}

/// Whether `error` may come of that. Who speaks only HTTP/2 says so before it hears anything, which is seen
/// by its first bytes, or came unasked and ended the connection before anything was sent.
fn may_not_speak(version: HttpVersion, error: &SendError) -> bool {
    match &error.failure {
        SendFailure::Connect(failure) => failure.is_other_version(),
        SendFailure::Broken(_) => version == HttpVersion::Http1 && error.unsent.is_some(),
        _ => false,
    }
}

fn not_spoken(version: HttpVersion, request: Underway) -> SendError {
    SendError { failure: ConnectFailure::other_version(version).into(), unsent: Some(request) }
}

/// Whether the workload has not acted on the request. One that does not speak what the caller needs is
/// not worth a look elsewhere: it is no fault that passes.
pub(crate) fn is_unsent(error: &SendError) -> bool {
    match &error.failure {
        SendFailure::Connect(failure) if failure.is_other_version() => false,
        SendFailure::Unprocessed(_) => true,
        _ => error.unsent.is_some(),
    }
}

/// Sends to the workload; once more if it closed a kept connection just then, and the request may
/// be sent twice, or if it says that it did not process it.
async fn send_in(
    workload: &Workload,
    request: Underway,
    version: HttpVersion,
    again: impl FnOnce() -> Option<Underway>,
    clock: &Clock,
) -> Result<Answered, SendError> {
    let upstream = &workload.upstream;
    let SendError { failure, unsent } = match upstream.send(request, version, || false).await {
        Err(error) => error,
        sent => return sent,
    };
    let is_unsent = unsent.is_some();
    let request = match unsent {
        None => again(),
        Some(unsent) if matches!(failure, SendFailure::Unprocessed(_)) => Some(unsent),
        unsent => return Err(SendError { failure, unsent }),
    };
    match request {
        Some(request) if may_repeat(workload, &failure, version, clock) => {
            Box::pin(upstream.send_again(request, version)).await
        }
        request => Err(SendError { failure, unsent: request.filter(|_| is_unsent) }),
    }
}

/// An HTTP/1.1 connection that was kept had an answer before: a workload that ends it now is one that
/// closes what is idle, and one that fails every request has no kept connection. On HTTP/2 the two
/// look alike, so there the budget decides.
fn may_repeat(workload: &Workload, failure: &SendFailure, version: HttpVersion, clock: &Clock) -> bool {
    let repeats = match (failure, version) {
        (SendFailure::Stale(_), _) => true,
        (SendFailure::Broken(_) | SendFailure::Unprocessed(_), HttpVersion::Http2) => {
            workload.repeats.take_retry(clock.now())
        }
        _ => return false,
    };
    count_retry(Direction::Inbound, workload.service.as_str(), repeats);
    repeats
}
