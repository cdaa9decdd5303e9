"""The figure of the README: requests per second by server, as SVG with light or dark text."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.serving.environments import ROOT
from benchmarks.serving.machine import BUSY
from benchmarks.serving.models import HEADLINE
from benchmarks.serving.report import Figures, number, rate_text

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
WIDTH, LABEL, BARS, LINE, TOP = 860, 306, 360, 27, 92
BAR_HEIGHT = 17


@dataclass(frozen=True)
class Theme:
    text: str
    muted: str
    own: str
    limit: str
    other: str


THEMES = {
    "light": Theme("#1f2328", "#59636e", "#0969da", "#afb8c1", "#d4a72c"),
    "dark": Theme("#f0f6fc", "#9198a1", "#4493f8", "#656c76", "#d29922"),
}


def path(theme: str) -> Path:
    return ROOT / "docs" / "performance" / f"online-{theme}.svg"


@dataclass(frozen=True)
class Bar:
    title: str
    version: str
    role: str
    per_s: float
    alone_ms: float | None


def bars(figures: Figures, model: str = HEADLINE) -> list[Bar]:
    """Return the servers of the figure, the fastest first; the variants of the limit are left out."""
    rows = [
        Bar(
            figures.servers[name]["title"],
            figures.servers[name]["version"],
            figures.servers[name]["role"],
            rate,
            figures.get(model, name, 1, "p50_ms"),
        )
        for name in figures.measured_servers(model)
        if name == "bare" or figures.servers[name]["role"] not in ("limit", "own variant")
        if (rate := figures.get(model, name, 32, "per_s"))
    ]
    return sorted(rows, key=lambda bar: -bar.per_s)


def draw(summary: dict[str, Any], theme_name: str) -> str:
    """Return the SVG. Bars start at zero and are linear: a bar twice as long is twice as fast."""
    theme, figures = THEMES[theme_name], Figures(summary)
    rows = bars(figures)
    height = TOP + LINE * len(rows) + 40
    scale = BARS / max((bar.per_s for bar in rows), default=1.0)
    alone_x = WIDTH - 8
    body = [
        _text(0, 22, "Requests per second, one row each", theme.text, size=18, weight=600),
        _text(0, 46, f"{_model_title(summary)}, 32 connections, each server on one core", theme.muted),
        _text(alone_x, TOP - 14, "p50 with 1 connection", theme.muted, anchor="end", size=12),
    ]
    for i, bar in enumerate(rows):
        body += _bar(bar, TOP + LINE * i, scale, theme, alone_x)
    machine = summary["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, loopback"
    disturbed = f", disturbed by a load of {machine['load_before']}" if machine["load_before"] > BUSY else ""
    note = f"{summary['date']}, {where}{disturbed}. All figures and caveats: docs/performance.md"
    body.append(_text(0, height - 10, note, theme.muted, size=12))
    description = "; ".join(f"{bar.title}: {rate_text(bar.per_s)} requests per second" for bar in rows)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="{FONT}" '
            'role="img" aria-labelledby="title description">',
            '<title id="title">Requests per second by server</title>',
            f'<desc id="description">{escape(description)}</desc>',
            *body,
            "</svg>\n",
        ]
    )


def _bar(bar: Bar, top: int, scale: float, theme: Theme, alone_x: int) -> list[str]:
    color = {"own": theme.own, "limit": theme.limit}.get(bar.role, theme.other)
    weight = 600 if bar.role == "own" else 400
    length = max(bar.per_s * scale, 1.0)
    baseline = top + BAR_HEIGHT - 4
    parts = [
        _text(LABEL - 10, baseline, bar.title, theme.text, anchor="end", weight=weight, note=bar.version),
        f'<rect x="{LABEL}" y="{top}" width="{length:.1f}" height="{BAR_HEIGHT}" rx="2" fill="{color}"/>',
        _text(LABEL + length + 7, baseline, rate_text(bar.per_s), theme.text, weight=weight),
    ]
    if bar.alone_ms is not None:
        parts.append(_text(alone_x, baseline, f"{number(bar.alone_ms)} ms", theme.muted, anchor="end"))
    return parts


def _text(
    x: float,
    y: float,
    text: str,
    color: str,
    *,
    size: int = 14,
    weight: int = 400,
    anchor: str = "start",
    note: str = "",
) -> str:
    """Return a text element; `note` follows the text in small letters."""
    small = (
        f'<tspan dx="6" font-size="11" font-weight="400" opacity="0.7">{escape(note)}</tspan>' if note else ""
    )
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}{small}</text>'
    )


def _model_title(summary: dict[str, Any]) -> str:
    return next((str(m["title"]) for m in summary["models"] if m["model"] == HEADLINE), HEADLINE)
