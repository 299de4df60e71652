#!/usr/bin/env python3
"""A safetensors folder of a Llama's shape with random bf16 weights, for measuring how it loads.

    make_checkpoint.py SHAPE_FOLDER TARGET_FOLDER

Standard library only. Beside the weights come config.json and the tiny test model's tokenizer, so
that the folder can be served. Weights lie within 2^-7 .. 2^-5 with random signs and mantissas, as
large as those of a trained model; a block of them is used again and again, at other offsets.
"""

import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 64 << 20  # bytes of random weights


def tensors(config):
    """(name, shape) of every tensor."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    dim = config.get("head_dim", hidden // heads)
    q, kv = heads * dim, config.get("num_key_value_heads", heads) * dim
    yield "model.embed_tokens.weight", [config["vocab_size"], hidden]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", [hidden]
        yield layer + "post_attention_layernorm.weight", [hidden]
        for name, shape in (("q_proj", [q, hidden]), ("k_proj", [kv, hidden]),
                            ("v_proj", [kv, hidden]), ("o_proj", [hidden, q])):
            yield f"{layer}self_attn.{name}.weight", shape
        for name, shape in (("gate_proj", [inner, hidden]), ("up_proj", [inner, hidden]),
                            ("down_proj", [hidden, inner])):
            yield f"{layer}mlp.{name}.weight", shape
    yield "model.norm.weight", [hidden]
    if not config.get("tie_word_embeddings", False):
        yield "lm_head.weight", [config["vocab_size"], hidden]


def random_block():
    block = bytearray(BLOCK)
    block[0::2] = os.urandom(BLOCK // 2)
    # Sign at random, exponents 2^-7 and 2^-6 (its lowest bit lies in the other byte).
    block[1::2] = os.urandom(BLOCK // 2).translate(bytes(0x3C | (b & 1) << 7 for b in range(256)))
    return memoryview(block)


def make(shape_folder, target):
    """Bytes written."""
    config = json.loads((shape_folder / "config.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(shape_folder / "config.json", target)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "tests" / "data" / "tiny-llama" / name, target)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors(config):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * count]}
        end += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block, at = random_block(), 0
    with open(target / "model.safetensors", "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            left = entry["data_offsets"][1] - entry["data_offsets"][0]
            if len(entry["shape"]) == 1:
                out.write(b"\x80\x3f" * (left // 2))  # a norm's: ones
                continue
            while left > 0:
                part = block[at:at + min(left, BLOCK - at)]
                out.write(part)
                left -= len(part)
                at = (at + len(part) + 4098) % BLOCK if at + len(part) < BLOCK else 0
    return end


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(f"{make(Path(sys.argv[1]), Path(sys.argv[2])) / 1e9:.2f} GB in {sys.argv[2]}")
