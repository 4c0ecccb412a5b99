"""Plots of the table as SVG: a panel for each row, a bar for each server, a line from its least to its largest value."""

from html import escape

from results import number, ratio

WIDTH, LEFT, RIGHT = 860, 190, 150
BAR, GAP, TITLE = 15, 4, 26
COLOURS = {"nbdkit-memory": "#8a8a8a", "cairn-directory": "#1b6ca8", "cairn-minio": "#3a93cf",
           "cairn-minio-20ms": "#86c1e8", "nbdkit-file": "#b9a26a", "qemu-nbd": "#c98a4b", "s3backer-minio": "#a05a7a"}
OTHER = "#5c8f5c"

PLOTS = {
    "compare-random": ("Random reads and writes", ["IOPS"], ["flush-1", "flush-32"]),
    "compare-sequential": ("Sequential reads and writes", ["MiB/s"], ["raw-put", "raw-get"]),
    "compare-durable": ("Durable small writes, and a database", ["tps"], []),
    "compare-cost": ("Processor time and memory", ["CPU s/GiB", "MiB"], []),
}
DURABLE = ["flush-1", "flush-32"]


def rows_of(name, rows):
    _, units, without = PLOTS[name]
    return [row for row in rows if (row.unit in units and row.id not in without)
            or (name == "compare-durable" and row.id in DURABLE)]


def plot(name, results):
    """The text of one SVG, or `None` if no row of it was measured."""
    panels, at = [], 40
    for row in rows_of(name, results.rows):
        cells = [(server, results.cell(row, server)) for server in results.servers]
        cells = [(server, cell) for server, cell in cells if cell.values]
        if not cells:
            continue
        panels.append(panel(row, cells, at))
        at += TITLE + len(cells) * (BAR + GAP) + 14
    if not panels:
        return None
    title = escape(PLOTS[name][0])
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{at}" viewBox="0 0 {WIDTH} {at}" '
            f'font-family="sans-serif" font-size="12" role="img" aria-label="{title}">\n'
            f'<rect width="{WIDTH}" height="{at}" fill="#ffffff"/>\n'
            f'<text x="12" y="24" font-size="17" fill="#222222">{title}</text>\n' + "".join(panels) + "</svg>\n")


def panel(row, cells, top):
    most = max(max(cell.values) for _, cell in cells) or 1
    scale = (WIDTH - LEFT - RIGHT) / most
    head = escape(f"{row.work}: {row.state} ({row.unit})")
    parts = [f'<text x="12" y="{top + 16}" font-weight="bold" fill="#222222">{head}</text>\n']
    y = top + TITLE
    for server, cell in cells:
        middle, end = y + BAR / 2, LEFT + cell.median * scale
        least, largest = (LEFT + bound(cell.values) * scale for bound in (min, max))
        share = f" ({ratio(cell.ratio)})" if cell.ratio is not None else ""
        parts.append(
            f'<text x="{LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end" fill="#222222">{escape(server.title)}</text>\n'
            f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR}" '
            f'fill="{COLOURS.get(server.key, OTHER)}"/>\n'
            f'<path d="M{least:.1f} {middle}H{largest:.1f}" stroke="#222222"/>\n'
            f'<text x="{max(end, largest) + 6:.1f}" y="{middle + 4:.1f}" fill="#222222">'
            f'{number(cell.median)}{share}</text>\n')
        y += BAR + GAP
    return "".join(parts)
