"""Time to first token and tokens per second in vLLM, pruned and unpruned, of a mid-size random LLaVA-shaped model.

The engines stand in one process and take turns, so that whatever slows the machine slows all of them. Every request
has an image of its own, so no cache helps. Random weights say nothing of quality. Needs vLLM (`make test-vllm` installs
it).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .environment import RESULTS, describe, header

CONCURRENCY = (1, 4, 8)
NEW_TOKENS, TEXT_TOKENS, VOCABULARY = 16, 32, 2048
IMAGE_TOKEN = 4
PROTOTYPES = 64
TEXT: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
                        "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": VOCABULARY,
                        "max_position_embeddings": 2048}
VISION: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
                          "num_attention_heads": 8, "image_size": 336, "patch_size": 14}  # 576 tokens


def save_model(folder: Path) -> None:
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(**VISION), text_config=hf.LlamaConfig(**TEXT),
                            image_token_index=IMAGE_TOKEN)
    model = hf.LlavaForConditionalGeneration(config)
    names = ["<pad>", "<s>", "</s>", "<unk>", "<image>"] + [f"w{i}" for i in range(VOCABULARY - 5)]
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>",
                                           additional_special_tokens=["<image>"])
    images = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    hf.LlavaProcessor(image_processor=images, tokenizer=tokenizer, patch_size=14, image_token="<image>",
                      vision_feature_select_strategy="default", num_additional_image_tokens=1).save_pretrained(folder)
    # vLLM reads the names of the published checkpoints, which have one level more than those of transformers 5.
    model.save_pretrained(folder, state_dict={name.replace("vision_tower.", "vision_tower.vision_model."): tensor
                                              for name, tensor in model.state_dict().items()})


class Timed:
    """A pruner that adds up its time."""

    def __init__(self, pruner: Any) -> None:
        self.pruner, self.seconds = pruner, 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.perf_counter()
        found = self.pruner(*args)
        self.seconds += time.perf_counter() - start
        return found


def start(folder: Path, overrides: Any) -> Any:
    from vllm import LLM

    return LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=1024, block_size=32,
               max_num_batched_tokens=8192, max_num_seqs=max(CONCURRENCY), disable_log_stats=False,
               limit_mm_per_prompt={"image": 1}, hf_overrides=overrides, enable_prefix_caching=True)


def serve(llm: Any, concurrency: int, generator: np.random.Generator) -> dict[str, float]:
    """So many requests at once, until all are done."""
    from PIL import Image
    from vllm import SamplingParams

    requests = []
    for _ in range(concurrency):
        pixels = generator.integers(0, 255, (336, 336, 3), dtype=np.uint8)
        words = generator.integers(5, VOCABULARY, TEXT_TOKENS).tolist()
        requests.append({"prompt_token_ids": [*words[:4], IMAGE_TOKEN, *words[4:]],
                         "multi_modal_data": {"image": Image.fromarray(pixels)}})
    begin = time.perf_counter()
    outputs = llm.generate(requests, SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True),
                           use_tqdm=False)
    wall = time.perf_counter() - begin
    first = [output.metrics.first_token_latency for output in outputs]
    return {"ttft_s": statistics.mean(first), "last_ttft_s": max(first), "wall_s": wall,
            "tokens_per_s": concurrency * NEW_TOKENS / wall, "prompt_tokens": len(outputs[0].prompt_token_ids)}


def measure(folder: Path, rounds: int, keep: float) -> list[dict[str, Any]]:
    from vtkernels import prototypes
    from vtkernels.integrations.vllm import prune

    (folder / "codebook").mkdir()  # vLLM takes every safetensors file beside the weights for weights
    codebook = str(folder / "codebook/prototypes.safetensors")
    prototypes.save(codebook, torch.randn(PROTOTYPES, TEXT["hidden_size"]), source="random")
    methods: dict[str, dict[str, Any]] = {
        "redundancy_codebook": {"variant": "fix_num", "prototypes": codebook}, "divprune": {}}
    engines = {"unpruned": start(folder, {})}
    timed: dict[str, Timed] = {}
    for method, config in methods.items():
        engines[method] = start(folder, prune(method, keep=keep, **config))
        engines[method].apply_model(partial(watch, timed, method))
    generator = np.random.default_rng(0)
    for llm in engines.values():
        serve(llm, 1, generator)
    rows = []
    for concurrency in CONCURRENCY:
        order = list(engines)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for clock in timed.values():
            clock.seconds = 0.0
        for _ in range(rounds):
            for name in order:
                found[name].append(serve(engines[name], concurrency, generator))
            order = order[1:] + order[:1]
        for method in methods:
            rows.append(compare(found["unpruned"], found[method], timed[method].seconds,
                                {"concurrency": concurrency, "rounds": rounds, "keep": keep, "method": method}))
            print(line(rows[-1]), flush=True)
    return rows


def watch(timed: dict[str, Timed], name: str, model: Any) -> None:
    timed[name] = model.pruner = Timed(model.pruner)


def compare(plain: list[dict[str, float]], pruned: list[dict[str, float]], seconds: float,
            row: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds; ratios are medians of each round's ratio. `seconds`: spent in the method."""
    for name, samples in (("unpruned", plain), ("pruned", pruned)):
        row[name] = {key: round(statistics.median(s[key] for s in samples), 4) for key in samples[0]}
    pairs = list(zip(plain, pruned, strict=True))
    row["ttft_times_faster"] = round(statistics.median(u["ttft_s"] / p["ttft_s"] for u, p in pairs), 3)
    row["tokens_per_s_ratio"] = round(statistics.median(p["tokens_per_s"] / u["tokens_per_s"] for u, p in pairs), 3)
    row["pruning_ms_per_image"] = round(seconds / row["rounds"] / row["concurrency"] * 1e3, 4)
    row["pruning_share_of_prefill"] = round(seconds / sum(p["last_ttft_s"] for p in pruned), 5)
    return row


def line(row: dict[str, Any]) -> str:
    plain, pruned = row["unpruned"], row["pruned"]
    return (f"{row['concurrency']} at once, {row['method']}: first token {plain['ttft_s']:.3f} s -> "
            f"{pruned['ttft_s']:.3f} s ({row['ttft_times_faster']:.2f}x), tokens/s {plain['tokens_per_s']:.1f} -> "
            f"{pruned['tokens_per_s']:.1f} ({row['tokens_per_s_ratio']:.2f}x), pruning "
            f"{100 * row['pruning_share_of_prefill']:.2f} % of the prefill")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_serving", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    args = parser.parse_args(argv)
    for name, value in (("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
                        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("HF_HUB_OFFLINE", "1")):
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        print(f"vllm_serving: vLLM is missing ({error}); `make test-vllm` installs it in .venv-vllm", file=sys.stderr)
        return 2
    facts = describe("cpu", "python -m benchmarks.vllm_serving " + " ".join(argv or sys.argv[1:]))
    facts |= {"vllm": vllm.__version__, "note": args.note, "text_config": TEXT, "vision_config": VISION,
              "prototypes": PROTOTYPES, "new_tokens": NEW_TOKENS, "text_tokens": TEXT_TOKENS}
    print(header(facts))
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        rows = measure(Path(folder), args.rounds, args.keep)
    path = RESULTS / facts["device_slug"] / "vllm_serving.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
