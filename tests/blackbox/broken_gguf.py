"""The GGUF part of broken_models.py, with a writer of GGUF files, sound or broken on purpose."""

import functools
import random
import struct

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
KEY_TYPES = {U8: "<B", U32: "<I", F32: "<f", BOOL: "<B", U64: "<Q"}


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, content):
    if kind == STRING:
        return text(content)
    if kind == ARRAY and not isinstance(content, bytes):  # (type of the elements, elements)
        return struct.pack("<IQ", content[0], len(content[1])) + b"".join(
            value(content[0], element) for element in content[1])
    return content if isinstance(content, bytes) else struct.pack(KEY_TYPES[kind], content)


@functools.lru_cache(maxsize=None)
def weights(name, size):
    """A tensor's bytes, with room up to the next tensor: small numbers, the same every time."""
    rng = random.Random(name)
    count = -size // 32 * -8
    return struct.pack(f"<{count}f", *(rng.uniform(-0.5, 0.5) for _ in range(count)))


class Gguf:
    """Of the smallest llama that opens: 1 layer, hidden 32, 2 heads, 4 tokens, all F32."""

    def __init__(self):
        self.magic, self.version = b"GGUF", 3
        self.more_tensors = self.more_pairs = 0  # stated, but not there
        self.keys = {
            "general.architecture": (STRING, "llama"),
            "llama.block_count": (U32, 1),
            "llama.context_length": (U32, 64),
            "llama.embedding_length": (U32, 32),
            "llama.feed_forward_length": (U32, 32),
            "llama.attention.head_count": (U32, 2),
            "llama.attention.head_count_kv": (U32, 1),
            "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
            "tokenizer.ggml.model": (STRING, "gpt2"),
            "tokenizer.ggml.pre": (STRING, "gpt-2"),
            "tokenizer.ggml.tokens": (ARRAY, (STRING, ["<s>", "a", "b", "ab"])),
            "tokenizer.ggml.merges": (ARRAY, (STRING, ["a b"])),
            "tokenizer.ggml.token_type": (ARRAY, (U32, [3, 1, 1, 1])),
            "tokenizer.ggml.eos_token_id": (U32, 0),
        }
        self.pairs = []  # further ones, in front; may repeat a key
        self.tensors = []  # [name, dims in GGUF's order, type, bytes, offset or None]
        for name, *dims in (("token_embd", 32, 4), ("output_norm", 32), ("blk.0.attn_norm", 32),
                            ("blk.0.attn_q", 32, 32), ("blk.0.attn_k", 32, 16),
                            ("blk.0.attn_v", 32, 16), ("blk.0.attn_output", 32, 32),
                            ("blk.0.ffn_norm", 32), ("blk.0.ffn_gate", 32, 32),
                            ("blk.0.ffn_up", 32, 32), ("blk.0.ffn_down", 32, 32)):
            size = 4
            for dim in dims:
                size *= dim
            self.tensors.append([name + ".weight", dims, 0, size, None])

    def set(self, key, kind, content):
        self.keys[key] = (kind, content)
        return self

    def tensor(self, name, dims=(32,), kind=0, size=128, offset=None):
        self.tensors = [t for t in self.tensors if t[0] != name]
        self.tensors.append([name, list(dims), kind, size, offset])
        return self

    def head(self):
        pairs = self.pairs + [(key, *pair) for key, pair in self.keys.items()]
        out = [self.magic, struct.pack("<IQQ", self.version,
                                       (len(self.tensors) + self.more_tensors) % 2**64,
                                       (len(pairs) + self.more_pairs) % 2**64)]
        for key, kind, content in pairs:
            out.append(text(key) + struct.pack("<I", kind) + value(kind, content))
        end = 0
        for name, dims, kind, size, offset in self.tensors:
            out.append(text(name) + struct.pack("<I", len(dims)))
            out.extend(struct.pack("<Q", dim % 2**64) for dim in dims)
            out.append(struct.pack("<IQ", kind, end if offset is None else offset))
            end += -size // 32 * -32
        return b"".join(out)

    def bytes(self):
        head = self.head()
        return head + bytes(-len(head) % 32) + b"".join(
            weights(name, size) for name, _, _, size, _ in self.tensors)


def changed(**fields):
    gguf = Gguf()
    for name, content in fields.items():
        setattr(gguf, name, content)
    return gguf


def sentencepiece(tokens):
    return (Gguf().set("tokenizer.ggml.model", STRING, "llama")
            .set("tokenizer.ggml.tokens", ARRAY, (STRING, tokens))
            .set("tokenizer.ggml.scores", ARRAY, (F32, [0.0] * len(tokens)))
            .set("tokenizer.ggml.token_type", ARRAY, (U32, [1] * len(tokens)))
            .tensor("token_embd.weight", (32, len(tokens)), 0, 128 * len(tokens)))


def without_merges(gguf):
    del gguf.keys["tokenizer.ggml.merges"]
    return gguf


def all_pieces(length):
    """Every piece of one text of `length` letters that repeats nothing: each can be cut anywhere."""
    letters = "".join(chr(0x4E00 + i) for i in range(length))
    return [letters[i:j] for i in range(length) for j in range(i + 1, length + 1)]


# Name, file, words of the sentence.
FILES = [
    ("empty", b"", "not a GGUF file"),
    ("two bytes", b"GG", "not a GGUF file"),
    ("the magic alone", b"GGUF", "too early"),
    ("the magic of a big-endian file", changed(magic=b"FUGG"), "not a GGUF file"),
    ("version 1", changed(version=1), "version 1"),
    ("version 4", changed(version=4), "version 4"),
    ("big-endian", changed(version=0x03000000), "big-endian"),
    ("2^64 - 1 tensors", changed(more_tensors=-12), "1000000 accepted"),
    ("999,999 tensors", changed(more_tensors=999_988), "before its 999999 tensors"),
    ("2^64 - 1 pairs", changed(more_pairs=-15), "metadata pairs"),
    ("a pair that is missing", changed(more_pairs=1), "(near byte"),
    ("a key of 2^64 - 1 bytes", Gguf().bytes()[:24] + b"\xff" * 8 + bytes(400),
     "bytes of a string"),
    ("a key that is not printable", Gguf().set("a\nb", U32, 1), "not printable"),
    ("a key given twice", changed(pairs=[("llama.block_count", U32, 1)]), "'llama.block_count'",
     "twice"),
    ("a text of 2^63 bytes", changed(pairs=[("k", U64, 0)]).bytes()
     .replace(struct.pack("<IQ", U64, 0), struct.pack("<IQ", STRING, 2**63), 1),
     "bytes of a string"),
    ("a value of type 13", changed(pairs=[("k", 13, struct.pack("<Q", 0))]), "unknown type 13"),
    ("an array of 2^40", changed(pairs=[("k", ARRAY, struct.pack("<IQ", U8, 2**40))]),
     "elements of an array"),
    ("an array of arrays", Gguf().set("k", ARRAY, (ARRAY, [])), "an array itself"),
    ("alignment of 0", Gguf().set("general.alignment", U32, 0), "'general.alignment'"),
    ("alignment of 48", Gguf().set("general.alignment", U32, 48), "power of two"),
    ("a tensor listed twice", None, "'output_norm.weight'", "twice"),
    ("no dimensions", Gguf().tensor("output_norm.weight", ()), "'output_norm.weight'",
     "0 dimensions"),
    ("five dimensions", Gguf().tensor("output_norm.weight", (1,) * 5), "'output_norm.weight'",
     "5 dimensions"),
    ("a dimension of 0", Gguf().tensor("output_norm.weight", (0,)), "'output_norm.weight'", "size"),
    ("a dimension of 2^64 - 1", Gguf().tensor("output_norm.weight", (-1,)), "'output_norm.weight'",
     "too large"),
    ("a product beyond 64 bits", Gguf().tensor("output_norm.weight", (2**32, 2**32)),
     "'output_norm.weight'", "size"),
    ("bytes beyond 64 bits", Gguf().tensor("output_norm.weight", (2**61,)), "'output_norm.weight'",
     "torn"),
    ("an offset of 2^63", Gguf().tensor("output_norm.weight", offset=2**63), "'output_norm.weight'",
     "torn"),
    ("an offset near 2^64", Gguf().tensor("output_norm.weight", offset=2**64 - 32),
     "'output_norm.weight'", "torn"),
    ("an offset not aligned", Gguf().tensor("output_norm.weight", offset=8), "'output_norm.weight'",
     "not aligned"),
    ("two tensors on one range", Gguf().tensor("output_norm.weight", offset=0),
     "'output_norm.weight'", "overlap"),
    ("half a block", Gguf().tensor("token_embd.weight", (33, 4), 8, 200), "'token_embd.weight'",
     "blocks"),
    ("one byte short", Gguf().bytes()[:-1], "torn"),
    ("a type without kernels", Gguf().tensor("output.weight", (32, 4), 16, 64),
     "'lm_head.weight'", "IQ2_XXS (GGUF type 16)"),
    ("a type that is not in use", Gguf().tensor("blk.0.ffn_up.weight", (32, 32), 77, 4096),
     "'model.layers.0.mlp.up_proj.weight'", "GGUF type 77"),
    ("an architecture unknown", Gguf().set("general.architecture", STRING, "frob"), "'frob'"),
    ("no architecture", changed(keys={}), "architecture"),
    ("layers of 2^32 - 1", Gguf().set("llama.block_count", U32, 2**32 - 1), "'llama.block_count'"),
    ("no heads", Gguf().set("llama.attention.head_count", U32, 0), "'llama.attention.head_count'"),
    ("head count a text", Gguf().set("llama.attention.head_count", STRING, "2"),
     "'llama.attention.head_count'"),
    ("rope base NaN", Gguf().set("llama.rope.freq_base", F32, float("nan")),
     "'llama.rope.freq_base'"),
    ("a tensor that is missing", None, "no tensor 'model.layers.0.mlp.down_proj.weight'"),
    ("a shape of another model", Gguf().tensor("output.weight", (32, 5), 0, 640), "lm_head.weight",
     "[5, 32]"),
    ("a vocabulary wider than the embedding",
     Gguf().set("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "a", "b", "ab", "c"])), "5 tokens",
     "4 rows"),
    ("token types of another number",
     Gguf().set("tokenizer.ggml.token_type", ARRAY, (U32, [3, 1])), "token types"),
    ("a token twice", Gguf().set("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "a", "b", "a"])),
     "token 3", "twice"),
    ("a token that is not UTF-8",
     Gguf().set("tokenizer.ggml.tokens", ARRAY, (STRING, ["<s>", "a", "b", b"\xff\xfe"])), "token"),
    ("a merge of no token", Gguf().set("tokenizer.ggml.merges", ARRAY, (STRING, ["q z"])), "token"),
    ("a merge that is no pair", Gguf().set("tokenizer.ggml.merges", ARRAY, (STRING, ["ab"])),
     "tokenizer.ggml.merges"),
    ("a pre-tokenizer unknown", Gguf().set("tokenizer.ggml.pre", STRING, "frob"), "'frob'"),
    ("a tokenizer unknown", Gguf().set("tokenizer.ggml.model", STRING, "frob"), "'frob'"),
    ("an end beyond the vocabulary", Gguf().set("tokenizer.ggml.eos_token_id", U32, 4),
     "eos_token_id"),
    ("a template that does not parse",
     Gguf().set("tokenizer.chat_template", STRING, "{% if"), "template"),
    ("scores that are missing", without_merges(sentencepiece(["a", "b"]))
     .set("tokenizer.ggml.scores", ARRAY, (F32, [])), "'tokenizer.ggml.scores'"),
    ("tokens that merge in a million ways", without_merges(sentencepiece(all_pieces(200))),
     "merged from scores"),
]


def twice():
    gguf = Gguf()
    gguf.tensors.append(list(gguf.tensors[1]))
    return gguf


def missing():
    gguf = Gguf()
    gguf.tensors.pop()
    return gguf


BUILT = {"a tensor listed twice": twice, "a tensor that is missing": missing}


def part(no, count, tensors, total=None, keys=None):
    """One part of a split model: the first has the keys, each its tensors."""
    gguf = Gguf()
    gguf.keys = dict(gguf.keys) if no == 0 else {}
    gguf.set("split.no", U32, no).set("split.count", U32, count)
    gguf.set("split.tensors.count", U32, len(Gguf().tensors) if total is None else total)
    gguf.tensors = [t for i, t in enumerate(gguf.tensors) if i in tensors]
    return gguf.bytes()


PARTS = [part(0, 3, range(0, 4)), part(1, 3, range(4, 8)), part(2, 3, range(8, 11))]
NAMES = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]

# Name, what replaces which parts (None: nothing there), words.
SPLITS = [
    ("a part that is missing", {1: None}, NAMES[1], "missing"),
    ("the second part given", {0: PARTS[1]}, "part 2 of 3", "first part"),
    ("a part in another's place", {1: PARTS[2]}, NAMES[1], "not part 2 of 3"),
    ("a part of another split", {1: part(1, 4, range(4, 8))}, NAMES[1], "not part 2 of 3"),
    ("a part that is torn", {2: PARTS[2][:-1]}, NAMES[2], "torn"),
    ("a tensor in two parts", {2: part(2, 3, range(7, 11))}, NAMES[2], NAMES[1],
     "'blk.0.ffn_norm.weight'"),
    ("a tensor in no part", {2: part(2, 3, range(9, 11))}, "'split.tensors.count' is 11", "10"),
    ("a part without keys", {1: Gguf().bytes()}, NAMES[1], "not part 2 of 3"),
    ("65,535 parts", {0: part(0, 65535, range(0, 4))}, "-00001-of-65535.gguf"),
]
