//! PURE: what an attempt that failed means: what the client is told of it, and what it costs to make
//! another.

use starling_transport::header::RefusalReason;

use crate::endpoint::Endpoint;
use crate::patience::Elapsed;
use crate::proxy::failure::{Failure, Flag, Reset};
use crate::retry::Fate;
use crate::upstream::{ConnectFailure, Refusal, SendError, SendFailure};

/// What a client is told of a request that got no answer.
pub(crate) fn failure_of(failure: &SendFailure, endpoint: &Endpoint) -> Failure {
    let node = &endpoint.target().owner.node;
    match failure {
        SendFailure::Connect(failure) => failure_of_connect(failure, endpoint),
        SendFailure::Broken(error) | SendFailure::Stale(error) => {
            let detail = format!("node {node} ended the connection before its answer: {error}");
            Failure { reset: failure.reset_code().map(Reset), ..Failure::new(Flag::ConnectionEnded, detail) }
        }
        SendFailure::Unprocessed(error) => Failure::new(
            Flag::Overflow,
            format!("node {node} took the request and did not process it: {error}"),
        ),
        SendFailure::Silent => {
            Failure::new(Flag::ConnectionEnded, format!("node {node} fell silent before its answer"))
        }
    }
}

/// What a client is told when the callee's sidecar answers that its workload took nothing.
pub(crate) fn failure_of_refusal(refusal: Refusal, endpoint: &Endpoint) -> Failure {
    let node = &endpoint.target().owner.node;
    match refusal {
        Refusal::Denied => Failure::new(Flag::Denied, format!("node {node} no longer lets this caller in")),
        Refusal::Overloaded => {
            Failure::new(Flag::Overflow, format!("node {node} carries as much work as it may"))
        }
        Refusal::Other => Failure::new(Flag::ConnectFailure, "the workload does not accept connections"),
    }
}

/// What a client is told of an endpoint that took nothing.
pub(crate) fn failure_of_connect(failure: &ConnectFailure, endpoint: &Endpoint) -> Failure {
    let node = &endpoint.target().owner.node;
    let (flag, what) = match failure {
        ConnectFailure::Unreachable(_) | ConnectFailure::HungUp => {
            (Flag::ConnectFailure, "cannot be reached")
        }
        ConnectFailure::Refused(RefusalReason::Denied, _) => (Flag::Denied, "does not let this caller in"),
        ConnectFailure::Refused(RefusalReason::Overloaded, _) => {
            (Flag::Overflow, "has as much work as it may")
        }
        ConnectFailure::Refused(..) => (Flag::ConnectFailure, "refused"),
    };
    Failure::new(flag, format!("node {node} {what}: {failure}"))
}

/// What a client is told of a call whose time is over; `where_to` is what was waited for.
pub(crate) fn failure_of_elapsed(elapsed: Elapsed, where_to: &str) -> Failure {
    let why = match elapsed {
        Elapsed::Total => "did not answer within the time that the request has",
        Elapsed::Attempt => "did not answer within the time of an attempt",
        Elapsed::Idle => "neither sent nor took anything for longer than idle_timeout",
    };
    Failure::new(Flag::TimedOut, format!("{where_to} {why}"))
}

/// What sending a request again costs that got no answer.
pub(crate) fn fate_of(error: &SendError) -> Fate {
    match &error.failure {
        SendFailure::Connect(failure) => fate_of_connect(failure),
        SendFailure::Unprocessed(_) => Fate::Refused,
        // A connection that was gone before anything was sent says nothing of the workload.
        _ if error.unsent.is_some() => Fate::PassedOver,
        SendFailure::Broken(_) | SendFailure::Stale(_) | SendFailure::Silent => Fate::Lost,
    }
}

/// The same of a connection.
pub(crate) fn fate_of_connect(failure: &ConnectFailure) -> Fate {
    match failure {
        // The node is dead or the instance leaves: nobody there has too much to do.
        ConnectFailure::Unreachable(_)
        | ConnectFailure::HungUp
        | ConnectFailure::Refused(RefusalReason::Draining | RefusalReason::NoSuchInstance, _) => {
            Fate::PassedOver
        }
        ConnectFailure::Refused(..) => Fate::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_over_who_is_not_there_is_free_and_asking_who_refuses_is_not() {
        let refused = |reason| ConnectFailure::Refused(reason, String::new());
        for (failure, fate) in [
            (ConnectFailure::Unreachable(String::new()), Fate::PassedOver),
            (refused(RefusalReason::Draining), Fate::PassedOver),
            (refused(RefusalReason::NoSuchInstance), Fate::PassedOver),
            (refused(RefusalReason::Overloaded), Fate::Refused),
            (refused(RefusalReason::WorkloadUnreachable), Fate::Refused),
        ] {
            assert_eq!(fate_of_connect(&failure), fate, "{failure:?}");
        }
        let silent = SendError { failure: SendFailure::Silent, unsent: None };
        assert_eq!(fate_of(&silent), Fate::Lost);
    }
}
