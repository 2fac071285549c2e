"""Language models pruned without fine-tuning: perplexity by method, throughput, and memory by depth.

    python benchmarks/language [--model text-llama] [--data text:kjv] [--samples 512] [--draws 3]
        [--tables quality,speed,memory]
    python benchmarks/language --model hf:FOLDER --context 512 --data text:valid.txt --test text:test.txt --samples 128 --draws 1
        --shares 0.9,0.8,0.7 --methods width,width-one-shot,free,magnitude --tables quality

Prints the tables of docs/results/language.md. Budgets are shares of the parameters in the decoder blocks (MLP and attention);
embeddings and the output layer are kept and not counted. Memory is that of the process without mapped files (Linux); each
depth is measured in its own process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from baselines import flap, wanda

import modhifi
from modhifi import Data, Model, Study
from modhifi.components import Cost
from modhifi.evaluation import read
from modhifi.models import fingerprint
from modhifi.plan import Plan
from modhifi.pruning import Method, pruning_methods

SHARES = (0.8, 0.7)
Planner = Callable[[Study, Model, float], Plan]
DEPTHS = (4, 8, 16)
TABLES = ("quality", "speed", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="text-llama")
    parser.add_argument("--data", default="text:kjv")
    parser.add_argument("--test", help="held-out text (default: the held-out part of --data)")
    parser.add_argument("--context", type=int, help="tokens per window (default: the model's)")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="comma-separated budgets")
    parser.add_argument("--methods", help="comma-separated (default: all), flap and wanda included")
    parser.add_argument("--data-root")
    parser.add_argument("--samples", type=int, default=512, help="calibration windows per draw")
    parser.add_argument("--draws", type=int, default=3, help="draws of the calibration windows")
    parser.add_argument("--windows", type=int, help="windows from the beginning of the held-out text (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tables", default=",".join(TABLES), help="comma-separated (default: all)")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(peak(args.memory_of, args.whole))
        return
    tables = args.tables.split(",")
    if {"quality", "speed"} & {*tables}:
        model = modhifi.load_model(args.model, context=args.context, device=args.device)
        shares = [float(share) for share in args.shares.split(",")]
        methods = args.methods.split(",") if args.methods else None
        if args.test:
            test = modhifi.load_data(args.test, samples=args.windows)
        else:
            test = modhifi.load_data(args.data, args.data_root, "test", args.windows)
        calibration = modhifi.load_data(args.data, args.data_root, "calibration")
        studies = [modhifi.analyze(model, calibration, args.samples, seed=seed) for seed in range(args.draws)]
        if "quality" in tables:
            quality(model, test, studies, shares, methods)
        if "speed" in tables:
            speed(model, test, studies[0], shares)
    if "memory" in tables:
        memory()


def of_blocks(study: Study, share: float) -> float:
    """The share of all parameters that remains if ``share`` of those in MLP and attention remains."""
    structure = study.structure
    inside = structure.model_copy(update={"other": Cost(params=0, flops=0)}).cost().params
    return (study.dense.params - (1 - share) * inside) / study.dense.params


def quality(model: Model, test: Data, studies: list[Study], shares: list[float], wanted: list[str] | None) -> None:
    dense = read(model, test)
    assert model.tokens is not None
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU"
    context = model.tokens.context
    print(
        f"**{model.spec}, {studies[0].data.samples} calibration windows of {context} tokens, {where}; perplexity of"
        f" {dense.tokens:,} held-out tokens, context {context}, stride {context // 2};"
        f" original model {dense.perplexity:.3f}**\n"
    )
    heads = " | ".join(f"at {share:.0%} | × original" for share in shares)
    print(f"| method | {heads} |\n|---|{'---|' * 2 * len(shares)}", flush=True)

    def by(method: Method) -> Planner:
        return lambda study, model, remain: method.plan(study, "params", remain, model=model)

    methods = {name: (method.title, by(method)) for name, method in pruning_methods(language=True).items()}
    methods |= {"flap": ("Fluctuation with bias (FLAP)", flap), "wanda": ("Products (Wanda)", wanda)}
    for title, planned in (methods[name] for name in wanted or methods):
        cells = []
        for share in shares:
            found = []
            for study in studies:
                plan = planned(study, model, of_blocks(study, share))
                found.append(read(modhifi.apply(plan, model), test).perplexity)
            mean, spread = statistics.mean(found), (max(found) - min(found)) / 2
            around = f" ± {spread:.3f}" if len(found) > 1 else ""
            cells += [f"{mean:.3f}{around}", f"{mean / dense.perplexity:.3f}"]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)
    counts = modhifi.allocate(studies[0], params=of_blocks(studies[0], shares[0])).counts
    kept = {(studies[0].group(name).kind, count, studies[0].group(name).size) for name, count in counts.items()}
    print(
        f"\nEqual widths at {shares[0]:.0%}: "
        + ", ".join(f"{count} of {size} {kind}" for kind, count, size in sorted(kept))
    )


def speed(model: Model, test: Data, study: Study, shares: list[float]) -> None:
    print(
        "\n| parameters in the blocks | perplexity | prefill throughput, tokens/s | decode throughput, tokens/s |"
        " seconds to decide |"
    )
    print("|---|---|---|---|---|")
    for share in (1.0, *shares):
        began = time.perf_counter()
        remain = of_blocks(study, share)
        pruned = model if share == 1 else modhifi.apply(modhifi.prune(study, params=remain, model=model), model)
        seconds = time.perf_counter() - began
        e = modhifi.evaluate(pruned, test)
        speeds = f"{e.prefill_tokens_per_second:,.0f} | {e.decode_tokens_per_second:.0f}"
        print(f"| {share:.0%} | {e.perplexity:.3f} | {speeds} | {seconds:.1f} |")
    print(f"\nThe analysis takes {study.seconds:.1f} s, once for all plans.")


def memory() -> None:
    print("\n| decoder blocks | moments of all blocks, MB | block by block, peak MB | all in memory, peak MB |")
    print("|---|---|---|---|")
    for depth in DEPTHS:
        each = 2**-20 * 4 * (WIDTH**2 + CHANNELS**2)
        peaks = []
        for whole in (False, True):
            command = [
                sys.executable,
                str(Path(__file__).parent),
                "--memory-of",
                str(depth),
                *(["--whole"] if whole else []),
            ]
            # Makes the allocator return freed memory: what it would keep for reuse does not belong to the analysis.
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            peaks.append(float(done.stdout.split()[-1]))
        print(f"| {depth} | {depth * each:.0f} | {peaks[0]:.0f} | {peaks[1]:.0f} |", flush=True)


CHANNELS, WIDTH, CONTEXT, WINDOWS = 128, 2048, 64, 64


def peak(depth: int, whole: bool) -> float:
    """Peak MB of the analysis of a Llama with ``depth`` blocks above what the process held before, without mapped files."""
    from transformers import LlamaConfig

    from modhifi.models.language import of_config, token_spec

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=CHANNELS,
        intermediate_size=WIDTH,
        num_hidden_layers=depth,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    module = of_config(config)
    model = Model("random", module, token_spec(config, CONTEXT), (), None, fingerprint(module))
    rows = torch.randint(256, (WINDOWS, CONTEXT))
    data = Data(
        "text:random",
        None,
        "test",
        lambda _: Image.new("RGB", (1, 1)),
        tuple(range(WINDOWS)),
        None,
        None,
        "",
        text="",
        rows=rows,
    )
    module(rows[:2])
    before, seen, done = anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen.append(anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    with tempfile.TemporaryDirectory() as folder:
        out = None if whole else Path(folder) / "study"
        kept = modhifi.analyze(model, data, WINDOWS, batch_size=8, constants=["none"], out=out)
        assert len(kept.layers) == 2 * depth
    done.set()
    thread.join()
    return max(seen) - before


def anonymous() -> float:
    """Memory of the process in MB, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


if __name__ == "__main__":
    main()
