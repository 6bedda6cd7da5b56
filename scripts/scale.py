#!/usr/bin/env python3
"""How many instances a rate of URLs takes, and what it costs: the tables of docs/scale.md, with your own figures if you like.

    scale.py [--rates 1000,100000] [--regions 10] [--pack 1] [--get-seconds 0.1] ...

Prints Markdown. Each default is explained in docs/scale.md, with where it was measured or read.
"""

import argparse
import math

TIB, GIB = 1 << 40, 1 << 30
# What Pub/Sub counts for a request at least.
LEAST_REQUEST_BYTES = 1000
LINES_AT_ONCE = 8


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    number = {"type": float}
    parser.add_argument("--rates", default="1000,100000,1000000", help="URLs a second, a comma between them")
    parser.add_argument("--regions", default="10,40", help="regions, a comma between them")
    parser.add_argument("--pack", default="1,100", help="URLs a message, a comma between them")
    parser.add_argument("--url-bytes", default=80, **number)
    parser.add_argument("--message-bytes", default=120, help="attributes, id and time of a message, without its URLs", **number)
    parser.add_argument("--get-seconds", default=0.1, help="from a GET to its verdict", **number)
    parser.add_argument("--concurrency", default=1000, help="of the service, and its --max-in-flight", **number)
    parser.add_argument("--serve-cpu-us", default=50, help="CPU microseconds of serve for one URL", **number)
    parser.add_argument("--bridge-cpu-us", default=1.5, help="CPU microseconds of bridge for one record", **number)
    parser.add_argument("--use", default=0.6, help="of an instance's CPU and concurrency, before there is another", **number)
    parser.add_argument("--instance-usd", default=0.0684, help="an hour of one instance: 1 vCPU, 512 MiB", **number)
    parser.add_argument("--bridge-usd", default=0.072, help="an hour of one member: 1 vCPU, 1 GiB", **number)
    parser.add_argument("--pubsub-usd", default=40, help="a TiB published or delivered", **number)
    parser.add_argument("--region-usd", default=0.05, help="a GiB to another region, on average", **number)
    return parser.parse_args()


def estimate(a, rate, regions, pack):
    """Of one rate: instances in each region, members of the bridge, pushes waiting in each region, USD an hour."""
    message = pack * (a.url_bytes + (1 if pack > 1 else 0)) + a.message_bytes
    messages = rate / pack
    push_seconds = a.get_seconds * math.ceil(pack / LINES_AT_ONCE)
    pushes_waiting = messages * push_seconds
    urls_waiting = rate * a.get_seconds
    serve = max(1, math.ceil(rate * a.serve_cpu_us / 1e6 / a.use), math.ceil(urls_waiting / (a.concurrency * a.use)))
    bridge = max(1, math.ceil(rate * a.bridge_cpu_us / 1e6 / a.use))
    hour = 3600 * messages
    pubsub = hour * (message + regions * max(message, LEAST_REQUEST_BYTES)) / TIB * a.pubsub_usd
    between = hour * message * (regions - 1) / GIB * a.region_usd
    run = serve * regions * a.instance_usd + bridge * a.bridge_usd
    return {
        "publish": rate * message / pack / 1e6, "pushes": messages, "waiting": pushes_waiting, "serve": serve,
        "bridge": bridge, "run": run, "pubsub": pubsub + between,
    }


def integers(text):
    return [int(part) for part in text.split(",")]


def main():
    a = parse()
    print("| URLs/s | regions | URLs a message | published MB/s | pushes/s a region | of them at once | instances a region | members of the bridge | Cloud Run USD/h | Pub/Sub USD/h | USD per million URLs |")
    print("|" + "---:|" * 11)
    for rate in integers(a.rates):
        for regions in integers(a.regions):
            for pack in integers(a.pack):
                e = estimate(a, rate, regions, pack)
                million = (e["run"] + e["pubsub"]) / (rate * 3600 / 1e6)
                print(f"| {rate:,} | {regions} | {pack} | {e['publish']:,.2f} | {e['pushes']:,.0f} | {e['waiting']:,.0f} "
                      f"| {e['serve']:,} | {e['bridge']} | {e['run']:,.2f} | {e['pubsub']:,.2f} | {million:,.2f} |")


if __name__ == "__main__":
    main()
