"""Makes the tiny random checkpoints of testdata/models and their golden logits.

Each model has a Hugging Face directory (config.json, safetensors, tokenizer) and three golden files: golden.json (input
token ids, shape, greedy continuation, versions), golden.f32 (logits of every position, little-endian float32, row
after row), computed by transformers in float32 with eager attention, and golden_half_cache.f32, the same with keys and
values rounded to half precision before attention, as a half-precision KV cache stores them.

Run by `cargo xtask golden`; usage: tiny_models.py OUTPUT_DIRECTORY [MODEL ...]
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

import tiny_tokenizer

NUM_INPUT_TOKENS = 40  # more than one cache block of 32 positions
NUM_GREEDY_TOKENS = 16

SIZES = dict(
    vocab_size=tiny_tokenizer.VOCAB_SIZE,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=None,
    tie_word_embeddings=True,
    use_cache=True,
)

# Wavelengths of a 16-wide head lie on both sides of, and between, these bounds, and 40 positions turn far enough to see it.
LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)


@dataclass
class TinyModel:
    """One checkpoint: what differs from SIZES, how it is stored, in how many files."""

    name: str
    config_class: type
    seed: int
    changes: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    num_shards: int = 1

    def config(self):
        config = self.config_class(**{**SIZES, **self.changes})
        config._attn_implementation = "eager"
        return config


MODELS = [
    TinyModel("tiny-llama", LlamaConfig, 25),
    TinyModel("tiny-llama-untied", LlamaConfig, 1, dict(tie_word_embeddings=False), torch.bfloat16),
    TinyModel(
        "tiny-llama3-rope",
        LlamaConfig,
        1,
        dict(rope_scaling=LLAMA3_ROPE, num_hidden_layers=3, intermediate_size=96, num_key_value_heads=1),
        torch.float16,
    ),
    TinyModel(
        "tiny-llama-linear-rope",
        LlamaConfig,
        4,
        dict(rope_scaling=dict(rope_type="linear", factor=4.0), rope_theta=500.0),
        torch.bfloat16,
    ),
    TinyModel(
        "tiny-mistral",
        MistralConfig,
        1,
        dict(tie_word_embeddings=False, sliding_window=None, num_key_value_heads=1),
        num_shards=2,
    ),
    TinyModel("tiny-qwen2", Qwen2Config, 6, dict(rope_theta=1000000.0, use_sliding_window=False)),
    TinyModel(
        "tiny-qwen3",
        Qwen3Config,
        7,
        dict(head_dim=32, rope_theta=1000000.0, rms_norm_eps=1e-6, use_sliding_window=False),
        torch.float16,
    ),
]


def fill_with_random_weights(model, seed):
    """Draws weights under which every part of the block matters: peaked attention, biases, uneven norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.5 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.copy_(0.3 * noise)
            else:
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
                weight.copy_(gain * noise / weight.shape[1] ** 0.5)


def round_to_storage(model, dtype):
    """Rounds every weight to what the file will hold, so that golden values and file agree exactly."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype).to(torch.float32))


def write_weights(model, tiny, directory):
    state = {name: weight.to(tiny.dtype).contiguous() for name, weight in model.state_dict().items()}
    if tiny.changes.get("tie_word_embeddings", True):
        state.pop("lm_head.weight")
    names = sorted(state)
    if tiny.num_shards == 1:
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(tiny.num_shards):
        file = f"model-{shard + 1:05}-of-{tiny.num_shards:05}.safetensors"
        mine = names[shard :: tiny.num_shards]
        save_file({name: state[name] for name in mine}, directory / file, metadata={"format": "pt"})
        weight_map.update((name, file) for name in mine)
    total_size = sum(weight.numel() * weight.element_size() for weight in state.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", index)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def greedy_continuation(model, input_ids):
    """The most likely next tokens, and the smallest lead that a chosen one had over the second."""
    ids, smallest_lead = list(input_ids), float("inf")
    for _ in range(NUM_GREEDY_TOKENS):
        best = model(torch.tensor([ids])).logits[0, -1].topk(2)
        smallest_lead = min(smallest_lead, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    return ids[len(input_ids) :], smallest_lead


def half_precision_cache(model):
    """A context in which the model's attention reads keys and values as a half-precision cache holds them."""
    module = sys.modules[type(model).__module__]
    attention = module.eager_attention_forward

    def rounded(layer, query, key, value, *rest, **options):
        return attention(layer, query, key.half().to(key.dtype), value.half().to(value.dtype), *rest, **options)

    return mock.patch.object(module, "eager_attention_forward", rounded)


def write_floats(path, tensor):
    path.write_bytes(tensor.to(torch.float32).numpy().astype("<f4").tobytes())


def relative_error(tensor, reference):
    return float(f"{((tensor - reference).norm() / reference.norm()).item():.1e}")


def write_golden(model, tiny, directory):
    generator = torch.Generator().manual_seed(1000 + tiny.seed)
    input_ids = torch.randint(tiny_tokenizer.VOCAB_SIZE, (NUM_INPUT_TOKENS,), generator=generator).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([input_ids])).logits[0]
        with half_precision_cache(model):
            half_cache_logits = model(torch.tensor([input_ids])).logits[0]
        greedy, smallest_lead = greedy_continuation(model, input_ids)
        reference = model.double()(torch.tensor([input_ids])).logits[0]
    write_floats(directory / "golden.f32", logits)
    write_floats(directory / "golden_half_cache.f32", half_cache_logits)
    golden = {
        "input_ids": input_ids,
        "logits_shape": list(logits.shape),
        "greedy_ids": greedy,
        "smallest_greedy_lead": round(smallest_lead, 6),
        "relative_error_of_float32": relative_error(logits, reference),
        "relative_error_of_half_cache": relative_error(half_cache_logits, reference),
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    text = json.dumps(golden).replace(', "', ',\n "')  # one line per key, not per number
    (directory / "golden.json").write_text(text + "\n")
    return golden


def make(tiny, output):
    directory = output / tiny.name
    directory.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_config(tiny.config(), dtype=torch.float32).eval()
    fill_with_random_weights(model, tiny.seed)
    round_to_storage(model, tiny.dtype)
    write_weights(model, tiny, directory)
    config = {**model.config.to_diff_dict(), **SIZES, **tiny.changes}
    config.update(architectures=[type(model).__name__], torch_dtype=str(tiny.dtype).removeprefix("torch."))
    for unwanted in ("dtype", "_attn_implementation_autoset", "transformers_version", "pad_token_id"):
        config.pop(unwanted, None)
    write_json(directory / "config.json", dict(sorted(config.items())))
    write_json(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [2, 0]})
    tiny_tokenizer.write(directory)
    golden = write_golden(model, tiny, directory)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{tiny.name}: {parameters} parameters, lead {golden['smallest_greedy_lead']}, "
          f"float32 noise {golden['relative_error_of_float32']}, half cache {golden['relative_error_of_half_cache']}")


def main():
    output, wanted = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    for tiny in MODELS:
        if not wanted or tiny.name in wanted:
            make(tiny, output)


if __name__ == "__main__":
    main()
