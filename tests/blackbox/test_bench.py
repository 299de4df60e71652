"""What the benchmarks print: which figures, and the bytes and limits behind them. A time is never
asserted."""

import json

import pytest

from jobs import ROOT, command

OK, USAGE = 0, 2
TINY = ROOT / "tests" / "data" / "tiny-llama"


def bench(kind, *arguments, **layout):
    words = command("bench", *arguments, "--json", model=TINY, **layout)
    at = words.index("bench")
    return words[:at + 1] + [kind] + words[at + 1:]


def run(start, kind, *arguments, **layout):
    code, out, err = start.run(bench(kind, *arguments, **layout))
    assert code == OK, err
    report = json.loads(out)
    assert report["read_bandwidth_gb_per_s"] > 0
    return report, {figure["name"]: figure for figure in report["figures"]}


def moved(figure):
    """Bytes, from the two numbers that are printed."""
    return figure["gb_per_s"] * figure["us"] * 1e3


def test_kernels_by_the_shapes_of_the_model(start):
    report, found = run(start, "kernels", "--max-num-batched-tokens", 256)
    for verb in ("qkv 192x96", "o 96x96", "gate_up 256x96", "down 96x128", "head 512x96"):
        assert {f"{verb}, {rows} rows" for rows in (1, 8, 64, 256)} <= found.keys()
    for verb in ("rms_norm", "add_rms_norm", "gate_mul", "rope_kv_write"):
        assert {f"{verb}, 1 rows", f"{verb}, 256 rows"} <= found.keys()
    assert "prefill attention, 1 x 256" in found
    assert {"sampling greedy, 64 rows", "sampling top-k and top-p, 64 rows"} <= found.keys()
    # Weights are stored as f32 here; the input and the output of 8 rows lie beside them.
    assert moved(found["qkv 192x96, 8 rows"]) == pytest.approx(4 * (192 * 96 + 8 * (192 + 96)))
    for figure in report["figures"]:
        limit = moved(figure) / report["read_bandwidth_gb_per_s"] * 1e-3
        assert figure["limit_us"] == pytest.approx(limit)
        assert figure["fraction_of_limit"] == pytest.approx(limit / figure["us"])


def test_decode_attention_reads_what_its_contexts_hold(start):
    _, found = run(start, "kernels", "-c", 256, "--max-num-batched-tokens", 64)
    # 3 KV heads of 16 numbers, keys and values, in f32; 6 query heads in and out.
    assert moved(found["rope_kv_write, 1 rows"]) == pytest.approx(4 * (2 * 96 + 4 * 48))
    assert moved(found["prefill attention, 1 x 64"]) == pytest.approx(
        4 * (64 * 2 * 48 + 2 * 64 * 96))


def test_comm_of_a_layout(start):
    report, found = run(start, "comm", mode=2, tp=2, pp=2)
    assert report["peer_copy_gb_per_s"] > 0
    sums = [figure for figure in report["figures"] if figure["name"].startswith("all-reduce ")]
    assert len(sums) == 12  # 8 KiB to 16 MiB
    assert [round(moved(figure)) for figure in sums] == [8192 << i for i in range(12)]
    assert moved(found["gather of logits, 8 rows"]) == pytest.approx(8 * 256 * 4)
    assert moved(found["hidden states of 64 rows, one after another"]) == pytest.approx(64 * 96 * 4)
    assert "hidden states of 1 rows through all stages, ids back" in found


def test_comm_of_one_rank_is_refused(start):
    code, out, err = start.run(bench("comm"))
    assert code == USAGE and out == ""
    assert "-tp" in err
