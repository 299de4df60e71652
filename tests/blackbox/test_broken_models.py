"""Every model of the corpus (broken_models.py) is refused by its one sentence, soon, without a
signal and before memory is taken."""

import time

import pytest

from broken_files import edited, folder_with
from broken_gguf import NAMES, PARTS, Gguf
from broken_models import CASES
from jobs import PROGRAM
from test_cli import MODEL_ERROR, assert_clear_error

MAX_MEMORY = 3 << 20  # KiB of address space: what a file claims is not taken on its word
MAX_SECONDS = 20  # a hang, not a speed: THREATS.md's second is met on a quiet machine


def test_a_split_model_answers_as_the_whole(start, tmp_path):
    for name, data in zip(["m.gguf", *NAMES], [Gguf().bytes(), *PARTS]):
        (tmp_path / name).write_bytes(data)
    words = ["--prompt", "ab", "--max-tokens", "8", "--temperature", "0", "--ignore-eos", "--device",
             "cpu"]
    whole, split = (start.run([str(PROGRAM), "generate", str(tmp_path / name), *words])
                    for name in ("m.gguf", NAMES[0]))
    assert whole[0] == split[0] == 0, split[2]
    assert whole[1] == split[1] != ""


def test_an_added_token_may_lie_beyond_the_embedding(start, tmp_path):
    more = {"id": 512, "content": "<image>", "special": True, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False}
    changed = edited("tokenizer.json", lambda t: t["added_tokens"].append(more))
    model = folder_with("tokenizer.json", changed)(tmp_path)
    words = [str(PROGRAM), "generate", str(model), "--max-tokens", "4", "--device", "cpu"]
    code, _, err = start.run([*words, "--prompt", "The"])
    assert code == 0 and "tokenizer: 513 ids" in err, err
    code, _, err = start.run([*words, "--prompt", "The <image>"])
    assert code == 2 and "0 to 511" in err, err


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_refused(start, tmp_path, case):
    folder = tmp_path / "models"
    folder.mkdir()
    model = case.make(folder)
    words = [str(PROGRAM), "generate", str(model), "--prompt", "x", "--device", "cpu"]
    began = time.monotonic()
    result = start.run(["bash", "-c", f'ulimit -v {MAX_MEMORY}; exec "$@"', "bash", *words])
    assert time.monotonic() - began < MAX_SECONDS
    assert_clear_error(result, MODEL_ERROR, *case.words)
