"""run-batch over four ranks: every line answered once, and a bad line is an error line."""

import json

import pytest

from jobs import MODEL_NAME, command

OK, USAGE, ROWS_FAILED, INPUT = 0, 2, 8, 9


def line(custom_id, url="/v1/completions", **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url,
                       "body": {"model": MODEL_NAME, "max_tokens": 6, "temperature": 0, **body}})


def good_lines(count):
    for n in range(count):
        if n % 10 == 0:
            yield line(f"row-{n}", "/v1/chat/completions",
                       messages=[{"role": "user", "content": f"What is {n} plus one?"}])
        else:
            yield line(f"row-{n}", prompt=f"The number after {n} is")


def run_batch(start, lines, **layout):
    source, target = start.folder / "in.jsonl", start.folder / "out.jsonl"
    source.write_text("".join(text + "\n" for text in lines))
    code, out, err = start.run(command("run-batch", "-i", source, "-o", target,
                                       "--served-model-name", MODEL_NAME, **layout))
    rows = [json.loads(text) for text in target.read_text().splitlines()] if target.exists() else []
    return code, out, err, rows


def failed(row):
    return row.get("error") is not None or row["response"]["status_code"] != 200


def text_of(row):
    choice = row["response"]["body"]["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize("mode", [2, 3])
def test_200_lines_on_four_ranks(start, mode):
    code, out, err, rows = run_batch(start, good_lines(200), mode=mode, tp=2, pp=2)
    assert code == OK, err
    assert out == ""
    assert sorted(r["custom_id"] for r in rows) == sorted(f"row-{n}" for n in range(200))
    for row in rows:
        assert not failed(row), row
        assert text_of(row).strip()
        assert 0 < row["response"]["body"]["usage"]["completion_tokens"] <= 6


def test_bad_lines_become_error_lines(start):
    lines = list(good_lines(12))
    lines[3] = line("too-hot", prompt="x", temperature=99)
    lines[5] = '{"custom_id": "torn", "method": "POST", "url": '
    lines[7] = line("nowhere", "/v1/teleport", prompt="x")
    lines[9] = line("too-long", prompt="word " * 20_000)
    code, _, err, rows = run_batch(start, lines)
    assert code == ROWS_FAILED, err
    assert len(rows) == 12
    bad = {r["custom_id"] for r in rows if failed(r)}
    assert {"too-hot", "nowhere", "too-long"} <= bad and len(bad) == 4
    good = {r["custom_id"] for r in rows if not failed(r)}
    assert good == {f"row-{n}" for n in range(12) if n not in (3, 5, 7, 9)}
    hot = next(r for r in rows if r["custom_id"] == "too-hot")
    assert "temperature" in json.dumps(hot)


def test_a_custom_id_used_twice_is_refused_before_work(start):
    code, _, err, rows = run_batch(start, [line("same", prompt="a"), line("same", prompt="b")])
    assert code == INPUT, err
    assert "same" in err and rows == []


def test_missing_input_file(start, tmp_path):
    code, out, err = start.run(command("run-batch", "-i", tmp_path / "none.jsonl",
                                       "-o", tmp_path / "out.jsonl"))
    assert code == INPUT and out == "" and "none.jsonl" in err
    assert not (tmp_path / "out.jsonl").exists()
