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
