#!/usr/bin/env python3
"""Holds the tree against its own rules: who may include whom, and how large a file may grow.

    scripts/check_rooms.py             check; ends with 1 when something is wrong
    scripts/check_rooms.py --sizes     also a table of lines per room
    scripts/check_rooms.py --picture   also draws docs/rooms.svg from the includes there are

A room includes rooms of lower layers only; a CMake target declares what its includes need.
"""

import argparse
import ast
import re
import sys
from pathlib import Path

import source_shape

# The layers of docs/architecture.md, lowest first. Rooms in one row lie beside one another and do
# not see each other. The rows from launch/api on are one layer with an order of its own.
LAYERS = [
    ("0", ["engine/base"]),
    ("1", ["engine/core", "engine/protocol"]),
    ("2", ["engine/kernels", "engine/text", "scheduler", "comm"]),
    ("3", ["parallel"]),
    ("4", ["engine/model"]),
    ("5", ["engine/worker", "engine/coordinator"]),
    ("6", ["launch/api"]),
    ("6", ["launch/batch", "launch/cluster"]),
    ("6", ["launch/gateway"]),
    ("6", ["launch/bench"]),
    ("6", ["launch/sim"]),
    ("6", ["launch/cli"]),
]
ROW = {room: row for row, (_, rooms) in enumerate(LAYERS) for room in rooms}

# The aim is 15,000. The CUDA backend (4,300), the benches and the trace (1,500), the simulator
# (1,100), and the whole of HTTP's edge and API (3,500) came on top, and more besides; they have not
# been paid for yet.
MAX_PRODUCT_LINES = 26_700
WARN_FILE, FAIL_FILE = 400, 600
WARN_FUNCTION, FAIL_FUNCTION = 60, 100

CODE = {".h", ".cc", ".cuh", ".cu", ".rs"}
BRACES = CODE
TOP_FOLDERS = ["engine", "parallel", "comm", "scheduler", "launch", "tests", "scripts"]
SKIPPED = {"target", "__pycache__", "build"}


class Tree:
    """The files of a checkout, each with its text, and what the checks have to say about them."""

    def __init__(self, root):
        self.root = Path(root)
        self.errors, self.warnings = [], []
        self.files = {}  # path relative to the root, with slashes -> text
        for top in TOP_FOLDERS:
            for path in sorted((self.root / top).rglob("*")):
                relative = path.relative_to(self.root)
                if SKIPPED.intersection(relative.parts) or not path.is_file():
                    continue
                if path.suffix in CODE | {".py", ".sh"} or path.name == "CMakeLists.txt":
                    self.files[relative.as_posix()] = path.read_text(encoding="utf-8")

    def rooms(self):
        return [r for r in ROW if any(p.startswith(r + "/") for p in self.files)]


def room_of(path):
    """The room a file lies in, or None: tests, scripts, and folders that are no room."""
    parts = path.split("/")
    for depth in (2, 1):
        room = "/".join(parts[:depth])
        if room in ROW and len(parts) > depth:
            return room
    return None


def includes_of(tree, path):
    """The project's own headers that a file includes: (line number, path)."""
    found = []
    for number, line in enumerate(tree.files[path].splitlines(), 1):
        match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if match:
            found.append((number, match.group(1)))
    return found


def check_layers(tree):
    """Fails includes that go up or sideways. Returns {room: {rooms it includes}}."""
    edges = {room: set() for room in tree.rooms()}
    for path in tree.files:
        room = room_of(path)
        top = path.split("/")[0]
        if room is None:
            if Path(path).suffix in CODE and top not in ("tests", "scripts"):
                tree.errors.append(f"{path}: lies in no room; add the room to scripts/check_rooms.py")
            continue
        for number, included in includes_of(tree, path):
            other = room_of(included)
            if other is None:
                if included.startswith("tests/"):
                    tree.errors.append(f"{path}:{number}: the product includes {included}")
                elif (tree.root / Path(path).parent / included).exists():
                    tree.errors.append(
                        f"{path}:{number}: write \"{included}\" from the project's root")
                continue
            if other == room:
                continue
            edges[room].add(other)
            if ROW[other] >= ROW[room]:
                way = "upward" if ROW[other] > ROW[room] else "sideways"
                tree.errors.append(
                    f"{path}:{number}: {room} includes {included}, which lies {way} of it")
    return edges


def check_cycles(tree):
    """Fails include cycles between files, inside a room too."""
    graph = {p: [i for _, i in includes_of(tree, p) if i in tree.files] for p in tree.files}
    state, stack = {}, []

    def visit(path):
        state[path] = "open"
        stack.append(path)
        for included in graph[path]:
            if state.get(included) == "open":
                cycle = stack[stack.index(included):] + [included]
                tree.errors.append("include cycle: " + " -> ".join(cycle))
            elif included not in state:
                visit(included)
        stack.pop()
        state[path] = "done"

    for path in sorted(graph):
        if path not in state:
            visit(path)


def cmake_dependencies(tree, room):
    """(target names this room's CMakeLists.txt declares, names they depend on) without millrace_."""
    text = re.sub(r"#.*", "", tree.files.get(f"{room}/CMakeLists.txt", ""))
    targets, deps = set(), set()
    for name, body in re.findall(r"\bmillrace_room\s*\(\s*(\w+)([^)]*)\)", text):
        targets.add(name)
        match = re.search(r"\bDEPS\b(.*?)(?:\b(?:SOURCES|LIBS)\b|$)", body, re.S)
        deps.update(match.group(1).split() if match else [])
    for body in re.findall(r"\btarget_link_libraries\s*\(([^)]*)\)", text):
        deps.update(re.findall(r"\bmillrace_(\w+)", body))
    return targets, deps - targets - {"options"}


def check_cmake(tree, edges):
    """Every include between rooms is covered by declared links, directly or through a room's own;
    no declared link goes up or sideways."""
    declared = {room: cmake_dependencies(tree, room) for room in tree.rooms()}
    owner = {name: room for room, (targets, _) in declared.items() for name in targets}
    links = {}
    for room, (_, deps) in declared.items():
        links[room] = {owner[d] for d in deps if d in owner}
        for other in sorted(links[room] - {room}):
            if ROW[other] >= ROW[room]:
                tree.errors.append(f"{room}/CMakeLists.txt: links {other}, which is not below it")
        for dep in sorted(deps - set(owner)):
            if any(other.split("/")[-1] == dep for other in ROW):
                tree.errors.append(f"{room}/CMakeLists.txt: links {dep}, a room that declares no target")
    for room in edges:
        if f"{room}/CMakeLists.txt" not in tree.files:
            if any(room_of(p) == room and p.endswith(".cc") for p in tree.files):
                tree.errors.append(f"{room}: has sources and no CMakeLists.txt")
            continue
        reached, todo = set(), [room]
        while todo:
            for other in links.get(todo.pop(), ()):
                if other not in reached:
                    reached.add(other)
                    todo.append(other)
        for other in sorted(edges[room] - reached):
            tree.errors.append(f"{room}/CMakeLists.txt: DEPS lack {other}, which the room includes")


def functions_of(path, text):
    """[(name, first line, number of lines)] of a C++, Rust or Python file."""
    if path.endswith(".py"):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return [(n.name, n.lineno, n.end_lineno - n.lineno + 1)
                for n in ast.walk(ast.parse(text, path)) if isinstance(n, kinds)]
    if Path(path).suffix in BRACES:
        return source_shape.functions(text, rust=path.endswith(".rs"))
    return []


def check_sizes(tree):
    """Fails and warns on long files and functions, tests and scripts included."""
    for path, text in sorted(tree.files.items()):
        lines = len(text.splitlines())
        if lines > FAIL_FILE:
            tree.errors.append(f"{path}: {lines} lines, the limit is {FAIL_FILE}")
        elif lines > WARN_FILE:
            tree.warnings.append(f"{path}: {lines} lines, aim at {WARN_FILE}")
        for name, first, length in functions_of(path, text):
            if length > FAIL_FUNCTION:
                tree.errors.append(
                    f"{path}:{first}: {name} has {length} lines, the limit is {FAIL_FUNCTION}")
            elif length > WARN_FUNCTION:
                tree.warnings.append(
                    f"{path}:{first}: {name} has {length} lines, aim at {WARN_FUNCTION}")


def room_sizes(tree):
    """{room: (files, product lines, test lines)}, in lines of code (no blank lines, no comments);
    Rust's inline test modules count as tests."""
    sizes = {}
    for room in tree.rooms():
        files = product = tests = 0
        for path, text in tree.files.items():
            lines = source_shape.code_lines(text)
            if path.startswith(f"tests/{room}/") and Path(path).suffix in CODE | {".py"}:
                tests += lines
            elif room_of(path) == room and Path(path).suffix in CODE:
                inline = source_shape.rust_test_lines(text) if path.endswith(".rs") else 0
                is_test = "/tests/" in path
                files += not is_test
                product += 0 if is_test else lines - inline
                tests += lines if is_test else inline
        sizes[room] = (files, product, tests)
    return sizes


def check_total(tree, sizes):
    total = sum(product for _, product, _ in sizes.values())
    if total > MAX_PRODUCT_LINES:
        tree.errors.append(f"the product has {total} lines of code, the limit is {MAX_PRODUCT_LINES}")
    return total


def print_sizes(sizes, total):
    print(f"{'room':<22}{'layer':>6}{'files':>7}{'lines':>8}{'tests':>8}")
    for room, (files, product, tests) in sizes.items():
        print(f"{room:<22}{LAYERS[ROW[room]][0]:>6}{files:>7}{product:>8}{tests:>8}")
    all_files, all_tests = (sum(s[i] for s in sizes.values()) for i in (0, 2))
    print(f"{'all rooms':<22}{'':>6}{all_files:>7}{total:>8}{all_tests:>8}")
    print(f"product lines of code (comments and blank lines aside): {total} of at most "
          f"{MAX_PRODUCT_LINES}")


def check(root):
    """All checks. Returns the tree with its findings, the rooms' include graph and their sizes."""
    tree = Tree(root)
    edges = check_layers(tree)
    check_cycles(tree)
    check_cmake(tree, edges)
    check_sizes(tree)
    return tree, edges, room_sizes(tree)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--sizes", action="store_true", help="print the lines of each room")
    parser.add_argument("--picture", action="store_true", help="write docs/rooms.svg")
    options = parser.parse_args(arguments)

    tree, edges, sizes = check(options.root)
    total = check_total(tree, sizes)
    if options.sizes:
        print_sizes(sizes, total)
    if options.picture:
        import rooms_picture
        target = tree.root / "docs" / "rooms.svg"
        target.write_text(rooms_picture.draw(LAYERS, edges, sizes), encoding="utf-8")
        print(f"wrote {target.relative_to(tree.root)}")
    for text in tree.warnings:
        print("warning:", text)
    for text in tree.errors:
        print("error:", text)
    print(f"rooms: {len(sizes)}, product lines: {total}, "
          f"errors: {len(tree.errors)}, warnings: {len(tree.warnings)}")
    return 1 if tree.errors else 0


if __name__ == "__main__":
    sys.exit(main())
