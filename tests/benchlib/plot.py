"""The plot: what the mount reaches of the raw disk, a bar for each row that is judged by that."""
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 860, 430, 60, 16, 8, 44
GOOD, LOW, LINE, TEXT = "#2f7d4f", "#b4552d", "#8a8a8a", "#333333"


def svg(rows, title):
    """An SVG file's text. `rows`: what a bar is of, its ratio, what it must reach (or None)."""
    largest = max([1.0, *(ratio for _, ratio, _ in rows)])
    scale = (WIDTH - LEFT - RIGHT) / largest
    height = TOP + len(rows) * (BAR + GAP) + 30
    bottom = height - 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="14" fill="{TEXT}">{escape(title)}</text>',
    ]
    for mark in [n / 4 for n in range(int(largest * 4) + 1)]:
        x = LEFT + mark * scale
        width = 2 if mark == 1 else 1
        out.append(f'<line x1="{x:.0f}" y1="{TOP - 8}" x2="{x:.0f}" y2="{bottom}" stroke="{LINE}" stroke-width="{width}"/>')
        out.append(f'<text x="{x:.0f}" y="{bottom + 15}" text-anchor="middle" fill="{TEXT}">{mark:g}</text>')
    for n, (text, ratio, must) in enumerate(rows):
        y = TOP + n * (BAR + GAP)
        color = GOOD if must is None or ratio >= must else LOW
        out.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end" fill="{TEXT}">{escape(text)}</text>')
        out.append(f'<rect x="{LEFT}" y="{y}" width="{ratio * scale:.0f}" height="{BAR}" fill="{color}"/>')
        out.append(f'<text x="{LEFT + ratio * scale + 5:.0f}" y="{y + 12}" fill="{TEXT}">{ratio:.2f}</text>')
        if must is not None:
            x = LEFT + must * scale
            out.append(f'<line x1="{x:.0f}" y1="{y - 3}" x2="{x:.0f}" y2="{y + BAR + 3}" stroke="black" stroke-width="2"/>')
    return "\n".join([*out, "</svg>", ""])
