"""Lines over a logarithmic x axis, as a plain SVG file that is readable on light and on dark pages."""

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 570, 50, 340  # the edges of the plot; the names of the lines are right of it
_NAME_PX = 18  # the least distance of two names
_STYLE = """
text { font: 13px sans-serif; fill: #222 } .title { font-size: 15px; font-weight: bold }
.page { fill: #fff } .grid { stroke: #ccc } .line { fill: none; stroke-width: 2 }
.s0 { stroke: #666; fill: #666 } .s1 { stroke: #0060a8; fill: #0060a8 }
.s2 { stroke: #b34700; fill: #b34700 } .s3 { stroke: #00795a; fill: #00795a }
text.s0, text.s1, text.s2, text.s3 { stroke: none } .line { fill: none !important }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .page { fill: #0d1117 } .grid { stroke: #3a3f46 }
  .s0 { stroke: #aaa; fill: #aaa } .s1 { stroke: #6cb6ff; fill: #6cb6ff }
  .s2 { stroke: #ff9d5c; fill: #ff9d5c } .s3 { stroke: #4fd1a5; fill: #4fd1a5 }
}
"""


def plot(title: str, x_label: str, y_label: str, xs: Sequence[int], lines: Mapping[str, Sequence[float]]) -> str:
    """At most four lines, by name; each has a y for each x. The y axis begins at 0."""
    top, step = _scale(max(max(ys) for ys in lines.values()))
    low, high = math.log(min(xs)), math.log(max(xs))

    def x_px(x: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * ((math.log(x) - low) / (high - low) if high > low else 0.5)

    def y_px(y: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * y / top

    parts = [f'<rect class="page" width="{_WIDTH}" height="{_HEIGHT}"/>', _text(_LEFT, 28, title, kind="title")]
    for number in range(round(top / step) + 1):
        y = y_px(number * step)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{number * step:,g}", "end"))
    for x in xs:
        parts.append(_text(x_px(x), _BOTTOM + 20, f"{x:,}", "middle"))
    parts.append(_text((_LEFT + _RIGHT) / 2, _BOTTOM + 44, x_label, "middle"))
    middle = (_TOP + _BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 20 {middle})">{_text(20, middle, y_label, "middle")}</g>')
    lowest_name = math.inf
    for number, (name, ys) in sorted(enumerate(lines.items()), key=lambda item: item[1][1][-1]):
        points = [(x_px(x), y_px(y)) for x, y in zip(xs, ys, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line s{number}" points="{path}"/>')
        parts += [f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points]
        lowest_name = min(points[-1][1] + 4, lowest_name - _NAME_PX)
        parts.append(_text(points[-1][0] + 10, lowest_name, name, kind=f"s{number}"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title><style>{_STYLE}</style>", *parts, "</svg>", ""])


def _scale(most: float) -> tuple[float, float]:
    """The end of an axis from 0, and the distance of its marks: 1, 2 or 5 times a power of ten."""
    if most <= 0:
        return 1.0, 0.5
    power = 10 ** math.floor(math.log10(most / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 6 >= most)
    return math.ceil(most / step) * step, step


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
