"""Training of one seed: answers to several questions about each picture, in one sequence."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels.prototypes.io import write_atomically

from .data import ANSWER, ID, QUESTION, TOKENS, Scenes, ask, pages, scenes
from .model import Model

BATCH, PAGES, STEPS, RATE, SAVE_EVERY = 16, 250, 2500, 3e-3, 50
PACKED = ("reading", "counting", *["presence"] * 2, *["position"] * 4, *["framed"] * 4)
LENGTHS = tuple(QUESTION + (ANSWER - 1) * (task == "reading") for task in PACKED)
HEAD_TOKENS = 1 + TOKENS  # <bos> and the image


def packed_layout() -> tuple[Tensor, Tensor]:
    """Positions `[S]` and mask `[S, S]` of a sequence of image and questions that do not see each other."""
    part = torch.cat([torch.full((length,), i) for i, length in enumerate((HEAD_TOKENS, *LENGTHS))])
    positions = torch.cat([torch.arange(HEAD_TOKENS), *(HEAD_TOKENS + torch.arange(n) for n in LENGTHS)])
    sees = (part[:, None] == part) | (part == 0)
    return positions, sees & torch.ones_like(sees).tril()


def pack(of: Scenes, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Words `[B, sum(LENGTHS)]` and what is asked of each, -100 for nothing: at the question mark the answer, and its
    first word also before, where the question is complete; that teaches to look things up much sooner."""
    words, targets = [], []
    for task in PACKED:
        question, answer = ask(of, task, rng)
        if task == "reading":
            wanted = answer.clone()
            ended = (answer == ID["<end>"]).cumsum(1)
            wanted[ended > 1] = -100
            words += [question, answer[:, :-1]]
        else:
            wanted = answer[:, :1]
            words.append(question)
        targets += [torch.full((len(wanted), QUESTION - 2), -100), wanted[:, :1], wanted]
    return torch.cat(words, 1), torch.cat(targets, 1)


def tower_losses(model: Model, of: Scenes, features: Tensor) -> dict[str, Tensor]:
    """What the tower learns from the pictures alone; background counts less, as there is more of it."""
    losses = {}
    for i, (name, head) in enumerate((("digits", model.digit_head), ("colours", model.colour_head))):
        logits = head(features[:, 1:])
        weight = torch.ones(logits.shape[2])
        weight[0] = 0.3
        losses[name] = F.cross_entropy(logits.flatten(0, 1), of.labels[..., i].flatten() + 1, weight)
    if of.digits.size:
        present = F.one_hot(torch.from_numpy(of.digits) + 1, 11).amax(1)[:, 1:].float()
        losses["image"] = F.binary_cross_entropy_with_logits(model.image_head(features[:, 0]), present)
    return losses


def answer_loss(model: Model, of: Scenes, visual: Tensor, rng: np.random.Generator) -> Tensor:
    words, targets = pack(of, rng)
    start = model.words.weight[ID["<bos>"]].expand(len(words), 1, -1)
    x = torch.cat([start, visual, model.words(words)], 1)
    positions, mask = packed_layout()
    logits = model.decode(x, positions.expand(len(x), -1), mask)
    return F.cross_entropy(logits[:, HEAD_TOKENS:].flatten(0, 1), targets.flatten())


def losses_of(model: Model, seed: int, step: int) -> dict[str, Tensor]:
    """Pages of digits for the tower at first, then scenes and questions for all of the model."""
    of = (pages if step < PAGES else scenes)("train", BATCH, (seed, step))
    features = model.tower(of.pixels)
    losses = tower_losses(model, of, features)
    if step >= PAGES:
        rng = np.random.default_rng((seed, step, 2))
        losses["answers"] = answer_loss(model, of, model.projector(features[:, 1:]), rng)
    return losses


def train(seed: int, folder: Path, steps: int = STEPS, progress: Callable[[str], None] = print) -> Model:
    """The model of a seed: from `folder` where it is done, else trained on from the last state saved there."""
    state_file = folder / f"seed{seed}.pt"
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    done = 0
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        if state["steps"] != steps:
            raise ValueError(f"retention: `{state_file}` is a run of {state['steps']} steps, allowed: {steps}; take "
                             "another --work folder or the same --steps")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["done"]
    model.train()
    for step in range(done, steps):
        losses = losses_of(model, seed, step)
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save(state_file, {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                              "schedule": schedule.state_dict(), "steps": steps, "done": step + 1})
            progress(f"seed {seed}: step {step + 1} of {steps}, " +
                     ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
    return model.eval()


def save(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = io.BytesIO()
    torch.save(state, contents)
    write_atomically(path, contents.getvalue())
