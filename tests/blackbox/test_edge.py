"""The edge of `millrace serve`: TLS, log lines, hosts and origins."""

import http.client
import json
import socket
import ssl
import subprocess

import openai
import pytest

from jobs import MODEL_NAME, TINY, command

SECRET = "the prompt nobody may log"
GREEDY = {"model": MODEL_NAME, "prompt": SECRET, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "cert.pem", folder / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-out", made[0], "-keyout", made[1]], check=True, capture_output=True)
    return made


def serve_tls(start, certificate, *arguments):
    return start.serve("--ssl-certfile", certificate[0], "--ssl-keyfile", certificate[1],
                       *arguments, model=TINY, tls=ssl.create_default_context(cafile=certificate[0]))


def test_tls_carries_all_that_plain_http_does(start, certificate):
    plain = start.serve(model=TINY)
    with openai.OpenAI(base_url=f"{plain.base}/v1", api_key="-", max_retries=0) as client:
        whole = client.completions.create(**GREEDY).choices[0].text
    server = serve_tls(start, certificate)
    with openai.OpenAI(base_url=f"{server.base}/v1", api_key="-", max_retries=0,
                       http_client=openai.DefaultHttpxClient(verify=server.tls)) as client:
        for _ in range(2):  # the second over the same connection
            assert client.completions.create(**GREEDY).choices[0].text == whole
            chunks = client.completions.create(stream=True, **GREEDY)
            assert "".join(chunk.choices[0].text for chunk in chunks) == whole
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**{**GREEDY, "temperature": 3})


def speak(server, data, version=None):
    """What the server says to these bytes until it ends the connection, properly: an end without
    TLS' own word for it raises."""
    context = ssl.create_default_context(cadata=None)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # the server is to refuse, not we
    if version:
        context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        with context.wrap_socket(raw, suppress_ragged_eofs=False) as client:
            client.sendall(data)
            answer = b""
            while piece := client.recv(1 << 16):
                answer += piece
            return answer


def test_tls_ends_and_refuses_as_it_should(start, certificate):
    server = serve_tls(start, certificate)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        answer = speak(server, b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                       version)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b'"live"}')
    with pytest.raises(ssl.SSLError):
        speak(server, b"", ssl.TLSVersion.TLSv1_1)
    # A body that is not waited for: the refusal still arrives, though more comes in.
    answer = speak(server, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b"
                   b"\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 200_000)
    assert answer.startswith(b"HTTP/1.1 415 ")
    # Plain HTTP is no TLS: closed, and nobody else minds.
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain:
        plain.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not plain.recv(1000).startswith(b"HTTP")
    assert server.healthy()


def test_bad_files_of_tls_are_told_before_the_model_is_loaded(start, certificate, tmp_path):
    cert, key = certificate
    junk = tmp_path / "junk.pem"
    junk.write_text("no PEM\n")
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "genrsa", "-out", other, "2048"], check=True, capture_output=True)
    locked = tmp_path / "locked.pem"
    subprocess.run(["openssl", "rsa", "-in", key, "-out", locked, "-aes256", "-passout", "pass:a"],
                   check=True, capture_output=True)
    for words, code, says in [
            (["--ssl-certfile", cert], 2, "--ssl-keyfile is missing"),
            (["--ssl-keyfile", key], 2, "--ssl-certfile is missing"),
            (["--ssl-certfile", tmp_path / "none.pem", "--ssl-keyfile", key], 9, "none.pem"),
            (["--ssl-certfile", cert, "--ssl-keyfile", tmp_path], 9, str(tmp_path)),
            (["--ssl-certfile", junk, "--ssl-keyfile", key], 9, "--ssl-certfile"),
            (["--ssl-certfile", cert, "--ssl-keyfile", junk], 9, "--ssl-keyfile"),
            (["--ssl-certfile", cert, "--ssl-keyfile", other], 9, "--ssl-keyfile"),
            (["--ssl-certfile", cert, "--ssl-keyfile", locked], 9, "without a password")]:
        ended, _, stderr = start.run(command("serve", *words, model="no-such-model"))
        assert ended == code and says in stderr and stderr.count("\n") == 1, (words, stderr)


def ask(server, path, headers=(), body=None, method=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method or ("POST" if body else "GET"), path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_json_logs_have_request_ids_and_no_prompts(start):
    server = start.serve("--log-format", "json", mode=2, pp=2, model=TINY)
    json_type = ("Content-Type", "application/json")
    status, headers, _ = ask(server, "/v1/completions", [json_type, ("X-Request-Id", "mine-1")],
                             json.dumps(GREEDY))
    assert (status, headers["x-request-id"]) == (200, "mine-1")
    odd = 'quote"back\\slash'
    status, headers, _ = ask(server, "/v1/completions", [json_type, ("X-Request-Id", odd)],
                             json.dumps({**GREEDY, "temperature": SECRET}))
    assert (status, headers["x-request-id"]) == (400, odd)
    for unfit in ("a" * 129, "caf\xe9", "two words"):  # not echoed: one of ours instead
        _, headers, _ = ask(server, "/nowhere?" + "s" * 500, [("X-Request-Id", unfit)])
        assert headers["x-request-id"].startswith("req-")
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.stderr.splitlines()]
    assert all({"time", "level"} < line.keys() and ("event" in line) != ("message" in line)
               for line in lines)
    assert {line.get("who") for line in lines} >= {None, "rank 0", "rank 1"}
    requests = {line["request_id"]: line for line in lines if line.get("event") == "request"}
    assert requests["mine-1"].items() >= {
        "method": "POST", "path": "/v1/completions", "status": 200, "client": "127.0.0.1",
        "output_tokens": 12, "level": "info"}.items()
    assert requests["mine-1"]["prompt_tokens"] > 0
    assert requests[odd]["status"] == 400
    assert sum(line["path"] == "/nowhere" for line in requests.values()) == 3
    assert SECRET not in server.stderr


def test_only_known_hosts_and_named_origins_may_ask(start):
    page, named = "https://evil.example", "https://app.example"
    server = start.serve("--allowed-hosts", "llm.example,other.example", "--cors-origins", named,
                         "--api-key", "k", model=TINY)
    for host, status in [("localhost", 200), (f"127.0.0.1:{server.port}", 200), ("[::1]:80", 200),
                         ("LLM.example:8000", 200), ("evil.example", 403),
                         ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403)]:
        assert ask(server, "/live", [("Host", host)])[0] == status, host
    key = ("Authorization", "Bearer k")
    status, headers, body = ask(server, "/v1/models", [key, ("Origin", page)])
    assert status == 403 and json.loads(body)["error"]["code"] == "origin_not_allowed"
    assert "Access-Control-Allow-Origin" not in headers
    status, headers, _ = ask(server, "/v1/models", [key, ("Origin", named)])
    assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (200, named,
                                                                                "Origin")
    own = ("Origin", f"http://127.0.0.1:{server.port}")
    assert ask(server, "/v1/models", [key, own])[0] == 200
    # A browser asks first, without the key; the answer is for named pages alone.
    asks = [("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization,content-type,x-stainless-os")]
    status, headers, _ = ask(server, "/v1/completions", [("Origin", named), *asks], method="OPTIONS")
    assert status == 200 and headers["Access-Control-Allow-Headers"] == asks[1][1]
    assert "POST" in headers["Access-Control-Allow-Methods"]
    for origin in ([("Origin", page)], [("Origin", "null")], []):
        status, headers, _ = ask(server, "/v1/completions", [*origin, *asks], method="OPTIONS")
        assert status in (401, 403)
        assert not [name for name in headers if name.startswith("Access-Control")]
