#!/bin/sh
# Makes the table that `starling-sim estimate` stands on:
#
#     cargo build --release -p starling-sim
#     sim/src/estimate/measure.sh target/release/starling-sim > measured.json
#     mv measured.json sim/src/estimate/measured.json
#
# Most of it is full simulations, the largest last; with `model` as second argument it leaves those out, and takes a
# minute. Needs jq. All of it comes from seeds, so that the same program makes the same table.
set -eu
sim=$1
only=${2:-}

here=$(dirname "$0")

# The runs of one mesh become one row: the mean, over all changes and crashes, of each percentile. Samples
# come in the order in which things happened, so each change is the next so many, and each crash too: those who
# have crashed themselves suspect nobody any more, and forget nobody.
row_of_full_runs='
    def mean: add / length;
    def percentile($percent): sort | .[([(length * $percent / 100 | ceil), 1] | max) - 1];
    def percentiles: {p50: percentile(50), p90: percentile(90), p99: percentile(99), p100: percentile(100)};
    def each($counts): . as $all
        | [range(0; $counts | length) as $nth | ($counts[:$nth] | add // 0) as $from
           | $all[$from : $from + $counts[$nth]] | percentiles];
    def mean_of_each(samples; $counts): map(samples | each($counts)) | add
        | {p50: map(.p50) | mean, p90: map(.p90) | mean, p99: map(.p99) | mean, p100: map(.p100) | mean};
    .nodes as $nodes
    | [range(0; 8) | $nodes - 1] as $changes
    | [range(1; 5) | $nodes - .] as $suspicions
    | [range(0; 4) | $nodes - 4] as $expiries
    | if any(.runs[].samples; (.known | length) != ($changes | add)
              or (.suspect | length) != ($suspicions | add) or (.expired | length) != ($expiries | add))
      then error("not every change or crash was seen by all, once") else . end
    | {by: "full", nodes: $nodes, rtt_ms: (2 * $latency + $jitter),
       jitter_ms: $jitter, loss: $loss, lease_ms: 120000, renew_ms: 30000, runs: (.runs | length),
       known_ms: (.runs | mean_of_each(.samples.known; $changes)),
       suspect_ms: (.runs | mean_of_each(.samples.suspect; $suspicions)),
       expired_ms: (.runs | mean_of_each(.samples.expired; $expiries)),
       messages_per_node_s: (.traffic.steady | map(.messages) | add), bytes_per_node_s}'

# full NODES LATENCY_MS JITTER_MS LOSS SEEDS
full() {
    [ "$only" = model ] && return
    "$sim" run "$here/measure.toml" --nodes "$1" --set "latency=${2}ms" --set "jitter=${3}ms" \
        --set "loss=$4" --seeds "$5" --samples -o json |
        jq -c --argjson latency "$2" --argjson jitter "$3" --argjson loss "$4" "$row_of_full_runs"
}

# model NODES RTT_MS JITTER_MS LOSS
model() {
    "$sim" model --nodes "$1" --rtt "$2ms" --jitter "$3ms" --loss "$4" --lease 120s --renew 30s --seeds 4 --row
}

{
    for nodes in 10 30 100 200 500 1000 2000 5000 10000; do
        for loss in 0 0.05 0.2; do model $nodes 45 5 $loss; done
    done
    for nodes in 30 200 1000 10000; do
        for loss in 0 0.2; do
            model $nodes 2 0 $loss
            model $nodes 150 0 $loss
        done
    done

    for loss in 0 0.05 0.2; do full 10 20 5 $loss 4; done
    for loss in 0 0.05 0.2; do full 30 20 5 $loss 4; done
    full 30 1 0 0 4
    full 30 75 0 0 4
    for loss in 0 0.2; do full 100 20 5 $loss 2; done
    full 200 20 5 0 2
    full 500 20 5 0 1
} | sed '1s/^/[\n/; $!s/$/,/; $s/$/\n]/'
