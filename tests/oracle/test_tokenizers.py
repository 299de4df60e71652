"""The engine's tokenizers against the Python `tokenizers`: ids, text and streamed text of hard lines, for every kind of
vocabulary, from tokenizer.json and from GGUF. 500 lines a kind; with `-m long` 10,000."""

import functools
import pathlib
import random
import subprocess

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lines import lines
from vocabularies import BYTE_LEVEL, byte_level, from_gguf, sentencepiece_tokenizer, special_tokens_around

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOOL = ROOT / "build" / "tests" / "text_tool"
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@functools.cache
def corpus():
    return [line.decode(errors="replace") for line in lines(3000, seed=7)]


def ask(requests, *arguments):
    """The tool's answers, one a request."""
    done = subprocess.run([TOOL, *arguments], input="\n".join(requests) + "\n", capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert len(answers) == len(requests)
    return answers


def random_ids(tokenizer, count, seed=3):
    """Sequences of any ids; half of them with runs of few ids, as a byte's stand-ins."""
    random_ = random.Random(seed)
    known = [i for i in range(tokenizer.get_vocab_size()) if tokenizer.id_to_token(i) is not None]
    byte_ids = [i for i in known if tokenizer.id_to_token(i).startswith("<0x")] or known[:300]
    sequences = []
    for _ in range(count):
        pool = random_.choice([known, known, byte_ids])
        sequences.append([random_.choice(random_.choice([pool, known])) for _ in range(random_.randint(0, 24))])
    return sequences


def compare(tokenizer, path, count):
    made = lines(count)
    texts = [line.decode(errors="replace") for line in made]
    expected = ["|".join(" ".join(map(str, tokenizer.encode(text, add_special_tokens=special).ids)) for special in (True, False))
                for text in texts]
    answers = ask([f"e {text.encode().hex()}" for text in texts], path)
    for text, answer, wanted in zip(texts, answers, expected):
        assert answer == wanted, repr(text)
    # Text that is not UTF-8 is refused, not guessed at.
    broken = [line for line, text in zip(made, texts) if line != text.encode()]
    assert broken
    for answer in ask([f"e {line.hex()}" for line in broken], path):
        assert answer.startswith("!") and b"not UTF-8" in bytes.fromhex(answer[1:])

    sequences = [tokenizer.encode(text).ids for text in texts] + random_ids(tokenizer, count)
    answers = ask(["d " + " ".join(map(str, ids)) for ids in sequences], path)
    for ids, answer in zip(sequences, answers):
        wanted = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
        assert [bytes.fromhex(part).decode() for part in answer.split("|")] == wanted, ids


def compare_both(tokenizer, vocabulary, folder, count, architecture="llama"):
    tokenizer.save(str(folder / "tokenizer.json"))
    compare(tokenizer, folder / "tokenizer.json", count)
    vocabulary.write(folder / "vocabulary.gguf", architecture)
    compare(tokenizer, folder / "vocabulary.gguf", count)


def counts(function):
    return pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])(function)


@counts
@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_byte_level(pre, count, tmp_path):
    compare_both(*byte_level(pre, corpus()), tmp_path, count)


@counts
def test_phi4(count, tmp_path):
    compare_both(*byte_level("dbrx", corpus(), strips=True), tmp_path, count, "phi3")


LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}


@counts
def test_sentencepiece_bpe(count, tmp_path):
    tokenizer, vocabulary, own = sentencepiece_tokenizer(corpus(), "bpe", control=["[INST]"], user=["<tool>"], **LLAMA)
    compare_both(tokenizer, vocabulary, tmp_path, count)
    # SentencePiece itself agrees wherever no added token is in the text: those it splits from text otherwise.
    plain = [line.decode(errors="replace") for line in lines(count)]
    plain = [text for text in plain if not any(t in text for t in ("<s>", "</s>", "<unk>", "[INST]", "<tool>", "\0"))]
    assert len(plain) > count // 2
    for text in plain:
        assert tokenizer.encode(text, add_special_tokens=False).ids == own.encode(text), repr(text)


@counts
def test_phi3(count, tmp_path):
    tokenizer, vocabulary, _ = sentencepiece_tokenizer(
        corpus(), "bpe", phi3=True, control=["<|endoftext|>", "<|user|>", "<|end|>"], **LLAMA)
    compare_both(tokenizer, vocabulary, tmp_path, count, "phi3")


@counts
def test_gemma(count, tmp_path):
    user = ["▁" * n for n in range(2, 20)] + ["\n" * n for n in range(1, 5)] + ["<tool>", "<start_of_turn>"]
    tokenizer, vocabulary, own = sentencepiece_tokenizer(corpus(), "bpe", user=user, add_dummy_prefix=False, **LLAMA)
    compare_both(tokenizer, vocabulary, tmp_path, count, "gemma2")
    for text in (line.decode(errors="replace") for line in lines(count)):
        if not any(t in text for t in ("<s>", "</s>", "<unk>", "▁", "\0")):
            assert tokenizer.encode(text, add_special_tokens=False).ids == own.encode(text), repr(text)


@counts
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_unigram(rule, count, tmp_path):
    options = dict(LLAMA, normalization_rule_name=rule, remove_extra_whitespaces=rule != "identity")
    tokenizer, vocabulary, _ = sentencepiece_tokenizer(corpus(), "unigram", user=["<tool>"], **options)
    compare_both(tokenizer, vocabulary, tmp_path, count)


@counts
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace(scheme, count, tmp_path):
    """As newer conversions of Llama 2, Mistral and T5 write it: only in tokenizer.json."""
    base, _, _ = sentencepiece_tokenizer(corpus(), "bpe", **LLAMA)
    tokenizer = Tokenizer(base.model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme, split=False)])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    special_tokens_around(tokenizer, bos="<s>", eos="</s>")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    compare(tokenizer, tmp_path / "tokenizer.json", count)


@counts
def test_flags_of_added_tokens(count, tmp_path):
    base, _ = byte_level("qwen2", corpus())
    tokenizer = Tokenizer.from_str(base.to_str())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.add_tokens([AddedToken("mill", single_word=True), AddedToken("<s>", lstrip=True), AddedToken("wheel", rstrip=True),
                          AddedToken("café", normalized=True), AddedToken("ΣΊΣΥΦΟΣ", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    compare(tokenizer, tmp_path / "tokenizer.json", count)


@counts
@pytest.mark.skipif(not MODEL.exists(), reason=f"{MODEL} is not here: scripts/demo.sh brings it")
def test_smollm2(count):
    compare(from_gguf(MODEL), MODEL, count)
