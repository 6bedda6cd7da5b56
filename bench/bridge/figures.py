"""Figures from samples, and tables of them."""

import math
import statistics

# So many samples have a spread that says more than the lowest and the highest.
MANY = 8

# (key, heading, decimals)
BRIDGE_COLUMNS = [
    ("steady_per_s", "steady records/s", 0),
    ("from_start_per_s", "from start, records/s", 0),
    ("cpu_s_per_million", "CPU s per 1 M", 2),
    ("rss_peak_mib", "RSS peak MiB", 0),
    ("rss_steady_mib", "RSS at full speed MiB", 0),
    ("first_message_s", "first message s", 2),
    ("max_calls_in_flight", "calls in flight", 0),
    ("batch_size_mean", "messages a call", 0),
]


def bridge_figures(stats, meter, started, records):
    """What one run of a bridge shows: `started` is when its process was started, `records` what it had to move."""
    first, last = stats["first_message_unix_ms"] / 1000, stats["last_message_unix_ms"] / 1000
    # A packed message carries many records; they are spread evenly enough for a rate.
    per_message = stats["urls"] / stats["messages"]
    samples = [(moment, messages * per_message) for moment, messages in stats["samples"]]
    tenth, nine_tenths = (moment_of(samples, (first, 0), records * share) for share in (0.1, 0.9))
    return {
        "steady_per_s": 0.8 * records / max(nine_tenths - tenth, 0.001),
        "from_start_per_s": records / (last - started),
        "cpu_s_per_million": (meter.cpu_seconds_at(last) - meter.cpu_seconds_at(first)) / (records / 1e6),
        "rss_peak_mib": meter.peak_rss_bytes() / 2**20,
        "rss_steady_mib": meter.rss_bytes_between(tenth, nine_tenths) / 2**20,
        "first_message_s": first - started,
        "max_calls_in_flight": stats["max_calls_in_flight"],
        "batch_size_mean": stats["batch_size_mean"],
        "messages": stats["messages"],
        "urls": stats["urls"],
    }


def moment_of(samples, before, count):
    """When so many had come, between the two samples that lie around it."""
    for moment, so_far in samples:
        if so_far >= count:
            span = so_far - before[1]
            return before[0] + (moment - before[0]) * ((count - before[1]) / span if span > 0 else 1)
        before = (moment, so_far)
    return before[0]


def table(results, columns):
    """A Markdown table with a row a contestant: the median, and of more than one run what `spread` says."""
    lines = ["| | runs | " + " | ".join(heading for _, heading, _ in columns) + " |",
             "|---|---|" + "---|" * len(columns)]
    for name, runs in results.items():
        good = [run for run in runs if "failed" not in run]
        if not good:
            lines.append(f"| {name} | 0 of {len(runs)} | failed: {runs[0]['failed'].splitlines()[0]} |")
            continue
        cells = [_cell([run[key] for run in good if run.get(key) is not None], decimals)
                 for key, _, decimals in columns]
        lines.append(f"| {name} | {len(good)} of {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(results, key, subjects, yardsticks):
    """How many times each yardstick's median the subjects' medians are."""
    medians = {name: statistics.median(values) for name, runs in results.items()
               if (values := [run[key] for run in runs if run.get(key)])}
    rows = [f"- {subject}: " + ", ".join(
                f"{medians[subject] / medians[yardstick]:.2f} x {yardstick}"
                for yardstick in yardsticks if yardstick in medians and yardstick != subject)
            for subject in subjects if subject in medians]
    return "\n".join(row for row in rows if not row.endswith(": "))


def spread(count):
    """What stands beside the median of so many samples."""
    return "quartiles" if count >= MANY else "lowest to highest"


def _cell(values, decimals):
    if not values:
        return ""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) >= MANY else (
        min(values), statistics.median(values), max(values))
    shown = [f"{value:,.{decimals}f}" for value in (middle, low, high)]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def median_within(values):
    """Where the median lies: of many samples the interval that holds it with 95 %, by their ranks; else lowest and highest."""
    ranked = sorted(values)
    rank = max(1, int((len(ranked) - 1.96 * math.sqrt(len(ranked))) / 2)) if len(ranked) >= MANY else 1
    return ranked[rank - 1], ranked[-rank]
