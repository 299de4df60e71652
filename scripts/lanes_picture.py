#!/usr/bin/env python3
"""Draws what every pipeline stage did over time, from a trace that --profile wrote.

    lanes_picture.py TRACE OUT.svg [FIRST LAST]

A box is a step of a stage (its rank tp 0): the plan's number and its tokens, in its lane's colour,
joined to the same plan on the next stage. FIRST and LAST are plans; without them all are drawn.
The time goes over as many lines as make the boxes readable.
"""

import json
import re
import sys
from collections import defaultdict

WIDTH, LEFT, RIGHT = 900, 66, 14
ROW, GAP, TOP = 34, 12, 40  # a stage, between stages, the legend
AXIS = 40                   # below each line of time
MIN_BOX = 17                # a usual short step, in pixels

STYLE = """
  text { font: 11px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 10px; fill: #59636e; }
  .plan { font-size: 10.5px; font-weight: 600; fill: #1f2328; text-anchor: middle; }
  .tokens { font-size: 9.5px; fill: #1f2328; text-anchor: middle; }
  .idle { fill: #818b98; fill-opacity: .14; }
  .tick, .hand { stroke: #59636e; stroke-width: .8; } .hand { opacity: .8; }
  .lane0 { fill: #80ccff; } .lane1 { fill: #ffb77c; } .lane2 { fill: #7ee0a1; }
  .lane3 { fill: #d8b9ff; } .lane4 { fill: #ffc1e0; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .small { fill: #9198a1; } .plan, .tokens { fill: #1f2328; }
    .tick, .hand { stroke: #9198a1; }
  }
"""


def read(path):
    """Per stage {plan: (begin ms, end ms, tokens)} of its rank tp 0, a stage's waits left out."""
    with open(path, encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    stage_of = {}
    for event in events:
        if event["name"] == "process_name":
            place = re.search(r"stage (\d+), tp 0$", event["args"]["name"])
            if place:
                stage_of[event["pid"]] = int(place[1])
    stages = defaultdict(dict)
    for event in events:
        if event["name"] not in ("forward", "sample or hand over") or event["pid"] not in stage_of:
            continue
        steps, plan = stages[stage_of[event["pid"]]], event["args"]["step"]
        begin, end = event["ts"] / 1e3, (event["ts"] + event["dur"]) / 1e3
        old = steps.get(plan, (begin, end, 0))
        steps[plan] = (min(old[0], begin), max(old[1], end), event["args"]["tokens"])
    return [stages[stage] for stage in sorted(stages)]


def tick_ms(span):
    """A round distance of marks, of which `span` ms hold 5 to 14."""
    step = 1
    while True:
        for size in (step, 2 * step, 5 * step):
            if span / size <= 14:
                return size
        step *= 10


class Picture:
    """Time from `begin` to `end`, folded into `lines` lines; x and the line of a moment."""

    def __init__(self, stages):
        self.stages = stages
        boxes = [step for steps in stages for step in steps.values()]
        self.begin, self.end = min(b[0] for b in boxes), max(b[1] for b in boxes)
        short = sorted(end - begin for begin, end, _ in boxes)[len(boxes) // 4]
        inner = WIDTH - LEFT - RIGHT
        self.lines = max(1, round(MIN_BOX * (self.end - self.begin) / (short * inner)))
        self.span = (self.end - self.begin) / self.lines
        self.scale = inner / self.span
        self.line_height = len(stages) * (ROW + GAP) - GAP + AXIS
        self.out = []

    def y(self, line, stage):
        return TOP + line * self.line_height + stage * (ROW + GAP)

    def pieces(self, begin, end):
        """(line, x, width) of a span of time: two or more where it goes over a line's end."""
        for line in range(self.lines):
            first = self.begin + line * self.span
            a, b = max(begin, first), min(end, first + self.span)
            if b > a:
                yield line, LEFT + (a - first) * self.scale, (b - a) * self.scale

    def box(self, stage, plan, lanes):
        begin, end, tokens = self.stages[stage][plan]
        pieces = list(self.pieces(begin, end))
        for line, x, width in pieces:
            y = self.y(line, stage)
            self.out.append(f'<rect class="lane{plan % lanes % 5}" x="{x:.1f}" y="{y}" '
                            f'width="{max(width - .7, 2):.1f}" height="{ROW}" rx="{2 if width > 4 else 0}"/>')
            if (line, x, width) == max(pieces, key=lambda p: p[2]) and width >= 6 * len(str(plan)):
                middle = x + width / 2
                self.out.append(f'<text class="plan" x="{middle:.1f}" y="{y + 15}">{plan}</text>'
                                f'<text class="tokens" x="{middle:.1f}" y="{y + 28}">{tokens}'
                                '</text>')

    def hand_over(self, stage, plan):
        sent, taken = self.stages[stage][plan][1], self.stages[stage + 1][plan][0]
        line = min(int((sent - self.begin) / self.span), self.lines - 1)
        first = self.begin + line * self.span
        if taken <= first + self.span:
            y = self.y(line, stage) + ROW
            self.out.append(f'<path class="hand" d="M{LEFT + (sent - first) * self.scale:.1f} {y}'
                            f'L{LEFT + (taken - first) * self.scale:.1f} {y + GAP}"/>')

    def axis(self, line):
        first = line * self.span
        bottom = self.y(line, len(self.stages) - 1) + ROW
        for stage in range(len(self.stages)):
            y = self.y(line, stage)
            self.out.append(f'<text x="8" y="{y + ROW / 2 + 4:.0f}">stage {stage}</text>'
                            f'<rect class="idle" x="{LEFT}" y="{y}" '
                            f'width="{WIDTH - LEFT - RIGHT}" height="{ROW}"/>')
        step = tick_ms(self.span)
        mark = -(-first // step) * step
        while mark <= first + self.span:
            x = LEFT + (mark - first) * self.scale
            self.out.append(f'<path class="tick" d="M{x:.1f} {bottom + 3}v4"/><text class="small" '
                            f'x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{mark:.0f}'
                            f'{" ms" if mark == 0 else ""}</text>')
            mark += step

    def svg(self):
        lanes = len(self.stages) + 1
        for lane in range(lanes):
            x = LEFT + lane * 76
            self.out.append(f'<rect class="lane{lane % 5}" x="{x}" y="11" width="14" height="14" '
                            f'rx="2"/><text x="{x + 20}" y="22">lane {lane}</text>')
        self.out.append(f'<text class="small" x="{WIDTH - RIGHT}" y="22" text-anchor="end">in a box: '
                        'plan, and its tokens; a thin line: plan without rows; grey: the stage '
                        'waits</text>')
        for line in range(self.lines):
            self.axis(line)
        for stage, steps in enumerate(self.stages):
            for plan in sorted(steps):
                self.box(stage, plan, lanes)
                if stage + 1 < len(self.stages) and plan in self.stages[stage + 1]:
                    self.hand_over(stage, plan)
        height = TOP + self.lines * self.line_height - 8
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
                f'width="{WIDTH}" height="{height}" role="img" aria-label="The steps of '
                f'{len(self.stages)} pipeline stages over time">\n<style>{STYLE}</style>\n'
                + "\n".join(self.out) + "\n</svg>\n")


def main():
    if len(sys.argv) not in (3, 5):
        sys.exit(__doc__)
    stages = read(sys.argv[1])
    if len(sys.argv) == 5:
        first, last = int(sys.argv[3]), int(sys.argv[4])
        stages = [{plan: step for plan, step in steps.items() if first <= plan <= last}
                  for steps in stages]
    if not all(stages) or not stages:
        sys.exit(f"{sys.argv[1]}: no steps of these plans")
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(Picture(stages).svg())


if __name__ == "__main__":
    main()
