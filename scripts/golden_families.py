"""The tiny checkpoints of every family beyond Llama, for scripts/make_goldens.py."""

import json
import math

import gguf
import numpy as np
import torch
from golden_common import DATA, GREEDY_TOKENS, Q, add_sizes, permute, random_model, round_weights, \
    write_goldens_of
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

# Name -> model_type, stored dtype, seed, fields of the config. Heads in 3 KV groups, or one KV head
# that ranks share; a head is wider than hidden / heads where the family allows it.
FAMILIES = {
    "tiny-mistral": ("mistral", torch.float16, 1, {
        "num_hidden_layers": 3, "sliding_window": 12}),
    "tiny-qwen2": ("qwen2", torch.float32, 12, {
        "num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 9,
        "max_window_layers": 1, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
            "original_max_position_embeddings": 64}}),
    "tiny-qwen3": ("qwen3", torch.float16, 3, {
        "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 80,
        "tie_word_embeddings": True}),
    "tiny-phi3": ("phi3", torch.bfloat16, 4, {
        "num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 3,
        "num_key_value_heads": 3, "head_dim": 16, "sliding_window": 14, "pad_token_id": 0,
        "original_max_position_embeddings": 4, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "long_factor": [1.0, 1.3, 2.0, 4.5, 9.0, 17.0],
            "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.5]}}),
    "tiny-gemma2": ("gemma2", torch.bfloat16, 5, {
        "num_hidden_layers": 3, "tie_word_embeddings": True, "sliding_window": 10,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "tiny-gemma3": ("gemma3_text", torch.bfloat16, 6, {
        "num_hidden_layers": 4, "tie_word_embeddings": True, "sliding_window": 11,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention",
                        "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}),
    "tiny-smollm3": ("smollm3", torch.float16, 7, {
        "num_hidden_layers": 4, "pad_token_id": 0}),
    "tiny-olmo2": ("olmo2", torch.float16, 8, {
        "num_hidden_layers": 3, "num_key_value_heads": 2}),
}
FAMILY_VOCAB = 128


def word_tokenizer():
    """One token a word: these models are held to ids, not to texts."""
    words = ["<unk>", "<s>", "</s>"] + [f"w{i}" for i in range(3, FAMILY_VOCAB)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def family_config(model_type, fields):
    return AutoConfig.for_model(model_type, **json.loads(json.dumps({
        "vocab_size": FAMILY_VOCAB, "hidden_size": 24, "intermediate_size": 96,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16,
        "max_position_embeddings": 256, "initializer_range": 0.25, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, **fields})))


def family_prompts(seed):
    """Of 6 and 40 ids; the longer one is beyond every window."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(3, FAMILY_VOCAB, (n,), generator=generator).tolist()
    return [(" ".join(f"w{i}" for i in ids), ids) for ids in (draw(6), draw(40))]


def make_family(name):
    model_type, dtype, seed, fields = FAMILIES[name]
    config = family_config(model_type, fields)
    # Only the eager attention of transformers knows soft caps.
    model = random_model(config, seed, ones=0 if model_type.startswith("gemma") else 1,
                         attn_implementation="eager")
    stored = round_weights(model, lambda _: dtype)
    folder = DATA / name
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    word_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    prompts = family_prompts(seed)
    write_goldens_of(name, model, prompts, GREEDY_TOKENS // 2)
    return model, prompts


# What GGUF cannot say of a family is changed for its file, which then has goldens of its own.
GGUF_FAMILIES = {
    "tiny-qwen2": ("qwen2", {"use_sliding_window": False}),
    "tiny-qwen3": ("qwen3", {}),
    "tiny-phi3": ("phi3", {}),
    "tiny-gemma2": ("gemma2", {}),
    "tiny-gemma3": ("gemma3", {"query_pre_attn_scalar": 16}),
    "tiny-smollm3": ("smollm3", {}),
    "tiny-olmo2": ("olmo2", {}),
}


def add_family_keys(writer, arch, config):
    add_sizes(writer, config)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(FAMILY_VOCAB)
    rope = config.rope_parameters
    main = rope.get("full_attention", rope)
    writer.add_rope_freq_base(main["rope_theta"])
    if arch != "gemma2" and arch != "gemma3":
        writer.add_rope_dimension_count(
            int(config.head_dim * main.get("partial_rotary_factor", 1.0)))
    if main["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(main["rope_type"]))
        writer.add_rope_scaling_factor(main["factor"])
    if main["rope_type"] in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(main["original_max_position_embeddings"])
    if main["rope_type"] == "longrope":
        original = main["original_max_position_embeddings"]
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight",
                              np.array(main[f"{kind}_factor"], dtype=np.float32))
    if arch in ("phi3", "gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "gemma3":
        writer.add_sliding_window_pattern(3)


def make_family_gguf(name, model, prompts):
    arch, changes = GGUF_FAMILIES[name]
    model_type, dtype, _, fields = FAMILIES[name]
    config = family_config(model_type, {**fields, **changes})
    if changes:
        changed = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        changed.load_state_dict(model.state_dict())
        write_goldens_of(f"{name}-gguf", changed, prompts, GREEDY_TOKENS // 2)
    writer = gguf.GGUFWriter(DATA / f"{name}.gguf", arch)
    add_family_keys(writer, arch, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<unk>", "<s>", "</s>", "w", "5", "w5"] +
                          [f"w{i}" for i in range(6, FAMILY_VOCAB)])
    writer.add_token_types([3, 3, 3] + [1] * (FAMILY_VOCAB - 3))
    writer.add_token_merges(["w 5"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    key = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(key, config.num_hidden_layers)
    type_ = {torch.float16: Q.F16, torch.bfloat16: Q.BF16, torch.float32: Q.F32}[dtype]
    for hf, weight in model.named_parameters():
        if config.tie_word_embeddings and hf.startswith("lm_head"):
            continue
        array = weight.detach().numpy()
        if "norm" in hf and arch.startswith("gemma"):
            array = array + 1
        for part, heads in (("q_proj", config.num_attention_heads),
                            ("k_proj", config.num_key_value_heads)):
            if arch == "smollm3" and f"{part}.weight" in hf:
                array = permute(array, heads)
        stored = Q.F32 if array.ndim == 1 else type_
        writer.add_tensor(names.get_name(hf, try_suffixes=(".weight", ".bias")),
                          gguf.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_families():
    for name in FAMILIES:
        model, prompts = make_family(name)
        if name in GGUF_FAMILIES:
            make_family_gguf(name, model, prompts)
