"""Small vocabularies of every kind: as the Python library's own tokenizer, and as the GGUF file that llama.cpp's converter
would write. What is built here knows nothing of engine/: the patterns are those the families publish in tokenizer.json."""

import io
import json

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORD = r"[^\r\n\p{L}\p{N}]?"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = f"{WORD}{UPPER}*{LOWER}+|{WORD}{UPPER}+{LOWER}*|" + r"\p{N}" + REST
O200K = (f"{WORD}{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|{WORD}{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         + r"\p{N}{1,3}" + REST)

# tokenizer.ggml.pre: (pattern, single digits, a known piece is not merged, BOS by default, NFC)
BYTE_LEVEL = {
    "gpt-2": (None, False, False, False, False),
    "olmo": (None, False, False, False, False),
    "smollm": (None, True, False, False, False),
    "llama-bpe": (CL100K, False, True, True, False),
    "llama3": (CL100K, False, True, True, False),
    "llama-v3": (CL100K, False, True, True, False),
    "qwen2": (QWEN2, False, False, False, True),
    "deepseek-r1-qwen": (QWEN2, False, False, False, False),
    "dbrx": (CL100K, False, False, False, False),
    "gpt-4o": (O200K, False, False, False, False),
    "tekken": (TEKKEN, False, True, True, False),
}
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|end|>"]
NORMAL_TYPE, UNKNOWN_TYPE, CONTROL_TYPE, USER_TYPE, UNUSED_TYPE, BYTE_TYPE = range(1, 7)


class Vocabulary:
    """The file's fields, for the GGUF writer."""

    def __init__(self, model, tokens, types, **fields):
        self.model, self.tokens, self.types, self.fields = model, tokens, types, fields

    def write(self, path, architecture="llama"):
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_tokenizer_model(self.model)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        for name, value in self.fields.items():
            getattr(writer, f"add_{name}")(value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def special_tokens_around(tokenizer, bos=None, eos=None):
    around = [token for token in (bos, eos) if token is not None]
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in around])
    return tokenizer


def byte_level_steps(tokenizer, pre):
    pattern, single_digits, ignore_merges, _, nfc = BYTE_LEVEL[pre]
    steps = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.model.ignore_merges = ignore_merges
    return tokenizer


def byte_level(pre, corpus, strips=False):
    """(tokenizer, Vocabulary); with `strips` the special tokens swallow the blanks around them, as Phi-4's."""
    learned = byte_level_steps(Tokenizer(models.BPE()), pre)
    learned.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=1500, min_frequency=2, show_progress=False, special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    data = json.loads(learned.to_str())["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    user = ["<tool>", "    "]
    tokens += user + ["[PAD0]"]
    types = [CONTROL_TYPE if t in CONTROL else USER_TYPE if t in user else NORMAL_TYPE for t in tokens]
    types[-1] = UNUSED_TYPE
    merges = [tuple(pair) for pair in data["merges"]]
    tokenizer = byte_level_steps(Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges)), pre)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False, lstrip=strips, rstrip=strips) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False, lstrip=strips, rstrip=strips) for t in user])
    special_tokens_around(tokenizer, bos="<|im_start|>" if BYTE_LEVEL[pre][3] else None)
    return tokenizer, Vocabulary("gpt2", tokens, types, tokenizer_pre=pre, bos_token_id=1, eos_token_id=2,
                                 token_merges=[" ".join(pair) for pair in merges])


def train_sentencepiece(corpus, kind, user=(), control=(), **options):
    model = io.BytesIO()
    text = [line for line in (line.replace("\x00", "").replace("\n", " ") for line in corpus) if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, model_type=kind, vocab_size=2500, byte_fallback=True,
        character_coverage=0.98, hard_vocab_limit=False, user_defined_symbols=list(user), control_symbols=list(control),
        num_threads=1, minloglevel=2, **options)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def merges_by_score(proto):
    """Every pair of pieces that makes a third, the best score first."""
    normal = {p.piece: (p.score, i) for i, p in enumerate(proto.pieces) if p.type == NORMAL_TYPE}
    ranked = []
    for piece, (score, _) in normal.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                ranked.append(((-score, -len(left), -len(right)), (left, right)))
    return [pair for _, pair in sorted(ranked, key=lambda entry: entry[0])]


def sentencepiece_tokenizer(corpus, kind, phi3=False, user=(), control=(), **options):
    """(tokenizer, Vocabulary, SentencePiece's own). Blanks in user-defined pieces are spelled as in the text."""
    proto, own = train_sentencepiece(corpus, kind, user, control, **options)
    tokens = [p.piece.replace("▁", " ") if p.type == USER_TYPE else p.piece for p in proto.pieces]
    types = [p.type for p in proto.pieces]
    spec = proto.normalizer_spec
    if kind == "bpe":
        model = models.BPE({t: i for i, t in enumerate(tokens)}, merges_by_score(proto), unk_token="<unk>",
                           fuse_unk=True, byte_fallback=True)
    else:
        scores = [p.score for p in proto.pieces]
        model = models.Unigram(list(zip(tokens, scores)), unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    rules = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        rules += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    ends = []
    if spec.add_dummy_prefix:
        rules.append(normalizers.Prepend("▁"))
        ends.append(decoders.Strip(" ", left=1))
    tokenizer.normalizer = normalizers.Sequence([*rules, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    for token, type_ in zip(tokens, types):
        if type_ in (UNKNOWN_TYPE, CONTROL_TYPE, USER_TYPE):
            added = AddedToken(token, special=type_ != USER_TYPE, normalized=False,
                               rstrip=phi3 and token not in ("<unk>", "<s>", "<|endoftext|>"))
            (tokenizer.add_tokens if type_ == USER_TYPE else tokenizer.add_special_tokens)([added])
    special_tokens_around(tokenizer, bos="<s>" if kind == "bpe" else None, eos=None if kind == "bpe" else "</s>")
    fields = {"token_scores": [p.score for p in proto.pieces], "bos_token_id": 1, "eos_token_id": 2,
              "add_space_prefix": spec.add_dummy_prefix}
    if kind != "bpe":
        fields["remove_extra_whitespaces"] = spec.remove_extra_whitespaces
        if spec.precompiled_charsmap:
            fields["precompiled_charsmap"] = spec.precompiled_charsmap
    vocabulary = Vocabulary("llama" if kind == "bpe" else "t5", tokens, types, **fields)
    return tokenizer, vocabulary, own


def from_gguf(path):
    """A byte-level tokenizer of pre-tokenizer smollm from a file's own fields."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.ggml.")}
    assert fields["tokenizer.ggml.pre"] == "smollm"
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(line.split(" ")) for line in fields["tokenizer.ggml.merges"]]
    tokenizer = byte_level_steps(Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges)), "smollm")
    types = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, type_ in zip(tokens, types) if type_ in (UNKNOWN_TYPE, CONTROL_TYPE)])
    return tokenizer
