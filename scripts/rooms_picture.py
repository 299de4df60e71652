"""Draws the rooms as a picture: boxes in rows by layer, arrows for the includes there are.

An arrow that follows from others is left out (if cli includes gateway and gateway includes api,
cli -> api is not drawn). Long arrows pass through the rows between them beside the boxes.
"""

from html import escape
from random import Random

BOX_WIDTH, BOX_HEIGHT = 150, 44
GAP_X, GAP_Y = 36, 40
BEND_WIDTH = 18  # the lane of an arrow that passes a row
LEFT, TOP = 92, 22

NAMES = {"0": "base", "1": "values", "2": "work", "3": "parallel", "4": "model",
         "5": "ranks", "6": "ways in"}

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .size, .layer { font-size: 11px; fill: #59636e; }
  .box { fill: #f6f8fa; stroke: #57606a; stroke-width: 1.2; }
  .band { fill: #818b981a; }
  .edge { fill: none; stroke: #57606a; stroke-width: 1.2; opacity: .75; }
  .head { fill: #57606a; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .size, .layer { fill: #9198a1; }
    .box { fill: #1c2128; stroke: #9198a1; } .edge { stroke: #9198a1; } .head { fill: #9198a1; }
  }
"""


def direct_edges(edges):
    """The pairs (room, included room) that no longer way connects: the transitive reduction."""
    def reaches(start, goal):
        todo, seen = [start], set()
        while todo:
            for other in edges.get(todo.pop(), ()):
                if other == goal:
                    return True
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return False

    return sorted((room, other) for room, others in edges.items() for other in others
                  if not any(third != other and reaches(third, other) for third in others))


def _add_bends(rows, pairs, row_of):
    """Puts a bend into every row that an arrow passes. Returns the rows (rooms as str, bends as
    tuples) and the arrows as chains of such nodes, from above to below."""
    rows, chains = [list(row) for row in rows], []
    for upper, lower in pairs:
        bends = [(upper, lower, row) for row in range(row_of[upper] - 1, row_of[lower], -1)]
        for bend in bends:
            rows[bend[2]].append(bend)
        chains.append([upper, *bends, lower])
    return rows, chains


def _crossings(rows, chains):
    place = {node: at for row in rows for at, node in enumerate(row)}
    level = {node: index for index, row in enumerate(rows) for node in row}
    steps = {}
    for chain in chains:
        for upper, lower in zip(chain, chain[1:]):
            steps.setdefault(level[lower], []).append((place[upper], place[lower]))
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0
               for lines in steps.values() for i, a in enumerate(lines) for b in lines[:i])


def _arrange(rows, chains):
    """Orders each row by its neighbours in the next, from many starts; the order with the fewest
    crossing arrows wins. Always the same for the same rooms."""
    neighbours = {}
    for chain in chains:
        for a, b in zip(chain, chain[1:]):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
    random, best = Random(1), None
    for _ in range(200):
        order = [random.sample(row, len(row)) for row in rows]
        place = {}
        for sweep in range(8):
            for row in order if sweep % 2 == 0 else reversed(order):
                near = {n: [place[m] for m in neighbours.get(n, []) if m in place] for n in row}
                row.sort(key=lambda n: sum(near[n]) / len(near[n]) if near[n] else 0.5)
                place.update({node: (at + 1) / (len(row) + 1) for at, node in enumerate(row)})
        crossings = _crossings(order, chains)
        if best is None or crossings < best[0]:
            best = (crossings, order)
    return best[1]


def _positions(rows):
    """Centre x of every node, each row centred, and the picture's inner width."""
    def width(node):
        return BOX_WIDTH if isinstance(node, str) else BEND_WIDTH

    total = max(sum(width(n) for n in row) + GAP_X * (len(row) - 1) for row in rows)
    x_of = {}
    for row in rows:
        x = (total - sum(width(n) for n in row) - GAP_X * (len(row) - 1)) / 2
        for node in row:
            x_of[node] = LEFT + x + width(node) / 2
            x += width(node) + GAP_X
    return x_of, total


def _path(chain, x_of, y_of):
    """A smooth line from the upper box's lower edge to the lower box's upper edge."""
    x, y = x_of[chain[0]], y_of[chain[0]] + BOX_HEIGHT
    parts = [f"M{x:.0f} {y:.0f}"]
    for node in chain[1:]:
        next_x, next_y = x_of[node], y_of[node]
        last = isinstance(node, str)
        end_y = next_y - 7 if last else next_y
        middle = (y + end_y) / 2
        parts.append(f"C{x:.0f} {middle:.0f} {next_x:.0f} {middle:.0f} {next_x:.0f} {end_y:.0f}")
        if not last:
            parts.append(f"V{next_y + BOX_HEIGHT:.0f}")
        x, y = next_x, next_y + BOX_HEIGHT
    return " ".join(parts)


def draw(layers, edges, sizes):
    """The SVG text. `layers`: [(number, rooms)] lowest first; `edges`: {room: rooms it includes};
    `sizes`: {room: (files, product lines, test lines)}. Rooms without a size are not drawn."""
    shown = [(number, [r for r in rooms if r in sizes]) for number, rooms in layers]
    shown = [(number, rooms) for number, rooms in shown if rooms]
    row_of = {room: at for at, (_, rooms) in enumerate(shown) for room in rooms}
    pairs = [(a, b) for a, b in direct_edges(edges)
             if a in row_of and b in row_of and row_of[a] > row_of[b]]
    rows, chains = _add_bends([rooms for _, rooms in shown], pairs, row_of)
    rows = _arrange(rows, chains)
    x_of, inner = _positions(rows)
    pitch = BOX_HEIGHT + GAP_Y
    y_of = {node: TOP + (len(rows) - 1 - at) * pitch for at, row in enumerate(rows) for node in row}
    width, height = LEFT + inner + 24, TOP + len(rows) * pitch - GAP_Y + 22

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
           f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="The rooms by layer">',
           f"<style>{STYLE}</style>",
           '<defs><marker id="head" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="7" '
           'markerHeight="7" orient="auto"><path class="head" d="M0 0 8 4 0 8z"/></marker></defs>']
    for number in sorted({n for n, _ in shown}):
        ys = [TOP + (len(rows) - 1 - at) * pitch for at, (n, _) in enumerate(shown) if n == number]
        out.append(f'<rect class="band" x="4" y="{min(ys) - 10}" width="{width - 8:.0f}" '
                   f'height="{max(ys) - min(ys) + BOX_HEIGHT + 20}" rx="8"/>')
        out.append(f'<text class="layer" x="14" y="{min(ys) + 18}">layer {escape(number)}</text>')
        out.append(f'<text class="layer" x="14" y="{min(ys) + 33}">{escape(NAMES.get(number, ""))}</text>')
    for chain in chains:
        out.append(f'<path class="edge" marker-end="url(#head)" d="{_path(chain, x_of, y_of)}">'
                   f"<title>{escape(chain[0])} includes {escape(chain[-1])}</title></path>")
    for room in row_of:
        x, y = x_of[room], y_of[room]
        out.append(f'<rect class="box" x="{x - BOX_WIDTH / 2:.0f}" y="{y}" width="{BOX_WIDTH}" '
                   f'height="{BOX_HEIGHT}" rx="6"/>')
        out.append(f'<text x="{x:.0f}" y="{y + 19}" text-anchor="middle">{escape(room)}</text>')
        out.append(f'<text class="size" x="{x:.0f}" y="{y + 35}" text-anchor="middle">'
                   f"{sizes[room][1]:,} lines</text>")
    out.append("</svg>")
    return "\n".join(out) + "\n"
