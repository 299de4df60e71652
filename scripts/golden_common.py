"""What the scripts that make tests/data share: random weights, and what a model says of prompts."""

import json
import pathlib

import gguf
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
GOLDENS = DATA / "goldens"
GREEDY_TOKENS = 32
Q = gguf.GGMLQuantizationType


def random_model(config, seed, ones=1, **how):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, **how).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(ones + 0.2 * torch.randn_like(weight))
            elif name.endswith(".bias"):
                weight.copy_(0.2 * torch.randn_like(weight))
    return model


def round_weights(model, dtype_of):
    """Rounds each weight to the type the file will hold; returns the tensors to store."""
    stored = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            stored[name] = weight.to(dtype_of(name)).contiguous()
            weight.copy_(stored[name].float())
    return stored


def write_goldens_of(name, model, texts, greedy_tokens):
    """Logits of the prompts, (text, ids), and greedy continuations; refuses a model whose choices
    are close."""
    logits, prompts = {}, []
    for n, (text, ids) in enumerate(texts):
        with torch.no_grad():
            logits[f"logits.{n}"] = model(torch.tensor([ids])).logits[0].float().contiguous()
            sequence = list(ids)
            for _ in range(greedy_tokens):
                last = model(torch.tensor([sequence])).logits[0, -1]
                best, second = last.topk(2).values.tolist()
                assert best - second > 1e-3, f"{name}: two tokens nearly tie; take another seed"
                sequence.append(int(last.argmax()))
        assert model.config.eos_token_id not in sequence, f"{name}: it ends; take another seed"
        prompts.append({"text": text, "ids": ids, "greedy": sequence[len(ids):]})
    save_file(logits, GOLDENS / f"{name}.safetensors")
    (GOLDENS / f"{name}.json").write_text(json.dumps({"prompts": prompts}, indent=1) + "\n")


def permute(weight, heads):
    """Llama rows as GGUF keeps them: a head's halves interleaved."""
    rows = weight.shape[0]
    return (weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape))


def add_sizes(writer, config):
    """The sizes that every GGUF file tells, in this order."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
