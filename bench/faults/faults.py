#!/usr/bin/env python3
"""The long proofs that the bridge loses nothing, against a real Kafka; README.md says what each of them shows."""

import argparse
import sys
import traceback

import chaos
import clean_stops
import cycles
import fence
import grpc_matrix
import lost_offsets
import outage
import poison
from processes import Failure, end_on_signals, say

SCENARIOS = ["chaos", "clean-stops", "outage", "grpc-matrix", "poison", "cycles", "fence", "lost-offsets"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="+", choices=SCENARIOS, metavar="SCENARIO",
                        help=f"what to run: {', '.join(SCENARIOS)}")
    parser.add_argument("--binary", default="target/debug/cdnwarm", help="the bridge (default %(default)s)")
    parser.add_argument("--sink", help="the null Pub/Sub (default bench/sink/target/release/null-pubsub)")
    parser.add_argument("--scale", type=float, default=1.0,
                        help="how much of the long form; under 0.2 waiting times are the short form's, too "
                             "(default %(default)s)")
    parser.add_argument("--seed", type=int, help="chaos: repeats the faults of an earlier run")
    parser.add_argument("--strategy", choices=["range", "cooperative-sticky"], action="append",
                        help="chaos, cycles: only this one (default both)")
    parser.add_argument("--static", action="store_true", help="chaos: members have a --group-instance-id each")
    parser.add_argument("--minutes", type=float, default=15, help="outage: how long Pub/Sub is away in the long form "
                                                                  "(default %(default)s)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT",
                        help="grpc-matrix, poison, lost-offsets, outage: only the cases with this text in their name")
    parser.add_argument("--kafka-property", action="append", default=[], metavar="NAME=VALUE",
                        help="a further property for kafka-env's [consumer]")
    parser.add_argument("--bridge-argument", action="append", default=[], metavar="ARGUMENT",
                        help="a further argument of the bridge, written --bridge-argument=--pack=100")
    parser.add_argument("--work", help="where the directories with logs and data are made (default the system's)")
    parser.add_argument("--keep", action="store_true", help="keep them where everything held, too")
    return parser.parse_args()


def run(scenario, options):
    """True if everything held."""
    both = options.strategy or ["range", "cooperative-sticky"]
    match scenario:
        case "chaos":
            return all([chaos.run(options, strategy) for strategy in both])
        case "clean-stops":
            return clean_stops.run(options)
        case "outage":
            return outage.run(options)
        case "grpc-matrix":
            return grpc_matrix.run(options)
        case "poison":
            return poison.run(options)
        case "cycles":
            return all([cycles.run(options, strategy) for strategy in both])
        case "fence":
            return fence.run(options)
        case "lost-offsets":
            return lost_offsets.run(options)


def main():
    options = arguments()
    end_on_signals()
    violated = []
    for scenario in options.scenarios:
        try:
            if not run(scenario, options):
                violated.append(scenario)
        except Failure as failure:
            say(f"{scenario} could not be finished: {failure}")
            violated.append(scenario)
        except Exception:
            traceback.print_exc()
            violated.append(scenario)
    print(f"== {len(options.scenarios) - len(violated)} of {len(options.scenarios)} held"
          + (f"; not: {', '.join(violated)}" if violated else ""))
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
