"""What figures hold for, and telling how far a run is."""

import datetime
import os
import pathlib
import platform
import sys
import time


def machine():
    """What the figures hold for."""
    model = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    load = os.getloadavg()[0]
    return {"model": model, "cores": os.cpu_count(), "system": platform.platform(), "load_before": load,
            "summary": f"{datetime.date.today()}, {os.cpu_count()} cores of {model}, load {load:.1f} before"}


def step(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def by_turns(runs, functions, failure):
    """Calls each named function once a run; results by name, and what `failure` told as one of them.

    Each run begins with another one, so that a drift of the machine, and what one leaves for the next, meets all.
    """
    results = {name: [] for name, _ in functions}
    for number in range(runs):
        first = number % max(1, len(functions))
        for name, function in functions[first:] + functions[:first]:
            try:
                result = function()
            except failure as why:
                result = {"failed": str(why)}
            results[name].append(result)
            step(f"run {number + 1} of {runs}, {name}: {_short(result)}")
    return results


def _short(result):
    if "failed" in result:
        return f"failed: {result['failed'][:600]}"
    return ", ".join(f"{key} {value:,.2f}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in result.items() if not isinstance(value, dict))
