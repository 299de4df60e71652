"""Schemathesis against docs/openapi.json: 1,000 examples and more for each operation, of good and of
bad data. No 5xx, nothing that the document does not say."""

import json
import os
import subprocess
import urllib.request

import pytest

import foreign
from jobs import ROOT

pytestmark = pytest.mark.long
# Not positive_data_acceptance: what a document allows may be longer than the context. Not
# ignored_auth: test_gateway.py holds the keys.
CHECKS = ("not_a_server_error,status_code_conformance,content_type_conformance,"
          "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
          "unsupported_method,allow_header_conformance")
EXAMPLES = int(os.environ.get("MILLRACE_SCHEMATHESIS_EXAMPLES", "1000"))


def test_the_api_is_what_its_document_says(start, tmp_path):
    server = start.serve("--null-engine", 0, "--max-model-len", 128, "--max-num-seqs", 512)
    with urllib.request.urlopen(f"{server.base}/openapi.json") as answer:
        assert json.load(answer) == json.loads((ROOT / "docs" / "openapi.json").read_text())
    environment = foreign.venv("schemathesis", ROOT / "tests" / "blackbox" / "schemathesis.txt")
    ended = subprocess.run(
        [environment / "bin" / "schemathesis", "run", f"{server.base}/openapi.json",
         "--checks", CHECKS, "--mode", "all", "--max-examples", str(EXAMPLES), "--seed", "1",
         "--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--workers", "2",
         "--request-timeout", "60", "--suppress-health-check", "all", "--no-color"],
        capture_output=True, text=True, cwd=tmp_path, timeout=3000)
    print(ended.stdout[-8000:])
    assert ended.returncode == 0, ended.stdout[-20000:] + ended.stderr[-2000:]
    assert server.stop() == 0
