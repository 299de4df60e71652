"""`millrace bench serve` and `serve --null-engine`: counts and keys, never a time. Against servers
that misbehave, a request fails with what was wrong."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs import MODEL, MODEL_NAME, PROGRAM, command

OK, USAGE, ADDRESS, ROWS_FAILED = 0, 2, 5, 8
METRICS = ("ttft", "tpot", "itl", "e2el")


@pytest.fixture(scope="module")
def null_server(tmp_path_factory):
    from conftest import Starter
    starter = Starter(tmp_path_factory.mktemp("null"))
    yield starter.serve("--null-engine", 0, "--max-model-len", 1024)
    starter.finish()


def bench(start, port, *arguments, code=OK, **options):
    words = [str(PROGRAM), "bench", "serve", "--port", port, "--json", *arguments]
    ended, out, err = start.run([str(w) for w in words], **options)
    assert ended == code, err
    return (json.loads(out) if out else None), err


def test_counts_what_it_asked_for(start, null_server):
    report, _ = bench(start, null_server.port, "--num-prompts", 40, "--request-rate", 400,
                      "--burstiness", 0.5, "--random-input-len", 20, "--random-output-len", 30,
                      "--ignore-eos", "--goodput", "ttft:1e9", "tpot:1e9", "e2el:1e9")
    assert report["completed"] == 40 and report["failed"] == 0
    assert report["total_input_tokens"] == 40 * 20
    assert report["total_output_tokens"] == 40 * 30
    assert report["request_goodput"] == report["request_throughput"] > 0
    assert report["total_token_throughput"] == pytest.approx(report["output_throughput"] * 50 / 30)
    for metric in METRICS:
        assert {f"{what}_{metric}_ms" for what in ("mean", "median", "std", "p50", "p90", "p99")
                } <= report.keys()
        assert report[f"p50_{metric}_ms"] <= report[f"p90_{metric}_ms"] <= report[f"p99_{metric}_ms"]


def test_the_same_seed_asks_for_the_same(start, null_server):
    arguments = ("--num-prompts", 12, "--random-input-len", 30, "--random-output-len", 20,
                 "--random-range-ratio", 0.5, "--ignore-eos", "--max-concurrency", 3)
    reports = [bench(start, null_server.port, *arguments, "--seed", seed)[0] for seed in (1, 1, 2)]
    totals = [(r["total_input_tokens"], r["total_output_tokens"]) for r in reports]
    assert totals[0] == totals[1] != totals[2]
    assert all(r["max_concurrent_requests"] == 3 for r in reports)


def test_a_trace_and_no_goodput(start, null_server, tmp_path):
    trace = tmp_path / "trace.jsonl"
    rows = [{"arrival_s": i * 0.01, "prompt_tokens": 5 + i, "output_tokens": 1 + i}
            for i in range(10)]
    trace.write_text("\n".join(map(json.dumps, rows)))
    report, _ = bench(start, null_server.port, "--trace", trace, "--ignore-eos",
                      "--goodput", "e2el:1e-9")
    assert report["completed"] == 10 and report["request_goodput"] == 0
    assert report["total_input_tokens"] == sum(r["prompt_tokens"] for r in rows)
    assert report["total_output_tokens"] == sum(r["output_tokens"] for r in rows)


def test_a_thousand_streams_at_once(start, null_server):
    report, _ = bench(start, null_server.port, "--num-prompts", 1000, "--random-input-len", 4,
                      "--random-output-len", 8, "--ignore-eos")
    assert report["max_concurrent_requests"] == 1000
    assert report["completed"] == 1000 and report["total_output_tokens"] == 8000


def test_the_null_engine_answers_every_kind_of_call(null_server):
    import openai
    with openai.OpenAI(base_url=f"{null_server.base}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model=MODEL_NAME, messages=[{"role": "user", "content": "Hi"}], max_tokens=9, n=2,
            logprobs=True, extra_body={"ignore_eos": True})
        assert answer.usage.completion_tokens == 18
        assert [len(c.logprobs.content) for c in answer.choices] == [9, 9]


class Scripted(BaseHTTPRequestHandler):
    """Answers /v1/models, and each call with the script's next (status, bytes, pieces)."""

    protocol_version = "HTTP/1.1"
    script = []
    asked = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        body = json.dumps({"data": [{"id": "some/model"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers["Authorization"], body))
        status, pieces = self.script.pop(0)
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            if piece is None:  # the connection breaks
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def scripted():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Scripted.asked.clear()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def event(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


TOKEN = event(choices=[{"index": 0, "text": "x"}])
IDS = event(choices=[{"index": 0, "text": "xyz", "token_ids": [1, 2, 3]}])
USAGE_OF_9 = event(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 9})
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("pieces, tokens, gaps", [
    ([TOKEN, TOKEN, DONE], 2, 1),
    ([TOKEN + TOKEN + TOKEN, USAGE_OF_9, DONE], 9, 2),  # the server's own count wins
    ([IDS, IDS, DONE], 6, 1),  # several tokens in one event
    ([b": ping\r\n\r\n", TOKEN.replace(b"\n", b"\r\n"), DONE[:5], DONE[5:]], 1, 0),
    ([TOKEN[:20], TOKEN[20:], DONE], 1, 0),
])
def test_tokens_are_counted_right(start, scripted, pieces, tokens, gaps):
    Scripted.script[:] = [(200, pieces)]
    report, _ = bench(start, scripted, "--num-prompts", 1, "--random-input-len", 4,
                      "--random-output-len", 9, "--api-key", "k-1", "--endpoint", "/v9/generate")
    assert report["completed"] == 1 and report["total_output_tokens"] == tokens
    assert (report["mean_itl_ms"] > 0) <= (gaps > 0)
    (path, key, body), = Scripted.asked
    assert path == "/v9/generate" and key == "Bearer k-1"
    assert body["model"] == "some/model" and body["max_tokens"] == 9 and body["stream"] is True
    assert len(body["prompt"]) == 4 and body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("status, pieces, words", [
    (200, [TOKEN], "without [DONE]"),
    (200, [TOKEN, None], "partial message"),
    (200, [TOKEN, event(error={"message": "the engine broke"})], "the engine broke"),
    (200, [b"event: x\n", TOKEN, DONE], "no data"),
    (200, [b"data: {\n\n", DONE], "incomplete"),
    (200, [TOKEN, DONE, TOKEN], "follow [DONE]"),
    (200, [DONE], "no token"),
    (429, [b'{"error": {"message": "slower"}}'], "429 {\"error\": {\"message\": \"slower\"}}"),
])
def test_a_bad_answer_fails_its_request_and_no_other(start, scripted, status, pieces, words):
    Scripted.script[:] = [(200, [TOKEN, DONE]), (status, pieces), (200, [TOKEN, DONE])]
    report, err = bench(start, scripted, "--num-prompts", 3, "--random-input-len", 4,
                        "--max-concurrency", 1, code=ROWS_FAILED)
    assert report["completed"] == 2 and report["failed"] == 1
    assert words in err


@pytest.mark.parametrize("arguments, code, words", [
    (["--goodput", "ttft=5"], USAGE, "--goodput"),
    (["--goodput", "itl:5"], USAGE, "--goodput"),
    (["--request-rate", "0"], USAGE, "--request-rate"),
    (["--endpoint", "/v1/chat/completions"], USAGE, "--endpoint"),
    (["--base-url", "https://127.0.0.1"], USAGE, "http://HOST:PORT"),
    (["--trace", "x", "--request-rate", "3"], USAGE, "--trace"),
    (["--base-url", "http://127.0.0.1:1"], ADDRESS, "--base-url"),
])
def test_a_bad_flag_is_named(start, arguments, code, words):
    ended, out, err = start.run([str(PROGRAM), "bench", "serve", *arguments])
    assert ended == code and out == "" and words in err


def test_a_null_engine_has_no_ranks(start):
    code, _, err = start.run(command("serve", "--null-engine", 0, "-tp", 2, model=MODEL))
    assert code == USAGE and "--null-engine" in err
