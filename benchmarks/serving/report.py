"""Tables and targets of a run: for the terminal, and as a section of docs/performance.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.serving.environments import ROOT
from benchmarks.serving.machine import BUSY
from benchmarks.serving.models import HEADLINE

PAGE = ROOT / "docs" / "performance.md"
JSON = ROOT / "docs" / "performance" / "online.json"
START, END = "<!-- online: written by scripts/bench online -->", "<!-- online: end -->"
CAVEATS = """\
What the figures do not show:

- One machine with few cores, requests over loopback, each server on one core with all its processes. A
  network, TLS and more processes change every figure. All requests are single rows.
- Peers get their cheapest input: arrays instead of frames (except for the model of mixed columns), and a
  largest batch that fits 32 connections. Their authors may know better settings; ours are in
  `benchmarks/serving/servers.py`.
- The peers run scikit-learn itself, this server a compiled form of the same model.
- Flask, FastAPI, LitServe and MLflow check neither keys nor features here, BentoML and MLServer count
  metrics, and MLServer checks the types of tensors. The servers by hand check names and types and nothing
  else. Trivium runs with its defaults: keys, names and types of features, metrics, logs.
- gunicorn's default worker closes each connection, as in the articles.
- wrk corrects latencies for requests that it would have sent while it waited, which raises p99.
- MB is memory that no other process shares (USS). A peer's includes scikit-learn, which Trivium does not
  load to serve."""


@dataclass(frozen=True)
class Target:
    """A bound of the project for one ratio. `measured` is None when the run has not what it needs."""

    text: str
    bound: float
    at_least: bool
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.bound if self.at_least else self.measured <= self.bound
        return "met" if met else "not met"


class Figures:
    """Access to the medians of a summary."""

    def __init__(self, summary: dict[str, Any]) -> None:
        self.summary = summary
        self.servers: dict[str, dict[str, Any]] = {s["name"]: s for s in summary["servers"]}
        self._cells = {(c["model"], c["server"], c["concurrency"]): c for c in summary["cells"]}

    def cell(self, model: str, server: str, concurrency: int) -> dict[str, Any] | None:
        return self._cells.get((model, server, concurrency))

    def get(self, model: str, server: str, concurrency: int, figure: str) -> float | None:
        cell = self.cell(model, server, concurrency)
        return float(cell[figure]) if cell else None

    def measured_servers(self, model: str) -> list[str]:
        """Return the servers of the table with figures for this model, in the table's order."""
        measured = {server for m, server, _ in self._cells if m == model}
        return [name for name in self.servers if name in measured]

    def best_peer(self, model: str, concurrency: int) -> tuple[str, float] | None:
        """Return the fastest server of the role "peer" and its requests per second."""
        rates = {
            name: rate
            for name, server in self.servers.items()
            if server["role"] == "peer" and (rate := self.get(model, name, concurrency, "per_s"))
        }
        best = max(rates, key=lambda name: rates[name], default=None)
        return (best, rates[best]) if best else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def targets(figures: Figures, model: str = HEADLINE) -> list[Target]:
    def get(server: str, concurrency: int, figure: str) -> float | None:
        return figures.get(model, server, concurrency, figure)

    own, best = get("trivium", 32, "per_s"), figures.best_peer(model, 32)
    peer = f" ({figures.servers[best[0]]['title']})" if best else ""
    alone = ratio(get("trivium", 1, "p50_ms"), get("bare", 1, "p50_ms"))
    tail = ratio(get("trivium", 32, "p99_ms"), get("trivium", 32, "p50_ms"))
    recorded, shadowed = (ratio(get(name, 32, "per_s"), own) for name in ("trivium-log", "trivium-shadow"))
    return [
        Target("requests/s: share of bare uvicorn", 0.70, True, ratio(own, get("bare", 32, "per_s"))),
        Target(f"requests/s: times the best peer{peer}", 12, True, ratio(own, best[1] if best else None)),
        Target("p50 with 1 connection: times bare uvicorn", 1.5, False, alone),
        Target("p99: times p50", 3, False, tail),
        Target("requests/s with every prediction in the log: share of those without", 0.90, True, recorded),
        Target("requests/s with a shadow: share of those without", 0.95, True, shadowed),
    ]


def number(value: float | None) -> str:
    """Two or three significant digits without an exponent; an empty text for None."""
    if value is None:
        return ""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 or not value else f"{float(f'{value:.2g}'):f}".rstrip("0")


def rate_text(per_s: float | None) -> str:
    """Requests per second, without decimals from 10 on."""
    return number(per_s) if per_s is None or per_s < 10 or per_s >= 100 else f"{per_s:.0f}"


Row = list[str]


def targets_table(figures: Figures) -> tuple[Row, list[Row]]:
    rows = [
        [t.text, f"{'at least' if t.at_least else 'at most'} {t.bound:g}", number(t.measured), t.verdict]
        for t in targets(figures)
    ]
    return ["", "target", "measured", ""], rows


def servers_table(figures: Figures, model: str) -> tuple[Row, list[Row]]:
    """One model: a row for each server that was measured."""
    header = ["server", "version", "requests/s", "of bare", "p50 ms", "p99 ms", "CPU us", "p50 ms, alone"]
    header += ["requests/s, 256", "p99 ms, 256", "MB", "processes"]
    bare, rows = figures.get(model, "bare", 32, "per_s"), []
    for name in figures.measured_servers(model):
        server = figures.servers[name]
        at_32, alone, at_256 = (figures.cell(model, name, n) or {} for n in (32, 1, 256))
        memory = at_32 or alone or at_256
        row = [_emphasize(server["title"], name), server["version"], rate_text(at_32.get("per_s"))]
        row += [
            number(ratio(at_32.get("per_s"), bare)),
            number(at_32.get("p50_ms")),
            number(at_32.get("p99_ms")),
        ]
        row += [number(at_32.get("cpu_us")), number(alone.get("p50_ms"))]
        row += [rate_text(at_256.get("per_s")), number(at_256.get("p99_ms"))]
        rows.append([*row, f"{memory['uss_mb']:.0f}", str(memory["processes"])])
    return header, rows


def models_table(figures: Figures) -> tuple[Row, list[Row]]:
    """All models at 32 connections: requests per second, and the ratios to the limit and to the best peer."""
    models = figures.summary["models"]
    shown = [
        name
        for name, server in figures.servers.items()
        if server["role"] in ("own", "peer") or name == "bare"
        if sum(figures.get(m["model"], name, 32, "per_s") is not None for m in models) > 1
    ]
    header = ["model", "runs on", *(figures.servers[n]["title"] for n in shown), "of bare", "CPU us"]
    rows = []
    for model in models:
        name = model["model"]
        own, best = figures.get(name, "trivium", 32, "per_s"), figures.best_peer(name, 32)
        rates = [rate_text(figures.get(name, server, 32, "per_s")) or "-" for server in shown]
        share = number(ratio(own, figures.get(name, "bare", 32, "per_s")))
        cpu = number(figures.get(name, "trivium", 32, "cpu_us"))
        times = number(ratio(own, best[1] if best else None))
        rows.append([model["title"], model["runtime"], *rates, share, cpu, times])
    return [*header, "of the best peer"], rows


def _emphasize(title: str, name: str) -> str:
    return f"**{title}**" if name == "trivium" else title


def counters(figures: Figures) -> list[str]:
    """What the variants of this server did meanwhile: a variant that drops its work would be cheap."""
    return [
        f"{figures.servers[c['server']]['title']}: "
        + ", ".join(f"`{name}` {count:,}" for name, count in sorted(c["sums"].items()))
        for c in figures.summary["counters"]
    ]


def failures(figures: Figures) -> list[str]:
    titles = {m["model"]: m["title"] for m in figures.summary["models"]}
    return [
        f"{figures.servers[f['server']]['title']}, {titles.get(f['model'], f['model'])}: {f['reason']}"
        for f in figures.summary["failures"]
    ]


def conditions(summary: dict[str, Any]) -> str:
    m, run = summary["machine"], summary["run"]
    is_busy = m["load_before"] > BUSY
    busy = f" The load before the run was {m['load_before']}: other work disturbed it." if is_busy else ""
    hardware = f"{m['processor']}, {m['cores']} cores, {m['memory_gb']} GB, {m['system']}"
    return (
        f"Measured on {summary['date']}, revision {summary['revision']}: {hardware}, Python {m['python']}, "
        f"wrk {summary['wrk']}; {m['pinning']}. "
        f"Medians of {run['rounds']} rounds of {run['seconds']} s (slow servers up to 8 s).{busy}"
    )


def section(summary: dict[str, Any]) -> str:
    """Return the section as Markdown."""
    figures = Figures(summary)
    (headline,) = [m for m in summary["models"] if m["model"] == HEADLINE]
    parts = [
        conditions(summary),
        "### Targets",
        f"{headline['title']}, 32 connections if not said otherwise:",
        _markdown(*targets_table(figures)),
        f"### {headline['title']}",
        f"32 connections unless a column names another number; alone means one connection. A request has "
        f"{headline['request_bytes']} bytes, an answer {headline['answer_bytes']}. CPU us is the CPU time "
        f"per request of all processes of a server, MB their private memory.",
        _markdown(*servers_table(figures, HEADLINE)),
        *(["\n".join(f"- {line}" for line in counters(figures))] if counters(figures) else []),
        "### Other models",
        "Requests per second at 32 connections, with batching where a peer has it, measured half as long:",
        _markdown(*models_table(figures)),
    ]
    if problems := failures(figures):
        parts += ["### Problems", "\n".join(f"- {problem}" for problem in problems)]
    return "\n\n".join([*parts, CAVEATS])


def _markdown(header: Row, rows: list[Row]) -> str:
    cells = [[text.replace("|", "\\|") for text in row] for row in rows]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def insert(page: str, section_text: str, start: str = START, end: str = END) -> str:
    """Return the page with this text between the markers. Raises `ValueError` when a marker is missing."""
    before, found_start, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end:
        raise ValueError(f"{PAGE.name} needs the lines {start} and {end}")
    return f"{before}{start}\n\n{section_text}\n\n{end}{after}"


def terminal(summary: dict[str, Any]) -> str:
    figures = Figures(summary)
    parts = [conditions(summary)]
    for model in summary["models"]:
        parts.append(f"{model['title']} (on {model['runtime']})")
        parts.append(_aligned(*servers_table(figures, model["model"])))
    parts += [_aligned(*targets_table(figures)), *counters(figures)]
    parts += [f"problem: {problem}" for problem in failures(figures)]
    return "\n\n".join(parts)


def _aligned(header: Row, rows: list[Row]) -> str:
    lines = [header, *rows]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
        for row in lines
    )


def dump(summary: dict[str, Any]) -> str:
    """Return JSON with one cell on a line, so that a change of a figure is a change of one line."""
    lines = [f"{json.dumps(key)}: {_dump_value(value)}" for key, value in summary.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _dump_value(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(entry) for entry in value) + "\n]"
    return json.dumps(value)
