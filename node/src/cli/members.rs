//! `starling members`: who is in the mesh, what they cost, and how far they agree.

use super::ask::Asked;
use super::output::{Failure, Output};
use super::show::{locality, print};
use super::table::{age, bytes, table};
use crate::admin::members::{ConvergenceView, MemberView, TrafficView};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Show each one's incarnation, and its gossip by kind of message, too.
    #[arg(long)]
    wide: bool,
    /// Say how many members know what the local node knows, instead of listing them.
    #[arg(long, conflicts_with = "wide")]
    converged: bool,
    #[command(flatten)]
    asked: Asked,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let asked = &arguments.asked;
    if arguments.converged {
        let convergence: ConvergenceView = asked.get("/v1/convergence")?;
        let json = serde_json::to_value(convergence).map_err(anyhow::Error::from)?;
        output.print(&told(&convergence), &json);
        return Ok(());
    }
    let members: Vec<MemberView> = asked.get("/v1/members")?;
    print(output, &members, if arguments.wide { wide_table } else { members_table })
}

/// `/v1/convergence` for people.
fn told(convergence: &ConvergenceView) -> String {
    let ConvergenceView { members, heard, equal, share, oldest_difference_ms } = *convergence;
    let mut told = format!(
        "{equal} of the {heard} members heard lately know what this node knows ({share:.1}%); \
         {members} are present"
    );
    if let Some(since) = oldest_difference_ms {
        told.push_str(&format!("\nthe longest to differ has done so for {}", age(since)));
    }
    told
}

/// `/v1/members` for people.
pub(crate) fn members_table(members: &[MemberView]) -> String {
    let row = |member: &MemberView| {
        [
            member.node.clone(),
            member.state.clone(),
            member.address.clone(),
            locality(&member.locality),
            age(member.lease_age_ms),
            round_trip(member),
            gossip(member),
            member.identity.clone(),
            member.reason.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = members.iter().map(row).collect();
    table(["node", "state", "address", "locality", "renewed", "rtt", "gossip", "identity", ""], &rows)
}

fn wide_table(members: &[MemberView]) -> String {
    let row = |member: &MemberView| {
        [
            member.node.clone(),
            member.state.clone(),
            member.incarnation.to_string(),
            member.address.clone(),
            locality(&member.locality),
            age(member.lease_age_ms),
            round_trip(member),
            gossip(member),
            kinds(member),
            member.identity.clone(),
            member.reason.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = members.iter().map(row).collect();
    let titles = [
        "node",
        "state",
        "incarnation",
        "address",
        "locality",
        "renewed",
        "rtt",
        "gossip",
        "sent/received by kind",
        "identity",
        "",
    ];
    table(titles, &rows)
}

fn round_trip(member: &MemberView) -> String {
    member.rtt_us.map_or_else(|| "-".to_owned(), |micros| format!("{:.1}ms", micros as f64 / 1000.0))
}

/// All bytes of gossip, both ways.
fn gossip(member: &MemberView) -> String {
    let both = |traffic: &TrafficView| traffic.sent.saturating_add(traffic.received);
    let sum = member.traffic.values().map(both).fold(0, u64::saturating_add);
    if member.traffic.is_empty() { "-".to_owned() } else { bytes(sum) }
}

fn kinds(member: &MemberView) -> String {
    let kind = |(kind, traffic): (&String, &TrafficView)| {
        format!("{kind} {}/{}", bytes(traffic.sent), bytes(traffic.received))
    };
    let kinds: Vec<String> = member.traffic.iter().map(kind).collect();
    if kinds.is_empty() { "-".to_owned() } else { kinds.join(" ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn member(traffic: &serde_json::Value) -> MemberView {
        let member = json!({
            "node": "web-1", "identity": "spiffe://acme/svc/web", "address": "10.0.0.1:7400",
            "state": "suspect", "reason": "2 of its watchers cannot reach it",
            "doubt": { "watchers": 2, "by_own_probe": false, "age_ms": 1500 },
            "incarnation": 7, "lease_age_ms": 31_000, "lease_ms": 120_000,
            "locality": { "region": "eu", "zone": null, "site": null }, "version": "starling/1",
            "rtt_us": 1_250, "traffic": traffic,
        });
        serde_json::from_value(member).expect("a member")
    }

    #[test]
    fn gossip_is_summed_up_and_told_by_kind_where_there_is_room() {
        let talks =
            json!({ "talk": { "sent": 12_000, "received": 900 }, "ping": { "sent": 0, "received": 80 } });
        let members = [member(&talks), member(&json!({}))];
        let narrow = members_table(&members);
        let cells = |table: &str, line: usize| {
            let line = table.lines().nth(line).expect("a line").to_owned();
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let expected =
            ["web-1", "suspect", "10.0.0.1:7400", "eu", "31s", "1.2ms", "12KB", "spiffe://acme/svc/web"];
        assert_eq!(cells(&narrow, 1)[..8], expected);
        assert!(narrow.contains("2 of its watchers cannot reach it"), "{narrow}");
        assert_eq!(cells(&narrow, 2)[6], "-");
        let wide = wide_table(&members);
        assert_eq!(
            (cells(&wide, 1)[2].as_str(), cells(&wide, 1)[8].as_str()),
            ("7", "ping 0B/80B talk 12KB/900B")
        );
    }

    #[test]
    fn convergence_is_a_line_or_two() {
        let all =
            ConvergenceView { members: 50, heard: 8, equal: 8, share: 100.0, oldest_difference_ms: None };
        assert_eq!(
            told(&all),
            "8 of the 8 members heard lately know what this node knows (100.0%); 50 are present"
        );
        let some = ConvergenceView { equal: 6, share: 75.0, oldest_difference_ms: Some(3_200), ..all };
        assert!(told(&some).ends_with("\nthe longest to differ has done so for 3s"), "{}", told(&some));
    }
}
