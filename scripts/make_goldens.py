#!/usr/bin/env python3
"""Makes tests/data: tiny random models and what `transformers` computes from them.

    pip install torch transformers gguf safetensors
    scripts/make_goldens.py      # rewrites tests/data; the same versions give the same bytes

Written:
    tiny-llama/          a folder with one safetensors file: 4 layers, 6 heads in 3 KV groups (so
                         that 2 ranks hold 4 + 2), untied head; F16, norms and the first layer F32
    tiny-llama-tied/     a folder with two shards: tied head, llama3 rope scaling, BF16
    tiny-llama.gguf      the tied model quantized: F16, BF16, Q8_0, Q4_0 and Q4_1 in one file
    spm-vocab.gguf       a SentencePiece vocabulary with scores and no merges (no tensors)
    tiny-<family>/       the other families' folders: a few layers, so that every kind of layer of the
                         family occurs, prompts longer than its window, 128 words as vocabulary
    tiny-<family>.gguf   the same weights under llama.cpp's names, by the package gguf
    goldens/<model>.json           prompts as text and ids, and the ids of greedy decoding
    goldens/<model>.safetensors    "logits.N": F32 [T, V] of prompt N, every position
    goldens/rope.json              cos and sin rows for every kind of rope scaling
    goldens/spm.json               text lines and their ids for spm-vocab.gguf
    goldens/smollm2-text.json      the same for the real model (kept as it is when that is absent)
All arithmetic is fp32; a file's types only say how its weights were rounded.
"""

import json
import math
import shutil

import gguf
import numpy as np
import torch
import transformers
from golden_common import DATA, GOLDENS, GREEDY_TOKENS, Q, ROOT, add_sizes, permute, random_model, \
    round_weights, write_goldens_of
from golden_families import make_families
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

VOCAB = 512

CORPUS = """
A millrace is the channel that leads water to the wheel of a mill. The miller opens the gate, the
water runs, the wheel turns, and the stones grind the grain. When the river is low the mill stands
still; when it is high the miller must close the gate or the wheel will break. In the old days
every village had a mill, and every mill had a millrace, a pond and a weir. Children fished there
in summer and skated there in winter. The sound of the wheel was heard from far away: clack, clack,
clack, all day and often all night. Today most of the wheels are gone, but many channels remain.
Can you tell me what the capital of the country is? Yes: the answer depends on the question. How
many stones does a mill need? Two, one that lies and one that runs. What is the weight of a sack of
flour? About 100 pounds, or 45 kilograms; in 1850 it cost 3 shillings. Write a short story about a
river, please. Once upon a time there was a river that did not want to work. It said to the
miller: "I am tired of wheels, I would rather see the sea." And the miller, who was old and also
tired, opened every gate and let it run. That is why there is no mill in our village any more.
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

PROMPTS = [
    "The wheel",
    "What is the weight of a sack of flour in 1850?",
    "Once upon a time there was a river that did not want to work",
]


def byte_level_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, min_frequency=1, show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([CORPUS], trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
        unk_token="<|endoftext|>", chat_template=CHAT_TEMPLATE)


def write_goldens(name, model, tokenizer):
    """Logits of the prompts and greedy continuations; refuses a model whose choices are close."""
    write_goldens_of(name, model, [(text, tokenizer(text)["input_ids"]) for text in PROMPTS],
                     GREEDY_TOKENS)


def make_untied(tokenizer):
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=96, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=3, head_dim=16, max_position_embeddings=256,
        rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.1)
    model = random_model(config, seed=3)
    full = ("norm", "layers.0.")
    stored = round_weights(
        model, lambda name: torch.float32 if any(f in name for f in full) else torch.float16)
    folder = DATA / "tiny-llama"
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    write_goldens("tiny-llama", model, tokenizer)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}


def tied_config():
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
        rms_norm_eps=1e-6, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3},
        initializer_range=0.12)


def make_tied(tokenizer):
    model = random_model(tied_config(), seed=5)
    stored = round_weights(model, lambda name: torch.bfloat16)
    stored.pop("lm_head.weight", None)
    folder = DATA / "tiny-llama-tied"
    folder.mkdir()
    # As transformers 4 wrote it.
    old_config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_act": "silu",
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "llama3", **LLAMA3}, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(old_config, indent=2) + "\n")
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": [2, 0]}\n')
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": {"__type": "AddedToken", "content": "<|im_start|>"},
         "eos_token": "<|im_end|>",
         "chat_template": [{"name": "default", "template": CHAT_TEMPLATE}]}, indent=2) + "\n")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {name: shards["layers.1." in name or "model.norm" in name] for name in stored}
    for shard in shards:
        save_file({n: t for n, t in stored.items() if weight_map[n] == shard}, folder / shard,
                  metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in stored.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n")
    write_goldens("tiny-llama-tied", model, tokenizer)
    return model


def llama3_factors(head_dim, theta):
    """What GGUF stores for llama3 scaling: the divisor of each frequency."""
    factors = []
    for i in range(0, head_dim, 2):
        length = LLAMA3["original_max_position_embeddings"]
        turns = length * theta ** (-i / head_dim) / (2 * math.pi)
        smooth = (turns - LLAMA3["low_freq_factor"]) / (
            LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"])
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


GGUF_LAYER = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q",
              "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
              "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
GGUF_TYPES = {"self_attn.q_proj": Q.Q4_1, "self_attn.k_proj": Q.Q8_0, "self_attn.v_proj": Q.F16,
              "self_attn.o_proj": Q.BF16, "mlp.gate_proj": Q.Q4_0, "mlp.up_proj": Q.Q4_1,
              "mlp.down_proj": Q.Q4_0}


def add_byte_level_vocabulary(writer, tokenizer):
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    special = {t["content"] for t in data["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in special else 1 for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def make_gguf(model, tokenizer):
    config = model.config
    writer = gguf.GGUFWriter(DATA / "tiny-llama.gguf", "llama")
    add_sizes(writer, config)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCAB)
    add_byte_level_vocabulary(writer, tokenizer)
    writer.add_tensor("rope_freqs.weight", llama3_factors(config.head_dim, 10000.0))

    def add(gguf_name, weight, type_, heads=None):
        array = weight.detach().numpy()
        data = gguf.quantize(permute(array, heads) if heads else array, type_)
        writer.add_tensor(gguf_name, data, raw_dtype=type_)
        back = gguf.dequantize(data, type_).reshape(array.shape)
        if heads:  # undo: read the permuted rows as [heads, half, 2]
            back = back.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        weight.copy_(torch.from_numpy(np.ascontiguousarray(back)))

    with torch.no_grad():
        add("token_embd.weight", model.model.embed_tokens.weight, Q.Q8_0)
        add("output_norm.weight", model.model.norm.weight, Q.F32)
        for i, layer in enumerate(model.model.layers):
            for hf, short in GGUF_LAYER.items():
                heads = {"attn_q": config.num_attention_heads,
                         "attn_k": config.num_key_value_heads}.get(short)
                add(f"blk.{i}.{short}.weight", layer.get_submodule(hf).weight,
                    GGUF_TYPES.get(hf, Q.F32), heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_goldens("tiny-llama-gguf", model, tokenizer)


SPM_LINES = [
    "The miller opens the gate", "water, water everywhere", "a  b", "naïve café", "1850 pounds",
    "line one\nline two", "東京 🙂", "The wheel was heard from far away: clack, clack!"]


def make_sentencepiece_vocabulary():
    """Pieces learned by BPE, scored by rank, as SentencePiece writes them."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator([CORPUS], trainers.BpeTrainer(
        vocab_size=300, min_frequency=1, show_progress=False))
    data = json.loads(learned.to_str())["model"]
    merged = [left + right for left, right in data["merges"]]
    characters = sorted(set(data["vocab"]) - set(merged))
    tokens = (["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + merged + characters)
    count = len(merged) + len(characters)
    writer = gguf.GGUFWriter(DATA / "spm-vocab.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(count)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * count)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    oracle = transformers.AutoTokenizer.from_pretrained(DATA, gguf_file="spm-vocab.gguf")
    lines = [{"text": s, "ids": oracle(s, add_special_tokens=False)["input_ids"]}
             for s in SPM_LINES]
    (GOLDENS / "spm.json").write_text(json.dumps({"lines": lines}, indent=1) + "\n")


ROPE_CONFIGS = [
    {"rope_theta": 500000.0},
    {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
                         "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64}},
    {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "yarn", "factor": 8.0,
                                             "original_max_position_embeddings": 64}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0,
                         "original_max_position_embeddings": 128, "beta_fast": 16.0,
                         "beta_slow": 2.0, "truncate": False, "mscale": 1.0,
                         "mscale_all_dim": 0.8}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                         "original_max_position_embeddings": 128, "attention_factor": 1.25}},
]
ROPE_SHAPE = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 64,
              "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
              "max_position_embeddings": 512}


PHI3_ROPE = {**ROPE_SHAPE, "model_type": "phi3", "pad_token_id": 0, "partial_rotary_factor": 0.75,
             "original_max_position_embeddings": 64, "rope_theta": 10000.0, "rope_scaling": {
                 "type": "longrope", "long_factor": [1.0 + 0.9 * i for i in range(12)],
                 "short_factor": [1.0 + 0.05 * i for i in range(12)]}}


def longrope_cases():
    """Of both lists: which one acts follows from the longest sequence."""
    for max_position, positions in ((64, [0, 1, 7, 40, 63]), (512, [0, 1, 7, 100, 511])):
        fields = json.loads(json.dumps(PHI3_ROPE))
        config = AutoConfig.for_model(**json.loads(json.dumps(fields)))
        module = Phi3RotaryEmbedding(config)
        cos, sin = module(torch.zeros(1), torch.arange(max_position)[None])
        half = cos.shape[-1] // 2
        yield {"config": fields, "max_position": max_position, "positions": positions,
               "cos": cos[0, positions, :half].tolist(), "sin": sin[0, positions, :half].tolist()}


def make_rope_goldens():
    positions = [0, 1, 7, 100, 511]
    cases = list(longrope_cases())
    for rope in ROPE_CONFIGS:
        # Dynamic scaling acts beyond the context only: there a longer sequence is asked for.
        dynamic = rope.get("rope_scaling", {}).get("rope_type") == "dynamic"
        for max_position in (512, 1024) if dynamic else (512,):
            fields = json.loads(json.dumps({**ROPE_SHAPE, **rope}))
            module = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(fields))))
            if max_position > 512:
                module(torch.zeros(1), torch.tensor([[max_position - 1]]))
            angles = module.inv_freq.double()[None] * torch.tensor(positions)[:, None]
            scale = module.attention_scaling
            cases.append({"config": {"model_type": "llama", **fields},
                          "max_position": max_position, "positions": positions,
                          "cos": (angles.cos() * scale).tolist(),
                          "sin": (angles.sin() * scale).tolist()})
    (GOLDENS / "rope.json").write_text(json.dumps({"cases": cases}) + "\n")


# No run of spaces before a digit: there transformers' import of GGUF (5.23) cuts the text without
# regard to digits, unlike the model's own tokenizer.json.
SMOLLM2_LINES = [
    "Hello, world!", "In 2024 there were 1,234 cats.", "  two spaces\n\n\ttab",
    "naïve café 東京 🙂 don't", "<|im_start|>user\nWhat is 3.14?<|im_end|>\n", "x=1;y = x**2\r\n",
    "I'LL be back, they've said; we'd see", "", " ", "a" * 200, "e\u0301 \u200b\ufeff end"]


def smollm2_text(path):
    oracle = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    lines = [{"text": s, "ids": oracle(s)["input_ids"]} for s in SMOLLM2_LINES]
    return json.dumps({"lines": lines}, indent=1) + "\n"


def main():
    smollm2 = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    kept = GOLDENS / "smollm2-text.json"
    real = smollm2_text(smollm2) if smollm2.exists() else kept.read_text()
    if DATA.exists():
        shutil.rmtree(DATA)
    GOLDENS.mkdir(parents=True)
    kept.write_text(real)
    tokenizer = byte_level_tokenizer()
    make_untied(tokenizer)
    make_gguf(make_tied(tokenizer), tokenizer)
    make_families()
    make_sentencepiece_vocabulary()
    make_rope_goldens()
    total = sum(f.stat().st_size for f in DATA.rglob("*") if f.is_file())
    print(f"{DATA}: {total} bytes")


if __name__ == "__main__":
    main()
