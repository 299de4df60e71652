"""Chat templates against Jinja2 set up as `transformers` does: each is rendered for every conversation."""

import json
from datetime import datetime

import jinja2
import jinja2.ext
import jinja2.nodes
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from templates import TEMPLATES
from test_tokenizers import ask


class Generation(jinja2.ext.Extension):
    """{% generation %}: what an assistant wrote, marked for training."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda format_: datetime.now().strftime(format_)
    return made


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


CALL = {"type": "function", "id": "abc123456", "function": {"name": "mill", "arguments": {"gate": "open", "n": 2.5, "ü": [None, True]}}}
TOOL = {"type": "function", "function": {
    "name": "mill", "description": "Opens \"the\" <gate> & 'more' – ü", "parameters": {
        "type": "object", "properties": {"gate": {"type": "string", "enum": ["open", "shut"]}, "n": {"type": ["number", "null"]}},
        "required": ["gate"]}}}
CONVERSATIONS = [  # an empty one is refused before a template sees it
    [user("Hello")],
    [system("Be kind.\n"), user("  two words \n")],
    [user("a"), assistant("b"), user("c")],
    [system("/no_think Be brief. /system_override"), user("<think> x </think>"), assistant("<think>\nhm\n</think>\n\nyes"), user("😀 é {{ x }}")],
    [user("q"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "42", "name": "mill", "tool_call_id": "abc123456"},
     {"role": "tool", "content": "43"}, assistant("done", reasoning_content="because"), user("ok")],
    [user("a"), user("b")],
    [assistant("first")],
    [user([{"type": "text", "text": "part one "}, {"type": "text", "text": "part two"}, {"type": "image"}])],
    [user(None), {"role": "ipython", "content": {"output": [1, 2]}}],
    [{"role": "", "content": ""}, {"content": "no role"}],
]
VARIABLES = [
    {"tools": None, "documents": None},
    {"tools": [TOOL, TOOL], "documents": [{"title": "T", "text": "t"}], "enable_thinking": False, "date_string": "26 Jul 2024",
     "custom_instructions": "Do.", "builtin_tools": ["brave_search", "code_interpreter"]},
    {"tools": [], "documents": None, "enable_thinking": True, "xml_tools": "<x>", "tools_in_user_message": False},
]

EXPRESSIONS = [
    "'a,b,,c'.split(',')", "' a  b '.split()", "'a,b,c'.split(',', 1)", "'a,b,c'.rsplit(',', 1)", "'xxaxx'.strip('x')", "'\\n a \\n'.lstrip()",
    "'abc'.startswith('ab')", "'abc'.endswith(('c', 'd'))", "'abc'.startswith(('x', 'a'))", "'aXb'.lower()", "'aXb'.upper()", "'ab cd'.title()",
    "'ab cd'.capitalize()", "'banana'.replace('a', 'o', 2)", "'banana'.count('an')", "'banana'.find('n')", "'banana'.rfind('n')", "'ab'.join(['1','2'])",
    "'a\\nb\\r\\nc'.splitlines()", "'12'.isdigit()", "'ab'.isalpha()", "'a1'.isalnum()", "' '.isspace()", "'A'.isupper()", "'a'.islower()",
    "'{} and {}'.format(1, 'x')", "'%05.2f|%x' | format(3.14159, 255)", "'a' ~ 1 ~ none ~ true ~ 1.0", "'ab' * 3", "'abc'[1]", "'abc'[-1]",
    "'abc'[::-1]", "'abcdef'[1:5:2]", "[1, 2, 3][1:]", "[1, 2, 3][::-1]", "[3, 1, 2] | sort", "[3, 1, 2] | sort(reverse=true) | join('-')", "[1, 1, 2] | unique | list",
    "[1, 2, 3] | sum", "[1, 2, 3] | max", "[1, 2, 3] | min", "[1, 2, 3] | first", "[1, 2, 3] | last", "[1, 2, 3] | reverse | list", "['a', 'b'] | map('upper') | list",
    "[{'a': 1}, {'a': 2}] | map(attribute='a') | list", "[{'a': 1}, {'b': 2}] | selectattr('a') | list", "[1, 2, 3, 4] | select('odd') | list",
    "[1, 2, 3] | batch(2) | list", "{'a': 1, 'b': {'c': [1]}}", "{'a': 1}.get('b', 'none')", "{'a': 1}['a']",
    "{'a': 1}.keys() | list", "{'a': 1}.values() | list", "{'a': 1} | length", "{'a': 1} | tojson", "{'a': 'é\\n\\u2028<>&\\'\"'} | tojson", "{'a': [1, {'b': none}], 'c': {}, 'd': []} | tojson(indent=2)",
    "{'b': 1, 'a': 2} | tojson(sort_keys=true)", "{'b': 1, 'a': 2} | tojson(separators=(',', ':'))", "'é' | tojson(ensure_ascii=true)", "[true, none, 1.5, 1e30, 1e-7, 100000000000000000000] | tojson",
    "x", "x.y", "x is defined", "x is undefined", "x | default('d')", "none | default('d')", "none | default('d', true)", "'' | default('d', true)", "x or 'y'", "not x",
    "1 / 2", "7 // 2", "-7 // 2", "-7 % 3", "7 % 3", "2 ** 10", "1.0", "1e16", "1e15", "0.1 + 0.2", "3 | float", "'3' | int", "3.7 | int", "3.14159 | round(2)", "-3 | abs",
    "1 < 2 < 3", "1 == 1.0", "'a' < 'b'", "[1] == [1]", "'a' in 'abc'", "'a' in {'a': 1}", "1 in [1, 2]", "1 not in [1, 2]", "true and false or true", "'yes' if 1 else 'no'", "('yes' if 0)",
    "1 is number", "1 is integer", "1.0 is float", "true is boolean", "'a' is string", "[1] is sequence", "{} is mapping", "none is none", "[] is iterable", "4 is divisibleby 2", "3 is odd", "'a' is in ['a']", "true is true", "1 is sameas 1", "'A' is upper", 
    "range(3) | list", "range(5, 1, -2) | list", "dict(a=1)", "dict(a=1).a", "namespace(a=1).a", "'<a>' | escape", "'<a>' | e", "'abc' | length", "'hello world' | title",
    "'hello world' | capitalize", "'  x ' | trim", "'xxa' | trim('x')", "'abc' | replace('b', 'x')", "'a\\nb' | indent(2)", "'a\\nb' | indent(2, true)", "'abc' | list", "'abc' | reverse", "'abc' | first", "[1, [2, 3]] | string", 
    "'tab\\t' ", "'it\\'s'", "\"a'b\\\"c\"", "['it\\'s', 'q\"', 'back\\\\', '\\x00\\x7f\\u200b']", "[1, 2] + [3]", "[0] * 3", "'é' | upper", "'ß' | upper", "'don\\'t stop'.title()", "'İ'.lower()",
    "['👩\u200d🚀', '\u00a0\u2028\ue000\U000e0001é\u00ad']", "[1, 'a'] | trim", "none | trim", "' xx ' | trim(' x')", "none is iterable", "[true, none, 1.5] | join(',')",
    "[true] | string | lower", "true | lower", "none | upper", "none | replace('N', 'n')", "'\u00a0a\u2003' | trim", "'\u00a0a\u2003'.strip()",
    "messages[5] is defined", "messages[0].role", "messages[-1]['role']", "messages | map(attribute='role') | join(',')", "messages | selectattr('role', 'eq', 'user') | map(attribute='content') | first", 
]

# What engine/text/README.md names as different. A template of a family that needs one of these would be a reason to add it.
DIFFERENT = [
    "'%s-%d' % ('a', 3)", "{'a': 1}.items() | list", "{'b': 1, 'a': 2} | dictsort", "'x' | int", "2.5 | round | int", "x is callable", "lipsum is defined", "[[1, 2], [3]] | sum(start=[])", "'a b' | urlencode",
    "'a b c' | wordcount", "'abcdefghij' | truncate(5)", "'a' | center(5)", "(1, 2)", "(1,)", "()", "{1: 'a', none: 'b', true: 'c'}", "'ǆ'.title()", "'don\\'t stop' | title", "'a-b_c'.isidentifier()", "'a'.zfill(3)", "'a'.ljust(3) ~ '|'", "'a'.encode()", "[][::-1]",
]


def expected(environment_, template, messages, variables):
    try:
        text = environment_.from_string(template).render(
            messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", **variables)
        return text.encode()
    except Exception as error:  # noqa: BLE001: whatever Jinja2 refuses, we are to refuse
        return error


def compare(cases):
    environment_ = environment()
    requests = [" ".join(part.encode().hex() for part in (template, json.dumps(messages), json.dumps(variables)))
                for template, messages, variables in cases]
    wrong = []
    for (template, messages, variables), answer in zip(cases, ask([f"t {request}" for request in requests])):
        wanted = expected(environment_, template, messages, variables)
        got = Exception(bytes.fromhex(answer[1:]).decode()) if answer.startswith("!") else bytes.fromhex(answer)
        raised = isinstance(wanted, jinja2.exceptions.TemplateError) and type(wanted) is jinja2.exceptions.TemplateError
        if isinstance(wanted, Exception) != isinstance(got, Exception) or (
                str(wanted) != str(got) if raised else not isinstance(wanted, Exception) and wanted != got):
            wrong.append((template[:60] if len(template) > 200 else template, messages, list(variables), wanted, got))
    return wrong


@pytest.mark.parametrize("name", TEMPLATES)
def test_family(name):
    wrong = compare([(TEMPLATES[name], messages, variables) for messages in CONVERSATIONS for variables in VARIABLES])
    assert not wrong, wrong[0]


def test_expressions():
    wrong = compare([("{{ " + expression + " }}", CONVERSATIONS[4], VARIABLES[0]) for expression in EXPRESSIONS])
    assert not wrong, "\n".join(f"{template}: {wanted!r}, ours {got!r}" for template, _, _, wanted, got in wrong)


def test_known_differences():
    wrong = compare([("{{ " + expression + " }}", [], VARIABLES[0]) for expression in DIFFERENT])
    assert [template for template, *_ in wrong] == ["{{ " + expression + " }}" for expression in DIFFERENT]
