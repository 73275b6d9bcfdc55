"""Charts of a report: figures as Plotly has them, without colours, which the page gives them as it is light or dark."""

from collections.abc import Sequence
from html import escape
from math import isfinite
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from pix2pixhd_cli.evaluation import Confusion

HEIGHT, CELL = 260, 22  # Of a chart, and of a class in a table of confusions, in pixels.
MARKED = 40  # Values that are marked one by one, at the most.


class Curve(NamedTuple):
    """Values by step. number: of the run, which decides the colour. dash: as Plotly names it."""

    name: str
    number: int
    steps: Sequence[float]
    values: Sequence[float]
    deviations: Sequence[float] | None = None
    dash: str = "solid"


def library() -> str:
    """The JavaScript that draws them."""
    return str(get_plotlyjs())


def curves(found: Sequence[Curve], *, smooth: bool = False) -> dict[str, Any]:
    """Curves in one chart, with gaps where a value is no number; `smooth` ones get a smoothed one each from the page."""
    figure = go.Figure(layout={"template": "none"})
    for curve in found:
        figure.add_scatter(
            x=list(curve.steps),
            y=[float(f"{value:.6g}") if isfinite(value) else None for value in curve.values],
            error_y={"array": list(curve.deviations), "thickness": 1} if curve.deviations is not None else None,
            mode="lines+markers" if len(curve.steps) <= MARKED and not smooth else "lines",
            line={"dash": curve.dash, "width": 2},
            name=escape(curve.name, quote=False),
            meta={"run": curve.number, "smooth": smooth},
            hovertemplate="step %{x:,}: %{y:.5g}",
        )
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 54, "r": 12, "t": 8, "b": 36},
        showlegend=len(found) > 1,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        xaxis={"title": {"text": "step"}},
    )
    return dict(figure.to_plotly_json())


def confusions(found: Confusion) -> dict[str, Any]:
    """Of each class's pixels, the share that was seen as each; what was seen as none of them is the last column."""
    names = [escape(name, quote=False) for name in found.classes]
    shares = [[100 * count / max(1, sum(row)) for count in row] for row in found.counts]
    figure = go.Figure(
        go.Heatmap(
            x=[*names, "something else"],
            y=names,
            z=[[round(share, 2) for share in row] for row in shares],
            customdata=[list(row) for row in found.counts],
            zmin=0,
            zmax=100,
            colorscale="Viridis",
            colorbar={"title": {"text": "%"}, "thickness": 10},
            hovertemplate="%{y}, seen as %{x}: %{z:.1f} % (%{customdata:,} pixels)<extra></extra>",
        ),
        layout={"template": "none"},
    )
    figure.update_layout(
        height=150 + CELL * len(names),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={"title": {"text": "seen as"}, "automargin": True},
        yaxis={"title": {"text": "is"}, "autorange": "reversed", "automargin": True},
    )
    return dict(figure.to_plotly_json())
