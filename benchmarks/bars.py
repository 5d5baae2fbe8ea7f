"""A bar chart as an SVG of its own, without a library for it."""

from html import escape

WIDTH, LABELS, ROW, BAR = 760, 330, 26, 16  # px: of all, of the labels, from bar to bar, of a bar
OURS, OTHERS = "#2a6f97", "#a9b4bd"
UNIT = "µs"


def chart(title, microseconds):
    """The bars by label, to one scale. One that would dwarf the others is cut off, and says so by its figure alone."""
    values = sorted(microseconds.values())
    longest = max(value for value in values if value <= 6 * values[len(values) // 2])
    scale = (WIDTH - LABELS - 90) / longest
    height = 40 + ROW * len(microseconds) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-size="13">',
        f"<title>{escape(title)}</title><style>text {{ font-family: sans-serif }}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="24" font-weight="bold">{escape(title)}</text>',
    ]
    for row, (label, value) in enumerate(microseconds.items()):
        top = 40 + ROW * row
        length = min(value, longest) * scale
        colour = OURS if label.startswith(("django-cluster-lock", "single_flight")) else OTHERS
        cut = " ⟶" if value > longest else ""
        lines += [
            f'<text x="{LABELS - 8}" y="{top + 13}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LABELS}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{LABELS + length + 6:.1f}" y="{top + 13}">{value:,.0f} {UNIT}{cut}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
