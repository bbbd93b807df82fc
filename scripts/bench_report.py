"""Makes tables, results.json and chart.svg from the measurements of bench.sh: bench_report.py RESULTS [CRITERION].

Reads runs.jsonl, facts.json and the tenants' latencies from the working directory, and the estimates of criterion from
the directory CRITERION, if given.
"""

import json
import os
import platform
import statistics
import sys
import time
from html import escape
from pathlib import Path

NAMES = {
    "barrier": "nico-rewrap, durability = per_run",
    "each": "nico-rewrap, durability = per_row",
    "dry": "nico-rewrap, dry run",
    "census": "nico-rewrap, census",
    "verify": "nico-rewrap, verify",
    "on-target": "nico-rewrap, all on target",
    "reference": "reference algorithm",
    "python": "Python by hand",
    "ceiling-barrier": "ceiling, barrier",
    "ceiling-each": "ceiling, a commit each",
}

# The goals for ratios of rates: name, way, the way to compare with, the minimum ratio.
GOALS = [
    ("barrier / reference", "barrier", "reference", 15),
    ("barrier / Python", "barrier", "python", 13),
    ("barrier / its ceiling", "barrier", "ceiling-barrier", 0.9),
    ("each / its ceiling", "each", "ceiling-each", 0.9),
    ("dry run / barrier", "dry", "barrier", 4),
    ("all on target / barrier", "on-target", "barrier", 4),
    ("census / dry run", "census", "dry", 3),
    # With AGAINST, each way is measured with another build, too.
    *((f"{way} / before", way, f"before-{way}", 0.97) for way in ("dry", "barrier", "on-target", "each")),
]

# An apply does the work of a dry run, and it writes. Each entry compares an apply with these two parts, measured one
# after the other: name, way, the two parts.
PARTS = [
    ("barrier / ceiling and dry run one after the other", "barrier", "ceiling-barrier", "dry"),
    ("each / ceiling and dry run one after the other", "each", "ceiling-each", "dry"),
]


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine(facts):
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        **facts,
    }


def summary(way, rows, runs, tick_us):
    """The medians of the runs of one way with this number of rows."""
    middle = lambda name: statistics.median(run[name] for run in runs)
    of_way = {
        "way": way,
        "rows": rows,
        "runs": len(runs),
        "seconds": middle("us") / 1e6,
        "seconds_all": [run["us"] / 1e6 for run in runs],
        "rows_per_second": rows * 1e6 / middle("us"),
        "client_us_per_row": middle("client_ticks") * tick_us / rows,
        "postgres_us_per_row": middle("postgres_ticks") * tick_us / rows,
    }
    if "peak_kb" in runs[0]:
        of_way["peak_kb"] = max(run["peak_kb"] for run in runs)
    return of_way


def latencies(prefix):
    """The latencies in milliseconds, per round, so that a slow disk in one round does not affect the others."""
    rounds = []
    for path in sorted(Path().glob(f"{prefix}-*")):
        us = sorted(int(line) for line in path.read_text().split())
        at = lambda share: us[min(len(us) - 1, int(len(us) * share))] / 1e3
        rounds.append({"writes": len(us), "p50_ms": at(0.5), "p99_ms": at(0.99)})
    return rounds


def spread(name, rows, goal, of_rounds):
    return {
        "rows": rows,
        "name": name,
        "ratio": statistics.median(of_rounds),
        "lowest": min(of_rounds),
        "highest": max(of_rounds),
        "goal": goal,
    }


def ratios(seconds):
    """The ratios of ways within each round, so that a slow machine affects both sides equally."""
    for rows in sorted({rows for rows, _ in seconds}):
        of = lambda *ways: zip(*(seconds.get((rows, way), []) for way in ways))
        for name, way, other, goal in GOALS:
            if of_rounds := [b / a for a, b in of(way, other)]:
                yield spread(name, rows, goal, of_rounds)
        for name, way, one, other in PARTS:
            if of_rounds := [(b + c) / a for a, b, c in of(way, one, other)]:
                yield spread(name, rows, None, of_rounds)


def evaluate(runs, facts, criterion):
    groups = {}
    for run in runs:
        groups.setdefault((run["rows"], run["way"]), []).append(run)
    ways = [summary(way, rows, group, 1e6 / facts["ticks_per_second"]) for (rows, way), group in groups.items()]
    rate = {(way["rows"], way["way"]): way["rows_per_second"] for way in ways}
    seconds = {(way["rows"], way["way"]): way["seconds_all"] for way in ways}
    starts = [run for run in runs if "ready_us" in run]
    results = {
        "machine": machine(facts),
        "ways": ways,
        "ratios": list(ratios(seconds)),
        "tenants": {"alone": latencies("alone"), "beside": latencies("beside")},
    }
    if starts:
        results["at_rest"] = {
            "ready_ms": statistics.median(run["ready_us"] for run in starts) / 1e3,
            "idle_kb": statistics.median(run["idle_kb"] for run in starts),
            "binary_bytes": facts["binary_bytes"],
        }
    if (1_000_000, "barrier") in rate and (100_000, "barrier") in rate:
        results["growth"] = 10 * rate[100_000, "barrier"] / rate[1_000_000, "barrier"]
    if criterion:
        results["micro_ns"] = {
            f"{path.parts[-4]}/{path.parts[-3]}": json.loads(path.read_text())["median"]["point_estimate"]
            for path in sorted(Path(criterion).glob("*/*/new/estimates.json"))
        }
    return results


def tables(results):
    """The tables in Markdown, in the form of docs/benchmarks.md."""
    about = results["machine"]
    yield f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB; Linux {about['kernel']}, {about['filesystem']}"
    yield f"PostgreSQL {about['postgres']}: {about['settings']}"
    yield f"{about['date']}, commit {about['commit']}"
    if about["ceiling_barrier"]:
        yield f"Ceilings at connections x in flight: barrier {about['ceiling_barrier']}, each {about['ceiling_each']}"
    named = [way for way in results["ways"] if way["way"] in NAMES]
    for rows in sorted({way["rows"] for way in named}):
        yield f"\n| {rows:,} rows | rows/s | client µs/row | Postgres µs/row | peak memory |\n| --- | --- | --- | --- | --- |"
        for way in sorted((way for way in named if way["rows"] == rows), key=lambda way: list(NAMES).index(way["way"])):
            peak = f"{way['peak_kb'] / 1e3:.1f} MB" if "peak_kb" in way else ""
            yield (
                f"| {NAMES[way['way']]} | {way['rows_per_second']:,.0f} | {way['client_us_per_row']:.1f}"
                f" | {way['postgres_us_per_row']:.1f} | {peak} |"
            )
    if results["ratios"]:
        yield "\n| ratio of rates | rows | median | of rounds | goal |\n| --- | --- | --- | --- | --- |"
    for ratio in results["ratios"]:
        goal = f"≥ {ratio['goal']}" if ratio["goal"] else ""
        of_rounds = f"{ratio['lowest']:.2f} to {ratio['highest']:.2f}"
        yield f"| {ratio['name']} | {ratio['rows']:,} | {ratio['ratio']:.2f} | {of_rounds} | {goal} |"
    alone, beside = results["tenants"]["alone"], results["tenants"]["beside"]
    if alone and beside:
        run = next(way for way in results["ways"] if way["way"] == "tenants")
        settings = results["machine"]["tenant_settings"]
        during = f"during a run over {run['rows']:,} rows, {run['rows_per_second']:,.0f} rows/s"
        during += f" ({settings})" if settings else ""
        middle = lambda values, unit="": f"{statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"
        yield "\n| a tenant's own write | writes | p50 | p99 |\n| --- | --- | --- | --- |"
        for name, rounds in [("without a run", alone), (during, beside)]:
            p50, p99 = (middle([one[at] for one in rounds], " ms") for at in ["p50_ms", "p99_ms"])
            yield f"| {name} | {sum(one['writes'] for one in rounds):,} | {p50} | {p99} |"
        p50, p99 = (middle([b[at] / a[at] for a, b in zip(alone, beside)]) for at in ["p50_ms", "p99_ms"])
        yield f"| ratio (goal for p99: ≤ 2) | | {p50} | {p99} |"
    if "micro_ns" in results:
        yield "\n| one signing key (criterion) | nico-rewrap | baseline | ratio |\n| --- | --- | --- | --- |"
        for name, ours in results["micro_ns"].items():
            name, of = name.split("/")
            plain = results["micro_ns"].get(f"{name}/plain")
            if of == "ours" and plain:
                yield f"| {name} | {ours / 1e3:.2f} µs | {plain / 1e3:.2f} µs | {plain / ours:.2f} |"
    if "at_rest" in results:
        rest = results["at_rest"]
        yield (
            f"\nWithout calls: ready {rest['ready_ms']:.0f} ms after the start, {rest['idle_kb'] / 1e3:.1f} MB of memory."
            f" The binary has {rest['binary_bytes'] / 1e6:.1f} MB."
        )
    if "growth" in results:
        yield f"1,000,000 rows take {results['growth']:.2f} times as long as 100,000 rows (goal: ≤ 11)."


def chart(results):
    """A bar chart of the rate of each way, grouped by the number of rows."""
    named = [way for way in results["ways"] if way["way"] in NAMES]
    longest = max((way["rows_per_second"] for way in named), default=1)
    about, parts, y = results["machine"], [], 30
    for rows in sorted({way["rows"] for way in named}):
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{rows:,} rows: rows/s</text>')
        for way in sorted((way for way in named if way["rows"] == rows), key=lambda way: -way["rows_per_second"]):
            y += 22
            width = 380 * way["rows_per_second"] / longest
            fill = "#2b6cb0" if NAMES[way["way"]].startswith("nico-rewrap") else "#a0aec0"
            parts.append(f'<text x="220" y="{y}" text-anchor="end">{escape(NAMES[way["way"]])}</text>')
            parts.append(f'<rect x="228" y="{y - 12}" width="{width:.1f}" height="16" fill="{fill}"/>')
            parts.append(f'<text x="{234 + width:.1f}" y="{y}">{way["rows_per_second"]:,.0f}</text>')
        y += 36
    about = f"{about['cpu']}, {about['cores']} cores, PostgreSQL {about['postgres']}, Linux {about['kernel']}, {about['date']}"
    parts.append(f'<text x="10" y="{y}" font-size="11" fill="#4a5568">{escape(about)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {y + 14}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def main(directory, criterion=""):
    runs = [json.loads(line) for line in Path("runs.jsonl").read_text().splitlines()]
    results = evaluate(runs, json.loads(Path("facts.json").read_text()), criterion)
    Path(directory, "results.json").write_text(json.dumps(results, indent=2) + "\n")
    Path(directory, "chart.svg").write_text(chart(results))
    print("\n" + "\n".join(tables(results)) + "\n")


main(*sys.argv[1:])
