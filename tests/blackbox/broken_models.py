"""The corpus of broken model files (THREATS.md, section 5): a table of what is done to a sound
model, and the words of the one sentence that refuses it.

    python3 tests/blackbox/broken_models.py FOLDER

writes the same files as seeds of the fuzz targets: FOLDER/safetensors, index, config, tokenizer
and gguf. Needs Python 3.9 and nothing else; the same bytes every time.
"""

import base64
import os
import shutil
import sys
from pathlib import Path

import broken_gguf
from broken_files import (DATA, FIRST, INDEX, SECOND, SOUND, Case, cut, edited, folder_with,
                          json_case, shard, special)

# ---- safetensors: the second shard is replaced

def shard_case(name, content, *words):
    seed = content if isinstance(content, bytes) and len(content) < 4096 else None
    return Case("safetensors: " + name, "safetensors", folder_with(SECOND, content),
                (SECOND, *words), seed)


def entry(fields, name="a"):
    return '{"%s":{%s}}' % (name, fields)


GOOD = '"dtype":"F32","shape":[2],"data_offsets":[0,8]'


def sparse(size, header=b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'):
    def write(path):
        with open(path, "wb") as out:
            out.write(shard(header))
            out.truncate(size)
    return write


def entries(*pairs):
    return "{" + ",".join(entry(fields, name)[1:-1] for name, fields in pairs) + "}"


def one_tensor(dtype, shape, begin, end):
    return f'"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]'


SAFETENSORS = [
    shard_case("empty file", b"", "ends before its header"),
    shard_case("length cut short", b"\x10\0\0", "ends before its header"),
    shard_case("header beyond the file", shard("{}", length=3), "ends inside its header"),
    shard_case("header of 2^64 - 1 bytes", shard("{}", length=2**64 - 1), "at most 16777216"),
    shard_case("header of 100 GB in a file of 100 GB",
               lambda path: (path.write_bytes(shard("{}", length=10**11)),
                             os.truncate(path, 10**11 + 8)), "at most 16777216"),
    shard_case("100 GB behind the last tensor", sparse(10**11), "bytes follow its last tensor"),
    shard_case("100 GB that are not there",
               sparse(10**6, b'{"a":{"dtype":"U8","shape":[100000000000],'
                             b'"data_offsets":[0,100000000000]}}'), "torn", "'a'"),
    shard_case("one byte short", cut(-1), "torn", "'model.norm.weight'"),
    shard_case("header cut", cut(100), "ends inside its header"),
    shard_case("one byte too many",
               lambda path: path.write_bytes(path.read_bytes() + b"x"), "1 bytes follow"),
    shard_case("not UTF-8", shard(b'{"\xff\xfe":1}'), "not valid JSON"),
    shard_case("not JSON", shard("{]"), "not valid JSON"),
    shard_case("text before the header", shard("x{}"), "not valid JSON"),
    shard_case("NUL after the header", shard(b"{}\0"), "not valid JSON"),
    shard_case("an array", shard("[]"), "does not hold a JSON object"),
    shard_case("10,000 levels deep", shard('{"a":' + "[" * 10000 + "]" * 10000 + "}"), "64 levels"),
    shard_case("eight million values", lambda path: path.write_bytes(
        shard('{"a":[' + "0," * 8_000_000 + "0]}")), "too many values"),
    shard_case("ten tensors on one range",
               shard(entries(*((f"t{i}", GOOD) for i in range(10))), 8), "overlap", "tensor 't"),
    shard_case("a hole", shard(entry(one_tensor("F32", [2], 4, 12)), 12), "leave a hole", "'a'"),
    shard_case("offsets swapped", shard(entry(one_tensor("F32", [2], 8, 0)), 8), "'a'", "8 to 0"),
    shard_case("shape and range disagree", shard(entry(one_tensor("F32", [3], 0, 8)), 8), "'a'",
               "takes 12 bytes"),
    shard_case("product of the shape beyond 64 bits",
               shard(entry(one_tensor("F32", [2**32, 2**32], 0, 8)), 8), "'a'",
               "cannot be computed"),
    shard_case("bytes of the shape beyond 64 bits",
               shard(entry(one_tensor("F64", [2**61], 0, 8)), 8), "'a'", "cannot be computed"),
    shard_case("half a byte", shard(entry(one_tensor("F4", [3], 0, 1)), 1), "'a'", "whole bytes"),
    shard_case("dtype unknown", shard(entry(one_tensor("F33", [2], 0, 8)), 8), "'a'", "'F33'"),
    shard_case("dtype in lower case", shard(entry(one_tensor("f32", [2], 0, 8)), 8), "'a'", "'f32'"),
    shard_case("dtype a number",
               shard(entry('"dtype":32,"shape":[2],"data_offsets":[0,8]'), 8), "'a'", "not a string"),
    shard_case("size negative", shard(entry(one_tensor("F32", "[-2]", 0, 8)), 8), "'a'", "'shape'"),
    shard_case("size a fraction", shard(entry(one_tensor("F32", "[2.0]", 0, 8)), 8), "'a'",
               "'shape'"),
    shard_case("size as 2e0", shard(entry(one_tensor("F32", "[2e0]", 0, 8)), 8), "'a'", "'shape'"),
    shard_case("size minus zero", shard(entry(one_tensor("F32", "[-0]", 0, 0))), "-0"),
    shard_case("size of 10^400", shard(entry(one_tensor("F32", "[1e400]", 0, 8)), 8), "too large"),
    shard_case("shape nested", shard(entry(one_tensor("F32", "[[2]]", 0, 8)), 8), "'a'", "'shape'"),
    shard_case("seventeen dimensions", shard(entry(one_tensor("U8", [1] * 17, 0, 1)), 1), "'a'",
               "'shape'"),
    shard_case("three offsets",
               shard(entry('"dtype":"F32","shape":[2],"data_offsets":[0,8,8]'), 8), "'a'",
               "'data_offsets'"),
    shard_case("no offsets", shard(entry('"dtype":"F32","shape":[2]'), 8), "'a'", "'data_offsets'"),
    shard_case("a field more", shard(entry(GOOD + ',"x":1'), 8), "'a'", "'x' is unknown"),
    shard_case("entry an array", shard('{"a":["F32",[2],[0,8]]}', 8), "'a'", "not an object"),
    shard_case("name given twice", shard(entries(("a", GOOD), ("a", GOOD)), 8), "'a'", "twice"),
    shard_case("NUL in a name", shard(entry(GOOD, "a\\u0000b"), 8), "not printable"),
    shard_case("name of 513 bytes", shard(entry(GOOD, "n" * 513), 8), "not printable"),
    shard_case("metadata not strings", shard('{"__metadata__":{"n":1}}'), "more than strings"),
    shard_case("metadata an array", shard('{"__metadata__":[]}'), "'__metadata__'"),
    shard_case("a pipe", special("pipe"), "not a regular file"),
    shard_case("a folder", special("folder"), "not a regular file"),
    shard_case("a link to itself", special("loop"), "lacks the file"),
    shard_case("a link that leaves the folder", special("link"), "leaves the model folder"),
]


# ---- the index

def index_case(name, change, *words):
    return json_case(name, "index", INDEX, change, *words)


NORM = "model.norm.weight"


def mapped(tensor, file):
    return lambda index: index["weight_map"].update({tensor: file})


def without_first(path):
    (path.parent / FIRST).unlink()


INDEXES = [
    index_case("not JSON", b"{", INDEX, "not valid JSON"),
    index_case("no weight_map", lambda index: {"metadata": {}}, INDEX, "'weight_map'"),
    index_case("weight_map a list", lambda index: {"weight_map": []}, INDEX, "'weight_map'"),
    index_case("a file that is a number", mapped(NORM, 1), INDEX, NORM, "not a .safetensors file"),
    index_case("a file above the folder", mapped(NORM, "../" + SECOND), INDEX, NORM,
               "not a .safetensors file of the folder"),
    index_case("a file by its whole path", mapped(NORM, "/etc/x.safetensors"), INDEX, NORM,
               "not a .safetensors file of the folder"),
    index_case("NUL in a file's name", mapped(NORM, "a\0.safetensors"), INDEX, NORM,
               "not a .safetensors file of the folder"),
    index_case("a file of another kind", mapped(NORM, "config.json"), INDEX, NORM,
               "not a .safetensors file of the folder"),
    index_case("a file that is missing", mapped(NORM, "model-3.safetensors"),
               "lacks the file model-3.safetensors"),
    Case("index: a shard that is missing", "index", folder_with(SECOND, without_first),
         ("lacks the file " + FIRST,)),
    index_case("a tensor in the other file", mapped(NORM, FIRST), INDEX, NORM,
               "not in the file " + FIRST),
    index_case("a tensor that no file has", mapped("model.more.weight", SECOND), INDEX,
               "'model.more.weight'", "not in the file"),
    index_case("a tensor that it does not name",
               lambda index: (index["weight_map"].pop(NORM), index)[1], INDEX, NORM,
               "does not name", SECOND),
    index_case("a tensor named twice",
               (SOUND / INDEX).read_bytes().replace(b'"' + NORM.encode() + b'"',
                                                   b'"model.layers.1.mlp.up_proj.weight"'),
               INDEX, "given twice"),
    Case("index: a tensor in two files", "index", folder_with(INDEX, lambda path: (
        shutil.copy(SOUND / FIRST, path.parent / "again.safetensors"),
        path.write_bytes(edited(INDEX, mapped("model.embed_tokens.weight", "again.safetensors"))))),
         ("lies in two files", "again.safetensors", FIRST)),
    index_case("total_size wrong", lambda index: index["metadata"].update(total_size=1), INDEX,
               "'total_size' is 1"),
    index_case("total_size a text", lambda index: index["metadata"].update(total_size="1"), INDEX,
               "'total_size'"),
    Case("index: none, and no weights", "index", folder_with(INDEX, lambda path: path.unlink()),
         ("has no model.safetensors", INDEX)),
    Case("index: a pickle instead", "index", folder_with(INDEX, lambda path: path.rename(
        path.with_name("pytorch_model.bin"))), ("can hold code", "convert")),
]


# ---- config.json and its neighbours

def config_case(name, fields, *words):
    return json_case(name, "config", "config.json",
                     fields if isinstance(fields, bytes) else lambda c: c.update(fields),
                     "config.json", *words)


def rope(**fields):
    return {"rope_scaling": {"rope_type": "linear", "factor": 2.0, **fields}}


CONFIGS = [
    config_case("empty", b"", "not valid JSON"),
    config_case("not JSON", b"model_type: llama", "not valid JSON"),
    config_case("a list", b"[]", "JSON object"),
    config_case("5 MB of blanks", b" " * (5 << 20), "at most 4194304"),
    config_case("a field twice", b'{"model_type":"llama","model_type":"llama"}', "'model_type'",
                "twice"),
    config_case("no model_type", {"model_type": None}, "'model_type' is missing"),
    config_case("a model_type with lines of its own", {"model_type": "x\nerror: \x1b[31mred"},
                "the model type 'x error:  [31mred' is not supported"),
    config_case("not a generating model", {"architectures": ["LlamaModel"]}, "'architectures'"),
    config_case("no layers", {"num_hidden_layers": 0}, "'num_hidden_layers'"),
    config_case("1,025 layers", {"num_hidden_layers": 1025}, "'num_hidden_layers'"),
    config_case("hidden size of 65,537", {"hidden_size": 65537}, "'hidden_size'"),
    config_case("hidden size a fraction", {"hidden_size": 64.5}, "'hidden_size'"),
    config_case("hidden size a text", {"hidden_size": "64"}, "'hidden_size'"),
    config_case("hidden size of 2^64", {"hidden_size": 2**64}, "'hidden_size'"),
    config_case("heads do not divide", {"num_attention_heads": 5, "head_dim": None},
                "'num_attention_heads' (5)"),
    config_case("KV heads do not divide", {"num_key_value_heads": 3}, "3 KV heads"),
    config_case("an odd head size", {"head_dim": 15}, "head size of 15"),
    config_case("vocabulary of 2,000,001", {"vocab_size": 2000001}, "'vocab_size'"),
    config_case("positions beyond 2^31", {"max_position_embeddings": 2**31},
                "'max_position_embeddings'"),
    config_case("negative positions", {"max_position_embeddings": -1}, "'max_position_embeddings'"),
    config_case("epsilon of 0", {"rms_norm_eps": 0}, "epsilon"),
    config_case("rope base of 0", {"rope_theta": 0}, "'rope_theta'"),
    config_case("rope base infinite", b'{"model_type":"llama","rope_theta":1e999}', "too large"),
    config_case("rope base NaN", b'{"model_type":"llama","rope_theta":NaN}', "not valid JSON"),
    config_case("rope factor negative", rope(factor=-1.0), "'factor'"),
    config_case("rope kind unknown", rope(rope_type="spiral"), "'spiral'"),
    config_case("a beginning beyond the vocabulary", {"bos_token_id": 512}, "512"),
    config_case("a quantization", {"quantization_config": {"bits": 4}}, "'quantization_config'"),
    config_case("intermediate size of another model", {"intermediate_size": 97},)
    ._replace(words=("model.layers.0.mlp.gate_proj.weight", "[96, 64]", "[97, 64]")),
    config_case("more layers than the files", {"num_hidden_layers": 3})
    ._replace(words=("no tensor 'model.layers.2.",)),
    json_case("generation_config.json torn", "config", "generation_config.json", b'{"eos',
              "generation_config.json", "not valid JSON"),
    json_case("tokenizer_config.json torn", "config", "tokenizer_config.json", b'{"bos',
              "tokenizer_config.json", "not valid JSON"),
    json_case("chat template that does not parse", "config", "tokenizer_config.json",
              lambda c: c.update(chat_template="{% for x in %}"), "/model", "template"),
    Case("config: none", "config", folder_with("config.json", lambda path: path.unlink()),
         ("has no config.json",)),
    Case("config: a pipe", "config", folder_with("config.json", special("pipe")),
         ("config.json", "not a regular file")),
]


# ---- tokenizer.json

def tokenizer_case(name, change, *words):
    return json_case(name, "tokenizer", "tokenizer.json", change, "/model", "tokenizer", *words)


def unigram(tokens):
    return lambda t: t.update(added_tokens=[], model={"type": "Unigram", "unk_id": 0,
                                                      "vocab": [[token, -1.0] for token in tokens]})


def charsmap(data):
    return lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}]})


def split_by(pattern):
    return lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern},
                                             "behavior": "Isolated", "invert": False})


TOKENIZERS = [
    tokenizer_case("not JSON", b"{", "line 1"),
    tokenizer_case("not UTF-8", b'{"\xff":1}', "cannot be used"),
    tokenizer_case("no model", b"{}", "`model`"),
    tokenizer_case("a model unknown", lambda t: t["model"].update(type="Frob"), "cannot be used"),
    tokenizer_case("10,000 levels deep", b'{"model":' + b"[" * 10000 + b"]" * 10000 + b"}",
                   "recursion"),
    tokenizer_case("a merge of no token", lambda t: t["model"]["merges"].append(["qq", "zz"]), "qq"),
    tokenizer_case("an added token on a taken id",
                   lambda t: t["added_tokens"].append({**t["added_tokens"][0], "content": "<x>",
                                                       "id": 5}), "<x>"),
    tokenizer_case("an id of 2^31", lambda t: t["model"]["vocab"].update({"zzz": 2**31}), "ids"),
    tokenizer_case("ids of another model", lambda t: t["model"]["vocab"].update({"zzz": 9999}),
                   "512 rows"),
    tokenizer_case("a token of 32 MB", unigram(["<unk>", "x" * (32 << 20)]), "the longest 33554432"),
    tokenizer_case("16 MB of tokens", unigram([f"{i:08x}" * 250 for i in range(8400)]),
                   "16800000 bytes"),
    tokenizer_case("a charsmap of 4 GB in 8 bytes", charsmap(b"\xfc\xff\xff\xff" + bytes(4)),
                   "precompiled_charsmap"),
    tokenizer_case("a charsmap too short", charsmap(b"\x01"), "cannot be used"),
    tokenizer_case("a pattern that does not end", split_by("(a"), "cannot be used"),
    tokenizer_case("a pattern of a million nests", split_by("(" * 10**6 + ")" * 10**6),
                   "cannot be used"),
    tokenizer_case("a pattern that grows", split_by("(((a{100}){100}){100}){100}"),
                   "cannot be used"),
    tokenizer_case("a decoder we do not know",
                   lambda t: t.update(decoder={"type": "WordPiece", "prefix": "##",
                                               "cleanup": True}), "WordPiece"),
    Case("tokenizer: a pipe", "tokenizer", folder_with("tokenizer.json", special("pipe")),
         ("tokenizer.json", "not a regular file")),
    Case("tokenizer: 300 MB", "tokenizer",
         folder_with("tokenizer.json", lambda path: os.truncate(path, 300 << 20)),
         ("tokenizer.json", "at most 67108864")),
]


# ---- GGUF

def gguf_case(name, content, *words):
    content = broken_gguf.BUILT[name]() if content is None else content
    data = content if isinstance(content, bytes) else content.bytes()

    def make(folder):
        (folder / "m.gguf").write_bytes(data)
        return folder / "m.gguf"
    return Case("gguf: " + name, "gguf", make, ("m.gguf", *words),
                data if len(data) < 1 << 16 else None)


def split_case(name, replaced, *words):
    def make(folder):
        for i, file in enumerate(broken_gguf.NAMES):
            data = replaced.get(i, broken_gguf.PARTS[i])
            if data is not None:
                (folder / file).write_bytes(data)
        return folder / broken_gguf.NAMES[0]
    return Case("split: " + name, "gguf", make, words)


def linked_part(folder):
    model = split_case("", {})[2](folder)
    (folder / "elsewhere").mkdir()
    outside = folder / broken_gguf.NAMES[1]
    os.rename(outside, folder / "elsewhere" / "part")
    outside.symlink_to(folder / "elsewhere" / "part")
    return model


GGUFS = [gguf_case(*row) for row in broken_gguf.FILES]
GGUFS += [split_case(*row) for row in broken_gguf.SPLITS]
GGUFS += [Case("split: a link that leaves the folder", "gguf", linked_part,
               (broken_gguf.NAMES[1], "link that leaves"))]

CASES = SAFETENSORS + INDEXES + CONFIGS + TOKENIZERS + GGUFS


def write_seeds(folder):
    """The broken files and the sound ones, by reader."""
    sound = {"safetensors": shard(entries(("a", GOOD), ("b", one_tensor("BF16", [2, 3], 8, 20)))
                                  .replace("}}", '},"__metadata__":{"format":"pt"}}'), 20),
             "index": (SOUND / INDEX).read_bytes(),
             "config": (SOUND / "config.json").read_bytes() + b"\0"
             + (SOUND / "generation_config.json").read_bytes(),
             "tokenizer": (SOUND / "tokenizer.json").read_bytes(),
             "gguf": broken_gguf.Gguf().head()}
    more = {"tokenizer": [DATA / "tiny-llama/tokenizer.json"], "config": [DATA / "tiny-llama/config.json"],
            "gguf": [DATA / "spm-vocab.gguf"]}
    for reader, data in sound.items():
        files = [data] + [path.read_bytes() for path in more.get(reader, [])]
        # Of a GGUF file the head is enough: the target adds room for the tensors.
        files += [case.seed[:2048] if reader == "gguf" else case.seed
                  for case in CASES if case.reader == reader and case.seed]
        (folder / reader).mkdir(parents=True, exist_ok=True)
        for i, content in enumerate(files):
            (folder / reader / f"seed-{i:03}").write_bytes(content)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
