#!/usr/bin/python3
"""Writes layout.ld: which functions `cdnwarm serve` runs, so that the linker puts them side by side.

Takes a binary with symbols, CARGO_PROFILE_RELEASE_STRIP=none cargo build --release, and valgrind. See README.md.
"""

import argparse
import collections
import pathlib
import re
import sys
import tempfile

from contestants import Cdnwarm
from stage import PROJECT, Failure, Stage, build_tools, run

HEAD = """/* What `cdnwarm serve` runs, what a start needs first: side by side it takes half of the pages. Made by bench/serve/layout.py;
   what has another name since is put where it would be without this, and no harm done. */
SECTIONS {
  .text.serve : {
"""
TAIL = """  }
}
INSERT BEFORE .text;
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=PROJECT / "target" / "release" / "cdnwarm",
                        help="a release build with its symbols [default: target/release/cdnwarm]")
    parser.add_argument("--output", type=pathlib.Path, default=PROJECT / "layout.ld", help="[default: layout.ld]")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="cdnwarm-layout-") as work:
            start, load = traced(arguments.binary.resolve(), pathlib.Path(work))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    names = patterns(start, load, sizes(arguments.binary))
    if len(names) < 500:
        print(f"only {len(names)} functions have names: has {arguments.binary} its symbols?", file=sys.stderr)
        return 1
    # Cold ones of Rust's are in sections with a word before the name.
    lines = "".join(f"    *(.text.{'*' if name.startswith('_') else ''}{name})\n" for name in names)
    arguments.output.write_text(HEAD + lines + TAIL)
    print(f"{arguments.output}: {len(names)} functions")
    return 0


def traced(binary, work):
    """What each function took, in instructions: from start to end, and with every kind of push between."""
    valgrind = work / "valgrind"
    valgrind.write_text(f"#!/bin/sh\nexec valgrind --tool=callgrind --demangle=no --callgrind-out-file={work}/trace.%p "
                        f"{binary} \"$@\"\n")
    valgrind.chmod(0o755)
    contestant = Cdnwarm("cdnwarm", valgrind)
    with Stage(work, work, build_tools()) as stage:
        with contestant.running(stage, work / "start"):
            pass
        start = collected(work)
        for tls in (False, True):
            with contestant.running(stage, work / f"tls-{tls}", tls=tls):
                for kind, options in (("hit", {"connections": 16}), ("hit", {"connections": 4, "streams": 4}),
                                      ("miss", {"connections": 16})):
                    stage.push(contestant.address, kind, tls=tls, pushes=2000, **options)
                stage.push(contestant.address, "big", tls=tls, connections=2, pushes=4)
        return start, collected(work)


def collected(work):
    """The sum of the traces that there are, which are gone then."""
    costs = collections.Counter()
    for trace in work.glob("trace.*"):
        for name, cost in functions(trace):
            costs[name] += cost
        trace.unlink()
    return costs


def functions(trace):
    """Each function in one of callgrind's files, with what lines of its own took."""
    names, current, is_call = {}, None, False

    def named(text):
        number, name = re.fullmatch(r"\((\d+)\)(?: (.*))?", text).groups()
        return names.setdefault(number, name)

    for line in trace.read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "fn":
            current = named(value)
        elif key == "cfn":
            named(value)
        elif key == "calls":
            is_call = True
        elif re.match(r"[0-9+*-]", line):
            # The line behind a call says what was spent in there.
            if not is_call:
                yield current.split("'")[0], int(line.split()[-1])
            is_call = False


def sizes(binary):
    """The bytes of each function of the binary."""
    rows = (line.split() for line in run(["nm", "--print-size", "--defined-only", binary]).splitlines())
    return {row[3]: int(row[1], 16) for row in rows if len(row) == 4 and row[2] in "tTwW"}


def patterns(start, load, size_of):
    """Names as the linker takes them: what a start runs, then what only pushes do, each with the busiest first; and behind
    all others those that fit much else as well."""
    ran, fitting = collections.Counter(), collections.Counter()
    for symbol, size in size_of.items():
        fitting[pattern(symbol)] += size
        ran[pattern(symbol)] += size if symbol in load else 0
    # What has no size is another library's, an address, or valgrind's word for what has no name.
    busiest = [symbol for symbol, _ in load.most_common() if symbol in size_of]
    names = dict.fromkeys(pattern(symbol) for symbol in sorted(busiest, key=lambda symbol: symbol not in start))
    return sorted(names, key=lambda name: ran[name] < fitting[name] / 4)


def pattern(symbol):
    """The symbol without what changes with each version of a crate or a compiler (its hash, or its crate's)."""
    symbol = re.sub(r"17h[0-9a-f]{16}E", "17h????????????????E", symbol)
    return re.sub(r"Cs[0-9A-Za-z]{6,}_", "Cs*_", symbol) if symbol.startswith("_R") else symbol


if __name__ == "__main__":
    sys.exit(main())
