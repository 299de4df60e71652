#!/usr/bin/env python3
"""Draws the lanes of a job over time from a trace of --profile: a row a rank, a box a step.

    lanes_picture.py TRACE.json OUT.svg [FIRST_STEP LAST_STEP]
"""

import json
import sys
from pathlib import Path

WIDTH, LEFT, ROW, TOP = 960, 150, 46, 34
COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756"]
TEXT = 'font-family="sans-serif" font-size="11"'


def main(trace, out, first=0, last=1 << 60):
    events = json.loads(Path(trace).read_text())
    events = events["traceEvents"] if isinstance(events, dict) else events
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    steps = [e for e in events if e["name"] == "forward" and first <= e["args"]["step"] <= last]
    stages = len({name.split("stage ")[1].split(",")[0] for name in names.values()})
    begin = min(e["ts"] for e in steps)
    end = max(e["ts"] + e["dur"] for e in steps)
    scale = (WIDTH - LEFT - 10) / (end - begin)
    height = TOP + ROW * len(names) + 44
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
             f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
             f'<text x="10" y="20" {TEXT}>plan number and tokens of each step; a colour a lane '
             f'(plan mod {stages + 1}); white: idle</text>']
    for row, pid in enumerate(sorted(names)):
        y = TOP + ROW * row
        lines.append(f'<text x="10" y="{y + 22}" {TEXT}>{names[pid]}</text>')
        lines.append(f'<line x1="{LEFT}" y1="{y + 35}" x2="{WIDTH - 10}" y2="{y + 35}" stroke="#ccc"/>')
        for e in (e for e in steps if e["pid"] == pid):
            x, width = LEFT + (e["ts"] - begin) * scale, max(e["dur"] * scale, 0.6)
            step, tokens = e["args"]["step"], e["args"]["tokens"]
            lines.append(f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="32" stroke="white" '
                         f'stroke-width="0.4" fill="{COLOURS[step % (stages + 1) % len(COLOURS)]}">'
                         f'<title>plan {step}: {e["args"]["rows"]} rows, {tokens} tokens</title></rect>')
            if width > 26:
                lines.append(f'<text x="{x + width / 2:.1f}" y="{y + 16}" {TEXT} fill="white" '
                             f'text-anchor="middle">{step}</text>')
                lines.append(f'<text x="{x + width / 2:.1f}" y="{y + 30}" {TEXT} fill="white" '
                             f'text-anchor="middle">{tokens}</text>')
    for i in range(6):
        x = LEFT + (end - begin) * scale * i / 5
        anchor = "end" if i == 5 else "middle"
        lines.append(f'<text x="{x:.1f}" y="{height - 16}" {TEXT} text-anchor="{anchor}">'
                     f'{(end - begin) * i / 5 / 1e3:.0f} ms</text>')
    Path(out).write_text("\n".join(lines + ["</svg>"]) + "\n")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 5):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
