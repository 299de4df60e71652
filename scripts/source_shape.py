"""Where functions begin and end in C++ and Rust source, told from braces alone.

Not a parser: comments, strings and preprocessor lines are blanked, then every brace outside a
function is judged by the words before it. Good enough to count lines, and tested on odd shapes.
"""

import re

_CPP_TOKENS = re.compile(
    r'R"(?P<tag>[^()\s\\]{0,16})\(.*?\)(?P=tag)"'     # raw string
    r'|//[^\n]*|/\*.*?\*/'                            # comments
    r'|"(?:\\.|[^"\\\n])*"'                           # string
    r"|(?<![0-9A-Za-z_])'(?:\\.[^'\n]*|[^'\\\n])'"    # character, not a digit separator
    r'|^[ \t]*#(?:\\\n|[^\n])*',                      # preprocessor line with continuations
    re.S | re.M)

_RUST_TOKENS = re.compile(
    r'\bb?r(?P<tag>#*)".*?"(?P=tag)'
    r'|//[^\n]*|/\*.*?\*/'
    r'|"(?:\\.|[^"\\])*"'
    r"|b?'(?:\\[^'\n]*|[^'\\\n])'",                   # not a lifetime: it has no closing quote
    re.S)

_TYPE_HEAD = re.compile(r"\b(?:class|struct|union|enum|namespace|concept|extern)\b")


def blank(text, rust=False):
    """The same text with comments, literals and preprocessor lines emptied, lines kept."""
    pattern = _RUST_TOKENS if rust else _CPP_TOKENS
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def _matching_brace(code, start):
    depth = 0
    for at in range(start, len(code)):
        if code[at] == "{":
            depth += 1
        elif code[at] == "}":
            depth -= 1
            if depth == 0:
                return at
    return len(code) - 1


def _opens_function(head):
    """Whether a brace after `head` (the text since the last statement) opens a function's body."""
    plain = re.sub(r"<[^<>(){};]*>", "", head)  # template arguments say "class" too
    plain = re.sub(r"\btemplate\s*", "", plain)
    if ")" not in plain:
        return False
    before = plain[: plain.index("(")]
    return not _TYPE_HEAD.search(before) or re.search(r"\boperator\b", before) is not None


def _opens_member_initializer(head):
    """In `Type(...) : member_{1}, other_{2} {` the first two braces belong to the members."""
    depth, colon = 0, -1
    for at, char in enumerate(head):
        if char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == ":" and depth == 0:
            if head[at - 1: at] != ":" and head[at + 1: at + 2] != ":" and ")" in head[:at]:
                colon = at
    return colon >= 0 and re.search(r"[\w>]\s*$", head[colon + 1:]) is not None


def _name(head, rust):
    if rust:
        return re.search(r"\bfn\s+(\w+)", head).group(1)
    # The first name before a parenthesis that is not part of an attribute.
    match = re.search(r"([\w:]*operator\s*(?:\(\s*\)|[^\s\w(]+)|[~\w:]*\w)\s*\(", head)
    name = match.group(1) if match else "?"
    if re.match(r"TEST(_[FP])?$|TYPED_TEST(_P)?$", name):
        inside = re.search(r"\(([^)]*)\)", head[match.start():])
        name += f"({inside.group(1)})" if inside else ""
    return name


def functions(text, rust=False):
    """[(name, first line, number of lines)] of the functions that lie in no other function."""
    code = blank(text, rust)
    found, head_start, at, parens = [], 0, 0, 0
    while at < len(code):
        char = code[at]
        if char in "([":
            parens += 1
        elif char in ")]":
            parens = max(0, parens - 1)
        elif char == ";" and parens == 0 or char == "}":
            head_start = at + 1
        elif char == "{":
            head = code[head_start:at]
            if parens > 0:  # a value in an argument list
                at = _matching_brace(code, at)
            elif rust and re.search(r"\bfn\s+\w+", head) or not rust and _opens_function(head):
                end = _matching_brace(code, at)
                if not rust and _opens_member_initializer(head):
                    at = end + 1
                    continue
                first = head_start + len(head) - len(head.lstrip())
                line = code.count("\n", 0, first) + 1
                found.append((_name(head, rust), line, code.count("\n", 0, end) + 2 - line))
                at, head_start = end, end + 1
            else:
                head_start = at + 1
        at += 1
    return found


def code_lines(text):
    """Lines that hold code: neither empty nor a comment alone. Comments say why, and cost nothing."""
    lines = (line.strip() for line in text.splitlines())
    return sum(1 for line in lines if line and not line.startswith("//"))


def rust_test_lines(text):
    """Code lines of the `#[cfg(test)] mod ... { }` blocks of a Rust file."""
    code, total = blank(text, rust=True), 0
    for match in re.finditer(r"#\[cfg\(test\)\]\s*mod\s+\w+\s*\{", code):
        end = _matching_brace(code, match.end() - 1)
        total += code_lines(text[match.start():end + 1])
    return total
