#!/usr/bin/env bash
# llama.cpp, architecture deci: a layer that has attention and no MLP loses its attention, too.
#
# Versions: xllamacpp 2026.10.11549 (llama.cpp for the CPU), gguf 0.19.0, transformers 5.23.0, torch 2.13.0, Python 3.11.
#
# What happens: deci is llama.cpp's architecture for models whose layers differ: feed_forward_length, head_count and
# head_count_kv are lists, and 0 stands for a part that is gone. A layer without attention works. A layer with attention and a
# feed_forward_length of 0 loads without a word, its attention weights are read, and then the layer does nothing: the engine
# gives exactly the logits of the model with the whole layer removed.
#
# What one would expect: attention alone, or a refusal on loading.
#
# Whom it hurts: whoever prunes blocks rather than layers. Removing MLPs is as usual as removing attention; the file loads, and
# the model that was evaluated is not the model that is served.
#
# A way out: leave the MLP in the file and fill its last matrix with zeros.
#
# Seen on 2026-12-01 (largest difference of a log-probability after 24 tokens):
#   xllamacpp 2026.10.11549, gguf 0.19.0, transformers 5.23.0, torch 2.13.0
#   all parts there: engine and transformers differ by 0.0000
#   no MLP in layer 1: engine and transformers differ by 1.2486
#   no MLP in layer 1: engine and transformers without the whole layer differ by 0.0000
#   zeros in its MLP instead: engine and transformers differ by 0.0000
#   as recorded
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    xllamacpp==2026.10.11549 gguf==0.19.0 torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
import urllib.request
from importlib.metadata import version

import gguf
import torch
import xllamacpp
from transformers import LlamaConfig, LlamaForCausalLM

print(", ".join(f"{name} {version(name).split('+')[0]}" for name in ("xllamacpp", "gguf", "transformers", "torch")))
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_WIDTH, MLP_WIDTH, VOCABULARY = 3, 64, 4, 2, 16, 96, 96
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=MLP_WIDTH, num_hidden_layers=LAYERS,
    num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, initializer_range=0.2, max_position_embeddings=128,
)
model = LlamaForCausalLM(config).eval()
for name, weight in model.named_parameters():
    if "norm" in name:
        weight.data.uniform_(0.5, 1.5)  # norms of ones would hide mistakes
prompt = torch.randint(2, VOCABULARY, (1, 24))


def rotary_pairs_together(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """transformers turns channel i with i + half; llama.cpp turns neighbours."""
    return weight.unflatten(0, (heads, 2, HEAD_WIDTH // 2)).transpose(1, 2).flatten(0, 2)


def write(path: str, mlp_widths: list[int]) -> None:
    file = gguf.GGUFWriter(path, "deci")
    file.add_block_count(LAYERS)
    file.add_context_length(128)
    file.add_embedding_length(HIDDEN)
    file.add_feed_forward_length(mlp_widths)
    file.add_head_count([HEADS] * LAYERS)
    file.add_head_count_kv([KV_HEADS] * LAYERS)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_dimension_count(HEAD_WIDTH)
    file.add_rope_freq_base(10_000.0)
    file.add_vocab_size(VOCABULARY)
    file.add_tokenizer_model("gpt2")  # one printable sign a token; the prompt goes in as ids
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list(["<s>", "</s>", *map(chr, range(33, 126)), "ab"])
    file.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (VOCABULARY - 2))
    file.add_token_merges(["a b"])
    file.add_bos_token_id(0)
    file.add_eos_token_id(1)
    file.add_add_bos_token(False)

    def add(name: str, weight: torch.Tensor) -> None:
        file.add_tensor(f"{name}.weight", weight.detach().contiguous().numpy())

    add("token_embd", model.model.embed_tokens.weight)
    add("output_norm", model.model.norm.weight)
    add("output", model.lm_head.weight)
    for index, layer in enumerate(model.model.layers):
        block, attention = f"blk.{index}.", layer.self_attn
        add(block + "attn_norm", layer.input_layernorm.weight)
        add(block + "attn_q", rotary_pairs_together(attention.q_proj.weight, HEADS))
        add(block + "attn_k", rotary_pairs_together(attention.k_proj.weight, KV_HEADS))
        add(block + "attn_v", attention.v_proj.weight)
        add(block + "attn_output", attention.o_proj.weight)
        if mlp_widths[index]:
            add(block + "ffn_norm", layer.post_attention_layernorm.weight)
            add(block + "ffn_gate", layer.mlp.gate_proj.weight)
            add(block + "ffn_up", layer.mlp.up_proj.weight)
            add(block + "ffn_down", layer.mlp.down_proj.weight)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def by_engine(path: str) -> torch.Tensor:
    """Log-probabilities of the token after the prompt, with exact caches."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 128, 1, 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.warmup, parameters.verbosity, parameters.port = False, 0, 0
    server = xllamacpp.Server(parameters)
    asked = {"prompt": prompt[0].tolist(), "n_predict": 1, "n_probs": VOCABULARY, "cache_prompt": False}
    request = urllib.request.Request(
        f"{server.listening_address}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        listed = json.load(answer)["completion_probabilities"][0]["top_logprobs"]
    return torch.tensor([entry["logprob"] for entry in sorted(listed, key=lambda entry: entry["id"])])


@torch.no_grad()
def by_transformers() -> torch.Tensor:
    return model(prompt).logits[0, -1].log_softmax(-1)


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left - right).abs().max().item()


write("whole.gguf", [MLP_WIDTH] * LAYERS)
whole = apart(by_engine("whole.gguf"), by_transformers())
print(f"all parts there: engine and transformers differ by {whole:.4f}")
write("without.gguf", [MLP_WIDTH, 0, MLP_WIDTH])
engine = by_engine("without.gguf")
model.model.layers[1].mlp.down_proj.weight.data.zero_()
without_mlp = apart(engine, by_transformers())
write("zeros.gguf", [MLP_WIDTH] * LAYERS)
zeros = apart(by_engine("zeros.gguf"), by_transformers())
print(f"no MLP in layer 1: engine and transformers differ by {without_mlp:.4f}")
model.model.layers[1].self_attn.o_proj.weight.data.zero_()
without_layer = apart(engine, by_transformers())
print(f"no MLP in layer 1: engine and transformers without the whole layer differ by {without_layer:.4f}")
print(f"zeros in its MLP instead: engine and transformers differ by {zeros:.4f}")
recorded = whole < 1e-3 and zeros < 1e-3 and without_mlp > 0.5 and without_layer < 1e-3
print("as recorded" if recorded else "the behaviour has changed")
sys.exit(not recorded)
PYTHON
