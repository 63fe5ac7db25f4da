#!/usr/bin/env bash
# AutoTokenizer replaces the steps in tokenizer.json by those of the model's family, although the folder names another class.
#
# Versions: transformers 5.23.0, tokenizers 0.23.3, Python 3.11.
#
# What happens: beside a config.json of model_type qwen2, AutoTokenizer takes vocabulary and merges from tokenizer.json and
# builds Qwen's own normaliser, pre-tokenizer and decoder around them. A tokenizer that marks spaces by its own sign loses all
# spaces; a byte-level one splits numbers otherwise. Special tokens of Qwen are added behind the vocabulary, with ids that no
# embedding has. It is silent, and the general class that save_pretrained wrote into tokenizer_config.json does not help.
# PreTrainedTokenizerFast reads the same folder rightly; so does AutoTokenizer beside a config.json of model_type llama.
#
# What one would expect: what save_pretrained wrote comes back.
#
# Whom it hurts: whoever trains a small model of a known shape with a tokenizer of their own. Training and scoring run on text
# without spaces, while every engine that reads tokenizer.json gives the model other ids.
#
# Known for other families: huggingface/transformers #45920 (closed) and #48206.
#
# Seen on 2026-12-01:
#   transformers 5.23.0, tokenizers 0.23.3; the text: 'the shop has 2024 pears'
#   qwen2, tokenizer of_bytes: the file names TokenizersBackend, loaded as Qwen2Tokenizer;
#       5 ids -> 9, 289 tokens -> 290, and back: 'the shop has 2024 pears'
#   qwen2, tokenizer of_signs: the file names TokenizersBackend, loaded as Qwen2Tokenizer;
#       5 ids -> 10, 51 tokens -> 52, and back: 'theshophas2024pears'
#   llama, tokenizer of_bytes: the file names TokenizersBackend, loaded as TokenizersBackend;
#       5 ids -> 5, 289 tokens -> 289, and back: 'the shop has 2024 pears'
#   llama, tokenizer of_signs: the file names TokenizersBackend, loaded as TokenizersBackend;
#       5 ids -> 5, 51 tokens -> 51, and back: 'the shop has 2024 pears'
#   as recorded
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
TEXT = ["the shop has 2024 apples and 1999 pears"] * 50
PROBE = "the shop has 2024 pears"


def of_bytes() -> Tokenizer:
    """Byte-level pairs; a number of any length may be one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def of_signs() -> Tokenizer:
    """Spaces become a visible sign, as in SentencePiece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer


def look(model_type: str, make) -> tuple[bool, bool]:
    """Whether AutoTokenizer gives the ids of tokenizer.json, and whether the general class does."""
    stored = make()
    folder = Path(f"{model_type}_{make.__name__}")
    whole = PreTrainedTokenizerFast(tokenizer_object=stored, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    whole.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    named = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    auto, general = AutoTokenizer.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    right, ids = stored.encode(PROBE).ids, auto(PROBE).input_ids
    print(
        f"{model_type}, tokenizer {make.__name__}: the file names {named}, loaded as {type(auto).__name__};\n    "
        f"{len(right)} ids -> {len(ids)}, {stored.get_vocab_size()} tokens -> {len(auto)}, "
        f"and back: {auto.decode(ids)!r}"
    )
    return ids == right, general(PROBE).input_ids == right


print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}; the text: {PROBE!r}")
recorded = True
for model_type, right in (("qwen2", False), ("llama", True)):
    for make in (of_bytes, of_signs):
        recorded = look(model_type, make) == (right, True) and recorded
print("as recorded" if recorded else "the behaviour has changed")
sys.exit(not recorded)
PYTHON
