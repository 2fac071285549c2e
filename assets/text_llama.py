"""The training recipe of the shipped language model: a small Llama on the bytes of the King James Bible.

    apt-get download bible-kjv bible-kjv-text && for p in bible-kjv*.deb; do dpkg -x $p kjv; done
    kjv/usr/bin/bible -p kjv/usr/lib -f Gen1:1-Rev22:21 > kjv.txt
    python assets/text_llama.py --text kjv.txt --out assets --seed 0

Writes the folder ``text-llama``: configuration, weights in bfloat16 and a byte tokenizer, which transformers alone can open;
the model card ``card.json``; and two excerpts of the text, ``calibration.txt`` (chapters that the model was trained on) and
``test.txt`` (held-out chapters). The text is Debian's package bible-kjv-text, from 1611 and in the public domain ("the
copyright ... is expired"; "unrestricted use"). Every twentieth chapter is held out; the model is kept after the last step, and
the held-out text is used once, at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Run as a script, Python looks for modules next to the file; the package is one folder up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STEPS = 2600
BATCH = 16
CONTEXT = 256
RATE = 2e-3
DECAY = 0.1
HELD_OUT = 20
CALIBRATION_BYTES, TEST_BYTES = 140_000, 70_000
CONFIG: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 5,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}


def chapters(verses: str) -> list[str]:
    """``verses``, with lines such as "Ge1:1 In the beginning", as chapters without references, one verse per line."""
    lines = [line.split(" ", 1) for line in verses.splitlines() if line.strip()]
    by_chapter = itertools.groupby(lines, lambda line: re.sub(r":\d+$", "", line[0]))
    return ["".join(f"{verse.strip()}\n" for _, verse in group) + "\n" for _, group in by_chapter]


def split(verses: str) -> tuple[str, str]:
    """(training, held-out): every `HELD_OUT`-th chapter is held out."""
    parts = chapters(verses)
    held = [part for i, part in enumerate(parts) if i % HELD_OUT == HELD_OUT - 1]
    return "".join(part for i, part in enumerate(parts) if i % HELD_OUT != HELD_OUT - 1), "".join(held)


def byte_tokenizer() -> Any:
    """A transformers tokenizer whose 256 tokens are the bytes, in order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The byte-level pre-tokenizer maps printable bytes to themselves and the rest to consecutive characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = itertools.count(256)
    vocabulary = {chr(byte if byte in printable else next(rest)): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT)


def tokens(text: str) -> Tensor:
    """The bytes of ``text``, (n,) int64."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def train(text: str, seed: int, steps: int) -> nn.Module:
    """AdamW on random windows with a one-cycle schedule, under bfloat16 autocast; returns the network after the last step, in
    evaluation mode.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    stream, generator = tokens(text), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(LlamaConfig(**CONFIG))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=RATE,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps, pct_start=0.1)
    reach = torch.arange(CONTEXT + 1)
    for step in range(steps):
        starts = torch.randint(len(stream) - CONTEXT, (BATCH, 1), generator=generator)
        window = stream[starts + reach]  # (B, context + 1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=window[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1:5d} of {steps}: training loss {loss.item():.4f}", file=sys.stderr, flush=True)
    model.eval()
    assert isinstance(model, nn.Module)
    return model


def unigram_perplexity(text: str, of: str) -> float:
    """Perplexity of the bytes of ``text`` under the byte frequencies of ``of``, with one added to each count."""
    counts = Counter(of.encode())
    total = len(of.encode()) + 256
    data = text.encode()
    return math.exp(-sum(math.log((counts[byte] + 1) / total) for byte in data) / len(data))


def make(verses: Path, out: Path, seed: int, steps: int) -> dict[str, object]:
    """Trains, writes the folder ``text-llama`` to ``out`` and returns the card."""
    from modhifi.files import write_json

    training, held = split(verses.read_text(encoding="utf-8"))
    start = time.perf_counter()
    model: Any = train(training, seed, steps)
    seconds = time.perf_counter() - start
    folder = out / "text-llama"
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    middle = len(training) // 2
    (folder / "calibration.txt").write_text(training[middle : middle + CALIBRATION_BYTES], encoding="utf-8")
    (folder / "test.txt").write_text(held[:TEST_BYTES], encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)
    card: dict[str, object] = {
        "name": "text-llama",
        "architecture": "a Llama of 5 decoder blocks, 192 channels, 12 query heads that share 6 key-value heads, 768 hidden "
        "neurons; the 256 bytes are its tokens",
        "data": "the King James Bible (1611, public domain) as in Debian's package bible-kjv-text, without references",
        "bytes": {"train": len(training), "held out": len(held)},
        "seed": seed,
        "recipe": f"{steps} steps of AdamW on {BATCH} windows of {CONTEXT} bytes, one cycle up to a rate of {RATE}, weight decay "
        f"{DECAY}, gradients clipped at 1, bfloat16 products; the last step is the model",
        "training_seconds": round(seconds),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "params": sum(p.numel() for p in model.parameters()),
        "unigram_perplexity": unigram_perplexity(held, training),
    }
    write_json(folder / "card.json", card)
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description="Train text-llama and write its folder.")
    parser.add_argument("--text", type=Path, required=True, help="verses as printed by the bible program")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (the number affects rounding)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(make(arguments.text, arguments.out, arguments.seed, arguments.steps), indent=1))


if __name__ == "__main__":
    main()
