"""Tiny teachers and texts, made on the spot: what a test needs where a real model would be too slow or too far.

The model's weights are random, norms included (identity norms hide slicing bugs); its tokenizer is really trained on
the text, so that windows, losses and exports go through the same code as with a real model.
"""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
SEPARATOR = "<|endoftext|>"

_SUBJECTS = ("the fox", "a child", "my sister", "the old tree", "a small bird", "the baker", "our neighbour", "a cat")
_VERBS = ("saw", "liked", "followed", "painted", "forgot", "carried", "found", "heard")
_OBJECTS = ("a red ball", "the river", "some bread", "the moon", "a long song", "the garden", "an apple", "the door")
_ENDINGS = ("in the morning", "before lunch", "with great joy", "and went home", "under the snow", "again", "at last")


def make_documents(count: int, *, seed: int = 0) -> list[str]:
    """`count` short stories of three to eight sentences each."""
    choose = random.Random(seed).choice
    length = random.Random(seed + 1).randint

    def sentence() -> str:
        words = f"{choose(_SUBJECTS)} {choose(_VERBS)} {choose(_OBJECTS)} {choose(_ENDINGS)}."
        return words[0].upper() + words[1:]

    return [" ".join(sentence() for _ in range(length(3, 8))) for _ in range(count)]


def make_text(path: Path, *, documents: int = 3_000, seed: int = 0) -> Path:
    """A .txt file of `documents` stories (about 60 tokens each) with ``<|endoftext|>`` between them; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"\n{SEPARATOR}\n".join(make_documents(documents, seed=seed)), encoding="utf-8")
    return path


def make_tokenizer(path: Path, *, vocab_size: int = 256) -> int:
    """Train a byte-level BPE tokenizer that begins a text with BOS, save it to `path`; its number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted({character for text in make_documents(200) for character in _byte_level(text)})
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(make_documents(500), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    # transformers leaves it unannotated
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)  # type: ignore[no-untyped-call]
    fast.save_pretrained(path)
    return tokenizer.get_vocab_size()


def _byte_level(text: str) -> str:
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)


def make_teacher(
    path: Path,
    *,
    seed: int = 0,
    vocab_size: int = 256,
    poison: bool = False,
    dtype: torch.dtype = torch.float32,
    **sizes: Any,
) -> Path:
    """A random Llama with grouped-query attention and its tokenizer, as a Hugging Face directory; its path.

    Args:
        path: the directory, made where it does not exist.
        seed: of the weights.
        vocab_size: of the tokenizer, at most; the model has as many embeddings as the tokenizer has tokens.
        poison: put one NaN among the weights.
        dtype: what the weights are stored in.
        sizes: fields of `LlamaConfig` that override the defaults (3 layers, hidden 48, FFN 96, heads 4/2).
    """
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = make_tokenizer(path, vocab_size=vocab_size)
    defaults: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **(defaults | sizes)))
        _randomise(model)
    if poison:
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    model.to(dtype).save_pretrained(path)  # type: ignore[arg-type]  # transformers' wrapper hides it
    return path


@torch.no_grad()
def _randomise(model: LlamaForCausalLM) -> None:
    """Weights that matter: random norms and biases, and matrices large enough for the layers to be heard."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
        else:
            parameter.normal_(std=0.08)
