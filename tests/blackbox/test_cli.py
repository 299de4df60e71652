"""The command line: what goes to which stream, and one clear sentence with its exit code for
every mistake (docs/exit-codes.md)."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from jobs import MODEL, PROGRAM, ROOT, command

OK, USAGE, MODEL_ERROR, LAYOUT, ADDRESS, OUT_OF_MEMORY = 0, 2, 3, 4, 5, 7
PROMPT = ["--prompt", "The capital of France is"]

CRASHES = re.compile(r"terminate called|Segmentation|core dumped|Aborted|CHECK|Sanitizer|\.cc:\d+")


def assert_clear_error(result, exit_code, *words):
    """The exit code, nothing on standard output, and one line on standard error with the words."""
    code, out, err = result
    assert code == exit_code, err
    assert out == ""
    assert not CRASHES.search(err), err
    lines = [line for line in err.splitlines() if all(w.lower() in line.lower() for w in words)]
    assert len(lines) == 1, f"{len(lines)} lines with {words} in:\n{err}"
    assert len(lines[0]) < 500


def generate(start, *arguments, **layout):
    return start.run(command("generate", *arguments, **layout))


@pytest.mark.parametrize("layout", [{}, {"mode": 2, "tp": 2, "pp": 2}, {"mode": 3, "tp": 2, "pp": 2}],
                         ids=["mode1", "mode2", "mode3"])
def test_generate_writes_the_text_alone(start, layout):
    code, out, err = generate(start, *PROMPT, "--max-tokens", 8, "--temperature", 0, **layout)
    assert code == OK, err
    assert out.lstrip().startswith("Paris")
    assert out.count("\n") <= 3 and "[" not in out and "tokens/s" not in out


@pytest.mark.parametrize("layout", [{}, {"mode": 2, "tp": 2, "pp": 2}, {"mode": 3, "tp": 2, "pp": 2}],
                         ids=["mode1", "mode2", "mode3"])
def test_profile_has_each_step_of_each_rank_on_one_time_line(start, tmp_path, layout):
    target = tmp_path / "trace.json"
    code, _, err = generate(start, *PROMPT, "--max-tokens", 8, "--temperature", 0, "--ignore-eos",
                            "--profile", target, **layout)
    assert code == OK, err
    events = json.loads(target.read_text())["traceEvents"]
    num_ranks = layout.get("tp", 1) * layout.get("pp", 1)
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {r: f"rank {r}: stage {r // 2}, tp {r % 2}" for r in range(num_ranks)}
    ends = {}
    for rank in range(num_ranks):
        steps = [e for e in events if e["pid"] == rank and e["name"] == "forward"
                 and e["args"]["rows"] > 0]
        assert [e["args"]["tokens"] for e in steps] == [5] + 7 * [1]
        for before, after in zip(steps, steps[1:]):
            assert before["ts"] + before["dur"] <= after["ts"] + 0.002
        ends[rank] = [e["ts"] + e["dur"] for e in steps]
    if num_ranks > 1:  # what a stage computes on, the one before has finished
        assert all(first < last for first, last in zip(ends[0], ends[2]))


def test_each_rank_tells_its_memory_plan_by_parts(start):
    code, _, err = generate(start, *PROMPT, "--max-tokens", 2, "--kv-cache-memory", "16MiB",
                            mode=2, tp=2, pp=1)
    assert code == OK, err
    plans = re.findall(r"memory plan: weights ([\d.]+) MiB, workspace ([\d.]+), communication "
                       r"([\d.]+), graphs ([\d.]+), KV cache ([\d.]+) .*together ([\d.]+)", err)
    assert len(plans) == 2, err
    for plan in plans:
        *parts, together = map(float, plan)
        assert sum(parts) == pytest.approx(together, abs=0.3)
        assert 40 < parts[0] < 92 and parts[1] > 10
    # As many blocks on each; of the three KV heads one rank has two, and its memory is the limit.
    caches = sorted(float(plan[4]) for plan in plans)
    assert 15 < caches[1] <= 17 and caches[1] == pytest.approx(2 * caches[0], abs=0.2)


PARTS = ("weights", "workspace", "communication", "graphs", "kv_cache")


def fit(start, model, *arguments):
    code, out, err = start.run([str(PROGRAM), "fit", str(model), *map(str, arguments), "--json"])
    assert code == OK, err
    report = json.loads(out)
    for rank in report["ranks"]:
        assert rank["together"] == sum(rank[part] for part in PARTS) > 0
    return report


@pytest.mark.parametrize("layout", [{}, {"mode": 2, "tp": 2}], ids=["1x1", "tp2"])
def test_fit_tells_what_the_workers_then_plan(start, layout):
    limits = ["--kv-cache-memory", "128MiB", "--max-model-len", 2048, "--device", "cpu"]
    planned = fit(start, MODEL, *limits, "-tp", layout.get("tp", 1))
    code, _, err = generate(start, *PROMPT, "--max-tokens", 2, *limits, **layout)
    assert code == OK, err
    told = re.findall(r"(?:rank (\d)\] )?memory plan: weights ([\d.]+) MiB, workspace ([\d.]+), "
                      r"communication ([\d.]+), graphs ([\d.]+), KV cache ([\d.]+) "
                      r"\((\d+) tokens\), together ([\d.]+)", err)
    assert len(told) == len(planned["ranks"]) == layout.get("tp", 1)
    for number, *parts, tokens, together in told:
        rank = planned["ranks"][int(number or 0)]
        assert planned["kv_tokens"] == int(tokens)
        for part, value in zip(PARTS, parts):
            if part != "workspace":  # which has the program itself
                assert rank[part] / 2**20 == pytest.approx(float(value), abs=0.06), part
        assert rank["together"] / 2**20 == pytest.approx(float(together), rel=0.02)


SHAPE = {"vocab_size": 32000, "hidden_act": "silu", "max_position_embeddings": 4096,
         "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
         "attention_bias": False, "eos_token_id": 1}
QWEN3 = {**SHAPE, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
         "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
LLAMA = {**SHAPE, "architectures": ["LlamaForCausalLM"], "model_type": "llama",
         "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}


@pytest.mark.long
@pytest.mark.parametrize("shape, cache", [(None, "48MiB"), (QWEN3, "225MiB"), (LLAMA, "65MiB")],
                         ids=["smollm2", "qwen3", "llama"])
def test_fit_tells_what_is_resident_in_the_end(start, tmp_path, shape, cache):
    """Once the largest step has run and the cache has been full."""
    model, prompt = MODEL, " the" * 1000
    if shape is not None:
        model, prompt = tmp_path, "x" * 1000
        (tmp_path / "config.json").write_text(json.dumps(shape))
        for file in (ROOT / "tests/data/tiny-llama").glob("*oken*"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    flags = [model, "--load-format", "auto" if shape is None else "dummy", "--kv-cache-memory",
             cache, "--max-model-len", "1024", "--max-num-batched-tokens", "256",
             "--max-num-seqs", "8", "--device", "cpu"]
    planned, = fit(start, *flags)["ranks"]
    words = [PROGRAM, "generate", *flags, "--prompt", prompt, "--max-tokens", "8", "--ignore-eos",
             "--log-level", "warning"]
    run = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(run.pid, 0)
    assert status == 0
    print(f"fit {planned['together'] / 2**20:.1f} MiB, resident {usage.ru_maxrss / 2**10:.1f}")
    assert planned["together"] / 2**10 == pytest.approx(usage.ru_maxrss, rel=0.02)


def test_fit_proposes_degrees_or_says_what_would_do(start, monkeypatch):
    monkeypatch.setenv("MILLRACE_DEVICE", "auto")  # as where nobody has chosen one
    shape = [ROOT / "configs/shapes/llama-3.1-70b", "--load-format", "dummy", "--gpu-memory",
             "81559MiB", "--max-model-len", 8192]
    report = fit(start, *shape, "--gpus", 8)
    assert (report["tp"], report["pp"]) == (2, 1) and report["kv_tokens"] >= 8192
    code, out, _ = start.run([str(PROGRAM), "fit", *map(str, shape), "--gpus", "8"])
    assert code == OK and "-tp 2 -pp 1" in out and re.search(r"^1 +\d+\.\d", out, re.M)
    assert_clear_error(start.run([str(PROGRAM), "fit", *map(str, shape), "--gpus", "1"]),
                       OUT_OF_MEMORY, "does not fit", "needs 138.7 GiB", "2 such GPUs", "-tp 2 -pp 1")
    for words, named in ((["--gpus", "2"], "--gpu-memory"), (["--device", "cuda"], "--gpus"),
                         (["--gpus", "1", "--gpu-memory", "9GiB", "-tp", "2"], "--gpus says 1")):
        assert_clear_error(start.run([str(PROGRAM), "fit", str(MODEL), *words]), USAGE, named)
    assert_clear_error(start.run([str(PROGRAM), "fit", str(MODEL), "-tp", "16"]), LAYOUT, "heads")
    assert_clear_error(start.run([str(PROGRAM), "fit", "/nowhere"]), MODEL_ERROR, "/nowhere")


def test_doctor_gives_each_finding_a_line_and_what_lacks_a_remedy(start):
    code, out, err = start.run([str(PROGRAM), "doctor", "--json"])
    assert code == OK, out + err
    report = json.loads(out)
    found = {f["what"]: f for f in report["findings"]}
    assert report["ok"] and {"cores", "memory", "instructions", "mpirun", "/dev/shm"} <= set(found)
    assert found["mpirun"]["level"] == "ok"
    assert all(f["level"] == "ok" or f["remedy"] for f in report["findings"])
    code, out, _ = start.run(["env", "PATH=/nowhere", str(PROGRAM), "doctor"])
    assert code == OK and len(out.splitlines()) == len(report["findings"])
    assert re.search(r"^warn  mpirun: .* - .*install Open MPI", out, re.M), out
    assert_clear_error(start.run([str(PROGRAM), "doctor", "x"]), USAGE, "flags only")


@pytest.mark.parametrize("layout", [{}, {"mode": 2, "tp": 1, "pp": 2}], ids=["mode1", "mode2"])
def test_a_cache_that_cannot_be_allocated_is_told_while_loading(start, layout):
    words = command("generate", *PROMPT, "--max-num-seqs", 2048, "--kv-cache-memory", "400GiB",
                    **layout)
    limited = ["bash", "-c", 'ulimit -v 60000000; exec "$@"', "bash", *words]
    assert_clear_error(start.run(limited), OUT_OF_MEMORY, "rank", "while loading", "no memory for")


def test_chat_answers_lines_of_standard_input(start):
    code, out, err = start.run(command("chat", "--temperature", 0, "--max-tokens", 24),
                               stdin=b"What is the capital of France?\n")
    assert code == OK, err
    assert "Paris" in out
    assert "tokens/s" in err and "tokens/s" not in out


def test_help_and_version(start):
    code, out, _ = start.run([str(PROGRAM), "--help"])
    assert code == OK
    for verb in ("generate", "chat", "serve", "run-batch", "bench", "fit", "doctor"):
        assert verb in out
    code, out, _ = start.run([str(PROGRAM), "serve", "--help"])
    assert code == OK and "--port" in out
    code, out, _ = start.run([str(PROGRAM), "--version"])
    assert code == OK and re.search(r"\d+\.\d+\.\d+", out)


def test_config_file_and_its_order_of_power(start, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("max-tokens: 4\ntemperature: 0\n")
    code, few, err = generate(start, *PROMPT, "--config", config)
    assert code == OK, err
    code, more, err = generate(start, *PROMPT, "--config", config, "--max-tokens", 12)
    assert code == OK, err
    assert more.startswith(few.rstrip("\n")) and len(more) > len(few)


def test_unknown_flag(start):
    assert_clear_error(generate(start, *PROMPT, "--frobnicate"), USAGE, "--frobnicate")


def test_unknown_command_and_missing_model(start):
    assert_clear_error(start.run([str(PROGRAM), "frobnicate"]), USAGE, "frobnicate")
    assert_clear_error(start.run([str(PROGRAM), "serve"]), USAGE, "model")


def test_unknown_config_key(start, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("max-tokens: 4\nfrobnicate: 1\n")
    assert_clear_error(generate(start, *PROMPT, "--config", config), USAGE, "frobnicate")


def test_bad_values(start):
    assert_clear_error(generate(start, *PROMPT, "--temperature", "warm"), USAGE, "--temperature")
    assert_clear_error(generate(start, *PROMPT, "-tp", "0"), USAGE, "tensor-parallel-size")


@pytest.mark.parametrize("flag, value, named", [("--device", "tpu", "cpu"),
                                                ("--dtype", "int3", "bfloat16")])
def test_choices_are_named(start, flag, value, named):
    assert_clear_error(generate(start, *PROMPT, flag, value), USAGE, flag, value, named)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there may be a GPU")
def test_cuda_without_a_gpu(start):
    assert_clear_error(generate(start, *PROMPT, "--device", "cuda"), LAYOUT, "--device")


def test_made_up_weights(start):
    code, out, err = start.run([str(PROGRAM), "bench", "latency", str(ROOT / "tests/data/tiny-llama"),
                                "--load-format", "dummy", "--device", "cpu", "--input-len", "16",
                                "--output-len", "8"])
    assert code == OK, err
    assert "ms" in out


def test_missing_config_file(start, tmp_path):
    assert_clear_error(generate(start, *PROMPT, "--config", tmp_path / "none.yaml"), USAGE, "none.yaml")


def test_missing_model_file(start, tmp_path):
    result = generate(start, *PROMPT, model=tmp_path / "nothing-here.gguf")
    assert_clear_error(result, MODEL_ERROR, "nothing-here.gguf")


@pytest.mark.parametrize("kept", [0, 3, 4096, 0.5, 0.999])
def test_torn_model_file(start, tmp_path, kept):
    size = MODEL.stat().st_size
    torn = tmp_path / "torn.gguf"
    with open(MODEL, "rb") as source:
        torn.write_bytes(source.read(int(size * kept) if isinstance(kept, float) else kept))
    assert_clear_error(generate(start, *PROMPT, model=torn), MODEL_ERROR, "torn.gguf")


def test_torn_model_file_on_four_ranks(start, tmp_path):
    torn = tmp_path / "torn.gguf"
    with open(MODEL, "rb") as source:
        torn.write_bytes(source.read(MODEL.stat().st_size // 2))
    for mode in (2, 3):
        code, out, err = generate(start, *PROMPT, model=torn, mode=mode, tp=2, pp=2)
        assert code == MODEL_ERROR, err
        assert out == "" and "torn.gguf" in err and not CRASHES.search(err)


def test_unknown_model_type(start, tmp_path):
    folder = tmp_path / "odd-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(
        {"architectures": ["FrobnicateForCausalLM"], "model_type": "frobnicate", "hidden_size": 8}))
    assert_clear_error(generate(start, *PROMPT, model=folder), MODEL_ERROR, "frobnicate")


def test_rank_count_against_degrees(start):
    result = generate(start, *PROMPT, mode=3, tp=2, pp=2, ranks=3)
    assert_clear_error(result, LAYOUT, "3 ranks", "needs 4")


def test_more_stages_than_layers(start):
    assert_clear_error(generate(start, *PROMPT, mode=2, tp=1, pp=31), LAYOUT, "31", "30")


def test_port_in_use(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for layout in ({}, {"mode": 2, "tp": 2, "pp": 2}):
            result = start.run(command("serve", "--port", port, **layout))
            assert_clear_error(result, ADDRESS, str(port), "in use")


def test_prompt_longer_than_the_context(start):
    result = generate(start, "--prompt", "word " * 300, "--max-model-len", 128, "--max-tokens", 4)
    assert_clear_error(result, USAGE, "128")


def test_a_run_is_measured_and_simulated(start, tmp_path):
    model, saved = str(ROOT / "tests/data/tiny-llama"), tmp_path / "model.json"
    common = ["--num-prompts", "40", "--input-len", "20", "--output-len", "8",
              "--length-variation", "0.5", "--seed", "3", "--rate", "200", "--json"]
    code, out, err = start.run([str(PROGRAM), "bench", "throughput", model, *common,
                                "--save-model", str(saved)])
    assert code == 0, err
    real = json.loads(out)
    assert real["stage_bubble_fraction"] >= 0 and real["exposed_comm_fraction"] == 0
    code, out, err = start.run([str(PROGRAM), "simulate", "--step-model", str(saved), *common,
                                "--replicas", "1"])
    assert code == 0, err
    assert json.loads(out)["requests"] == 40
    code, out, err = start.run([str(PROGRAM), "bench", "interference", model, "--decoders", "3",
                                "--context", "8", "--prompt-len", "100", "--max-model-len", "1024",
                                "--json"])
    assert code == 0, err
    assert json.loads(out)["ttft_ms"] > 0
