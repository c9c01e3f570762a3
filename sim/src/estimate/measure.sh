#!/bin/sh
# Makes the table that `starling-sim estimate` stands on:
#
#     cargo build --release -p starling-sim
#     sim/src/estimate/measure.sh target/release/starling-sim > measured.json
#     mv measured.json sim/src/estimate/measured.json
#
# About eight minutes on two cores, most of it full simulations. Needs jq. All of it comes from seeds, so that the
# same program makes the same table.
set -eu
sim=$1

here=$(dirname "$0")

# The runs of one mesh become one row: the mean, over all changes and crashes, of each percentile. Samples
# come in the order in which things happened, so each change is the next so many, and each crash too.
# Suspicion comes as long before the end of a lease as the lease is longer than four renewals.
row_of_full_runs='
    def mean: add / length;
    def percentile($percent): sort | .[([(length * $percent / 100 | ceil), 1] | max) - 1];
    def percentiles: {p50: percentile(50), p90: percentile(90), p99: percentile(99), p100: percentile(100)};
    def each($count): . as $all | [range(0; length; $count) | $all[. : . + $count] | percentiles];
    def mean_of_each(samples; $count): map(samples | each($count)) | add
        | {p50: map(.p50) | mean, p90: map(.p90) | mean, p99: map(.p99) | mean, p100: map(.p100) | mean};
    .nodes as $nodes
    | if any(.runs[]; (.samples.known | length) != 8 * ($nodes - 1)
              or (.samples.expired | length) != 4 * ($nodes - 4))
      then error("not every change or crash was seen by all") else . end
    | (.runs | mean_of_each(.samples.known; $nodes - 1)) as $known
    | (.runs | mean_of_each(.samples.expired; $nodes - 4)) as $expired
    | {by: "full", nodes: $nodes, interval_ms: $interval, rtt_ms: (2 * $latency + $jitter),
       jitter_ms: $jitter, loss: $loss, lease_ms: $lease, renew_ms: $renew, runs: (.runs | length),
       known_ms: $known, suspect_ms: ($expired | map_values(. - $lease + 4 * $renew)), expired_ms: $expired,
       messages_per_node_s: (.traffic.steady | map(.messages) | add), bytes_per_node_s}'

# full NODES LATENCY_MS JITTER_MS INTERVAL_MS LOSS SEEDS
full() {
    "$sim" run "$here/measure.toml" --nodes "$1" --set "latency=${2}ms" --set "jitter=${3}ms" \
        --set "interval=${4}ms" --set "loss=$5" --set lease=30s --set renew=5s --seeds "$6" --samples -o json |
        jq -c --argjson latency "$2" --argjson jitter "$3" --argjson interval "$4" --argjson loss "$5" \
            --argjson lease 30000 --argjson renew 5000 "$row_of_full_runs"
}

# model NODES INTERVAL_MS RTT_MS JITTER_MS LOSS
model() {
    "$sim" model --nodes "$1" --interval "$2ms" --rtt "$3ms" --jitter "$4ms" --loss "$5" \
        --lease 30s --renew 5s --seeds 4 --row
}

{
    full 10 20 5 1000 0 4
    full 10 1 0 1000 0 4
    for loss in 0 0.05 0.2; do full 30 20 5 1000 $loss 4; done
    full 30 1 0 1000 0 4
    full 30 50 0 1000 0 4
    full 30 20 5 200 0 2
    for loss in 0 0.05; do full 100 20 5 1000 $loss 2; done
    for loss in 0 0.05; do full 200 20 5 1000 $loss 2; done

    for nodes in 10 30 100 200 500 1000 2000 5000 10000; do
        for loss in 0 0.01 0.05 0.2; do model $nodes 1000 45 5 $loss; done
    done
    for nodes in 30 200 1000 10000; do
        for loss in 0 0.05; do
            model $nodes 1000 2 0 $loss
            model $nodes 1000 100 0 $loss
            model $nodes 1000 300 0 $loss
            model $nodes 200 45 5 $loss
            model $nodes 5000 45 5 $loss
            model $nodes 10000 1 0 $loss
        done
    done
} | sed '1s/^/[\n/; $!s/$/,/; $s/$/\n]/'
