"""Records that no message can carry: the partition moves on. Batches that are corrupt: it stops, or skips them. None is silent."""

import re
import time

from bench import Bench
from members import reported
from processes import run_tool, say, wait_until
from segments import break_batch

MOVE_ON_SECONDS = 30
GOOD = 10
REFUSED = "poison-that-pubsub-refuses"
HEADERS = {"header-not-utf8": [b"warm-regions=\xff\xfe"],
           "101-headers": [b"h-%d=x" % number for number in range(101)],
           "long-header-value": [b"warm-header-accept=" + b"v" * 1100],
           "long-header-name": [b"warm-header-" + b"n" * 300 + b"=x"]}
KINDS = ["null", "empty", "over-10-mb", REFUSED, *HEADERS]
POSITIONS = ["first", "middle", "last"]
PLACES = [(kind, position) for kind in KINDS for position in POSITIONS]
DEAD_PUBSUB = "projects/bench/topics/dead"
# (codec, what is broken, whether checksums are looked at). Without checksums, a body that is not compressed is forwarded, and
# framing that is broken is silent.
CORRUPT = [("none", "body", "true"), ("none", "framing", "true"), ("zstd", "body", "true"), ("gzip", "body", "true"),
           ("zstd", "body", "false"), ("gzip", "body", "false")]


def run(options):
    with Bench("poison", options) as bench:
        bench.sink.faults({"kind": "refuse_data", "contains": REFUSED})
        for name, arguments in {"log": (), "kafka": ("--dead-letter", "dead"),
                                "pubsub": ("--dead-letter", DEAD_PUBSUB)}.items():
            if all(text in f"records-{name}" for text in options.only):
                records(bench, name, arguments)
        for checked in ("true", "false"):
            if all(text in f"corrupt-{checked}" for text in options.only):
                corrupt_batches(bench, checked)
        return bench.verdict.print()


def produce(bench, topic, partition, values, headers=(), *settings):
    """Appends these to one partition, in one batch; None is a null value."""
    # kcat sends an empty or null value only where there is a key.
    lines = b"".join(b"key:" + (value or b"") + b"\n" for value in values)
    command = ["kcat", "-P", "-b", bench.cluster.bootstrap, "-t", topic, "-p", str(partition), "-K:",
               "-X", "message.max.bytes=33554432", "-X", "linger.ms=100", *settings]
    if values == [None]:
        command.append("-Z")
    run_tool([*command, *(argument for header in headers for argument in (b"-H", header))], data=lines)


def value_of(kind):
    return {"null": None, "empty": b"", "over-10-mb": b"x" * (10_500_000),
            REFUSED: f"http://cdn.example.com/{REFUSED}".encode()}.get(kind, b"http://cdn.example.com/" + kind.encode())


def good(partition, half):
    return [f"http://cdn.example.com/{partition}/{half}/{number}".encode() for number in range(GOOD)]


def records(bench, name, arguments):
    """Every kind of poison as first, middle and last record of a partition of its own, with one dead letter."""
    topic, cluster, verdict = f"poison-{name}", bench.cluster, bench.verdict
    cluster.create_topic(topic, len(PLACES), max_message_bytes=33554432)
    if name == "kafka":
        cluster.create_topic("dead", 1, max_message_bytes=33554432)
    poison = {}
    for partition, (kind, position) in enumerate(PLACES):
        if position != "first":
            produce(bench, topic, partition, good(partition, 0))
        poison[partition, 0 if position == "first" else GOOD] = kind
        produce(bench, topic, partition, [value_of(kind)], HEADERS.get(kind, ()))
        if position != "last":
            produce(bench, topic, partition, good(partition, 1))
    ends = cluster.ends(topic, len(PLACES))
    everything = {(partition, offset) for partition, end in ends.items() for offset in range(end)}
    sink = bench.new_sink(f"sink-{topic}")
    sink.faults({"kind": "refuse_data", "contains": REFUSED})
    env = bench.kafka_env(topic, f"kafka-env-{topic}", auto_offset_reset="earliest",
                          fetch_message_max_bytes=20_000_000)
    member = bench.member(f"bridge-{topic}", env, topic, arguments, sink)
    member.start()
    places = {(p, o) for p, o in everything if (p, o) not in poison}
    arrived, started = set(), time.monotonic()

    def accounted():
        arrived.update((p, offset) for p, offsets, _ in sink.accepted() for offset in offsets)
        given = dead_letters(bench, name, topic, member, arrived & set(poison))
        return given if places <= arrived and set(poison) <= set(given) else None

    try:
        given = wait_until("all is accounted for", accounted, MOVE_ON_SECONDS + 15, [member.process])
        seconds = time.monotonic() - started
        verdict.check(seconds <= MOVE_ON_SECONDS, f"{topic}: moved on only after {seconds:.1f} s")
        say(f"{topic}: all {len(poison)} poison records accounted for after {seconds:.1f} s, such as "
            f"{next(iter(given.values()))!r}")
        verdict.check(all(given[place] for place in poison), f"{topic}: a dead letter has no reason")
    except Exception as failure:
        given = dead_letters(bench, name, topic, member, arrived & set(poison))
        silent = sorted({(poison[place], PLACES[place[0]][1]) for place in set(poison) - set(given)})
        held = sorted({PLACES[place[0]] for place in places - arrived})
        verdict.violated(f"{topic}: poison in no dead letter: {silent}; good records held up behind: {held}; "
                         f"{str(failure)[:300]}")
    verdict.figure(f"{topic} poison records", len(poison))
    member.stop()
    member.check(verdict)
    member.process = None


def dead_letters(bench, name, topic, member, arrived):
    """{(partition, offset): reason} of what is in the dead letter, or in the log where there is none.

    What Pub/Sub refuses for its data it refuses in a dead letter, too: then the log has it.
    """
    given = reported(member.lines())
    if name == "kafka":
        for headers in bench.cluster.read("dead", "%h\n"):
            text = headers.decode(errors="replace")
            at = {key: re.search(rf"kafka-{key}=([^,]*)", text) for key in ("topic", "partition", "offset")}
            reason = re.search(r"reason=(.+?)(?:,[a-z-]+=|$)", text)
            if all(at.values()) and at["topic"].group(1) == topic:
                place = int(at["partition"].group(1)), int(at["offset"].group(1))
                given[place] = reason.group(1) if reason else ""
    if name == "pubsub":
        # The sink writes down coordinates and no other attributes; poison never comes to the topic itself.
        given.update({place: "in the dead letter" for place in arrived})
    return given


def corrupt_batches(bench, checked):
    """The first, middle and last batch of a partition each corrupted on the broker's disk: stopped at, and then skipped."""
    kinds = [(codec, how) for codec, how, crcs in CORRUPT if crcs == checked]
    cluster, verdict, topic = bench.cluster, bench.verdict, f"corrupt-{checked}"
    partitions = 3 * len(kinds)
    # One more partition is whole.
    cluster.create_topic(topic, partitions + 1)
    for partition in range(partitions + 1):
        for half in range(3):
            codec = kinds[partition // 3][0] if partition < partitions else "none"
            produce(bench, topic, partition, good(partition, half), (), "-z", codec)
    cluster.stop()
    corrupt = {}
    for partition in range(partitions):
        how = kinds[partition // 3][1]
        corrupt.update({(partition, offset): (kinds[partition // 3], POSITIONS[partition % 3])
                        for offset in break_batch(cluster.segment(topic, partition), partition % 3, how)})
    cluster.resume()
    first = {partition: min(offset for place, offset in corrupt if place == partition) for partition in range(partitions)}
    everything = {(p, o) for p in range(partitions + 1) for o in range(3 * GOOD)}
    sink = bench.new_sink(f"sink-{topic}")
    env = bench.kafka_env(topic, f"kafka-env-{topic}", auto_offset_reset="earliest", check_crcs=checked)

    stopped = bench.member(f"bridge-{topic}-stopped", env, topic, (), sink)
    before = {(p, o) for p, o in everything if o < first.get(p, 3 * GOOD)}
    arrived = set()
    run_until(bench, stopped, sink, arrived, f"{topic}: all that stands before a corrupt batch",
              lambda: before <= arrived and set(first.items()) <= set(errors(stopped)))
    told, given_up = sorted(errors(stopped)), reported(stopped.lines())
    verdict.check(not given_up, f"{topic}: given up without --skip-corrupt: {sorted(given_up)[:20]}")
    verdict.check(told == sorted(first.items()), f"{topic}: one error for each corrupt batch was wanted, there are {told}")
    stop(stopped, verdict)
    arrived.update(new_arrivals(sink))
    behind = arrived - before
    verdict.check(not behind, f"{topic}: came from behind a corrupt batch: {sorted(behind)[:20]}")

    skipping = bench.member(f"bridge-{topic}-skipping", env, topic, ("--skip-corrupt",), sink)
    whole = everything - set(corrupt)
    run_until(bench, skipping, sink, arrived, f"{topic}: all of {partitions} corrupt batches skipped",
              lambda: whole <= arrived and set(corrupt) <= set(reported(skipping.lines())))
    given = set(reported(skipping.lines()))
    verdict.check(given == set(corrupt), f"{topic}: skipped, though it is not corrupt: {sorted(given - set(corrupt))[:20]}; "
                                         f"corrupt and not reported: {sorted(set(corrupt) - given)[:20]}")
    verdict.check(not whole - arrived, f"{topic}: good records held up: {sorted(whole - arrived)[:20]}")
    verdict.check(not arrived & set(corrupt), f"{topic}: records of corrupt batches were forwarded")
    verdict.figure(f"{topic} corrupt batches", partitions)
    stop(skipping, verdict)


def new_arrivals(sink):
    """{(partition, offset)} of what Pub/Sub has accepted since it was last asked."""
    return {(p, offset) for p, offsets, _ in sink.accepted() for offset in offsets}


def errors(member):
    """(partition, offset) of each error about a corrupt record batch, as often as it was logged."""
    return [(int(line["partition"]), int(line["offset"])) for line in member.lines()
            if "its record batch is corrupt" in str(line.get("message", "")) and "offset" in line]


def run_until(bench, member, sink, arrived, what, held):
    """Starts a bridge, adds what arrives to `arrived`, and waits until `held` is true."""
    started = time.monotonic()
    member.start()

    def is_held():
        arrived.update(new_arrivals(sink))
        return held()

    try:
        wait_until(what, is_held, MOVE_ON_SECONDS * 3, [member.process])
        say(f"{what} after {time.monotonic() - started:.1f} s")
    except Exception as failure:
        bench.verdict.violated(f"{what}: {str(failure)[:300]}")


def stop(member, verdict):
    member.stop()
    member.check(verdict)
    member.process = None
