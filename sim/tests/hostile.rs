//! Attacks are part of a run: the same seed makes the same one, what attackers write reaches others,
//! and the product refuses it.

use std::process::Command;

use serde_json::Value;

fn report(arguments: &str) -> Value {
    let mut program = Command::new(env!("CARGO_BIN_EXE_starling-sim"));
    let output =
        program.args(format!("run {arguments} -o json").split_whitespace()).output().expect("it runs");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What records were refused, by reason.
fn refused(report: &Value, reason: &str) -> u64 {
    report["runs"][0]["rejected_by"][reason].as_u64().unwrap_or_default()
}

#[test]
fn an_attack_repeats_with_its_seed() {
    for attack in ["forge", "equivocate"] {
        let asked = format!("hostile-{attack} --nodes 6 --set length=6s --seed");
        let first = report(&format!("{asked} 3"));
        assert_eq!(first["trace_hash"], report(&format!("{asked} 3"))["trace_hash"], "{attack}");
        assert_ne!(first["trace_hash"], report(&format!("{asked} 4"))["trace_hash"], "{attack}");
    }
}

#[test]
fn what_attackers_write_is_well_formed_and_refused_for_what_it_says() {
    let forged = report("hostile-forge --nodes 6");
    for reason in ["bad_signature", "wrong_name", "may_not_announce", "bad_renewal"] {
        assert!(refused(&forged, reason) > 0, "{reason}: {forged}");
    }
    let accused = report("hostile-accuse --nodes 8");
    for reason in ["bad_signature", "not_a_watcher"] {
        assert!(refused(&accused, reason) > 0, "{reason}: {accused}");
    }
    let resurrected = report("hostile-resurrect --nodes 6");
    for reason in ["bad_renewal", "unasked"] {
        assert!(refused(&resurrected, reason) > 0, "{reason}: {resurrected}");
    }
    for report in [forged, accused, resurrected] {
        assert_eq!(report["checks"]["failed"], 0, "{report}");
        assert_eq!(report["evictions_false"], 0, "{report}");
        assert_eq!(report["suspicions_false"], 0, "{report}");
    }
}

#[test]
fn who_asks_or_sends_too_much_is_refused_and_cut_off() {
    let flooded = report("hostile-flood --nodes 8");
    for reason in ["over_budget", "malformed", "bad_signature"] {
        assert!(refused(&flooded, reason) > 0, "{reason}: {flooded}");
    }
    let overrun = report("hostile-overrun --nodes 8");
    assert!(refused(&overrun, "shunned") > 0, "{overrun}");
}
