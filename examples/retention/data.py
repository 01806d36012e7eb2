"""Pictures of real digits on photographs, and questions about them. Training and test share no digit and no region."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

SIDE, PATCH = 64, 8
GRID = SIDE // PATCH
TOKENS = GRID * GRID
BOX, FRAME, STEP = 12, 2, 4  # a digit of 8 x 8 pixels, at multiples of 4, in a coloured frame of 2

PLACES = ("upper-left", "upper-right", "lower-left", "lower-right")
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "cyan": (0, 1, 1),
           "magenta": (1, 0, 1)}
DIGITS = tuple("0123456789")
TASKS = ("presence", "counting", "position", "reading", "framed")
# What guessing gives to one who knows what is shown, but not what is asked for.
CHANCE = {"presence": 0.5, "counting": 0.25, "position": 25 / 48, "reading": 0.0, "framed": 25 / 48}
WORDS = ("<bos>", "<end>", "yes", "no", *DIGITS, *PLACES, *COLOURS, "any", "digits", "there", "count", "where", "read",
         "framed", "is", "?")
ID = {word: i for i, word in enumerate(WORDS)}
QUESTION = 4  # words of each question
ANSWER = 5    # of the longest answer: four digits and the end

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry", "brick", "grass", "gravel",
               "camera", "moon")
TRAIN_DIGITS = 1400   # of the 1797; the others are the test's
TRAIN_COLUMNS = 0.68  # of each photograph, from the left; the others are the test's


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures and what is on them.

    Args:
        pixels: `[B, 3, SIDE, SIDE]` float32, 0 to 1.
        labels: `[B, TOKENS, 2]` of each patch the digit and the colour of its frame, -1 for background.
        digits: `[B, 4]` the digit in each quadrant, -1 for none, in the order of `PLACES`; empty for pages.
        colours: `[B, 4]` of its frame, -1 for none.
    """

    pixels: Tensor
    labels: Tensor
    digits: np.ndarray
    colours: np.ndarray


@cache
def photographs(split: str) -> tuple[np.ndarray, ...]:
    """The columns of each photograph, at half its size, that belong to a split: `[H, W, 3]` float32."""
    from skimage import data

    out = []
    for name in PHOTOGRAPHS:
        picture = np.asarray(getattr(data, name)(), dtype=np.float32) / 255
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, 2)
        height, width = (side // 2 for side in picture.shape[:2])
        half = picture[:2 * height, :2 * width].reshape(height, 2, width, 2, 3).mean((1, 3))
        cut = int(TRAIN_COLUMNS * width)
        out.append(half[:, :cut] if split == "train" else half[:, cut:])
    return tuple(out)


@cache
def digit_images(split: str) -> tuple[np.ndarray, ...]:
    """Of each class the pictures of a split: `[n, 8, 8]` float32, 0 to 1."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = slice(None, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    pictures, classes = bunch.images[chosen].astype(np.float32) / 16, bunch.target[chosen]
    return tuple(pictures[classes == digit] for digit in range(10))


class Painter:
    """Pictures of a split, always the same for a seed."""

    def __init__(self, split: str, count: int, seed: tuple[int, ...]):
        self.rng = np.random.default_rng((*seed, ("train", "test").index(split)))
        self.textures, self.glyphs = photographs(split), digit_images(split)
        self.palette = np.array(list(COLOURS.values()), np.float32)
        self.pixels = np.empty((count, SIDE, SIDE, 3), np.float32)
        self.labels = np.full((count, GRID, GRID, 2), -1)
        for picture in self.pixels:
            texture = self.textures[self.rng.integers(len(self.textures))]
            y, x = (self.rng.integers(side - SIDE + 1) for side in texture.shape[:2])
            picture[:] = 0.6 * texture[y:y + SIDE, x:x + SIDE]

    def digit(self, b: int, top: int, left: int, digit: int, colour: int) -> None:
        """A digit of 8 x 8 at this place of picture b, in a frame (cut off at the picture's border)."""
        picture, size = self.pixels[b], BOX - 2 * FRAME
        inside = (slice(top, top + size), slice(left, left + size))
        ink = self.glyphs[digit][self.rng.integers(len(self.glyphs[digit])), :, :, None]
        under = picture[inside].copy()
        picture[max(0, top - FRAME):top + size + FRAME, max(0, left - FRAME):left + size + FRAME] = self.palette[colour]
        picture[inside] = 0.5 * under * (1 - ink) + ink
        rows, columns = (slice(edge // PATCH, (edge + size - 1) // PATCH + 1) for edge in (top, left))
        self.labels[b, rows, columns] = digit, colour

    def scenes(self, digits: np.ndarray, colours: np.ndarray) -> Scenes:
        return Scenes(torch.from_numpy(self.pixels).permute(0, 3, 1, 2).contiguous(),
                      torch.from_numpy(self.labels).flatten(1, 2), digits, colours)


def scenes(split: str, count: int, seed: tuple[int, ...]) -> Scenes:
    """`count` pictures. One to four different digits, in frames of different colours, each in a quadrant of its own."""
    painter = Painter(split, count, seed)
    rng, half = painter.rng, SIDE // 2
    digits, colours = np.full((count, 4), -1), np.full((count, 4), -1)
    for b in range(count):
        filled = np.sort(rng.permutation(4)[:rng.integers(1, 5)])
        digits[b, filled] = rng.permutation(10)[:len(filled)]
        colours[b, filled] = rng.permutation(len(COLOURS))[:len(filled)]
        for place in filled:
            top, left = rng.integers(1, (half - BOX) // STEP + 1, 2) * STEP + np.array([place // 2, place % 2]) * half
            painter.digit(b, top, left, digits[b, place], colours[b, place])
    return painter.scenes(digits, colours)


def pages(split: str, count: int, seed: tuple[int, ...]) -> Scenes:
    """`count` pictures full of digits, from which the tower learns first."""
    painter = Painter(split, count, (*seed, 1))
    rng, pitch = painter.rng, 2 * PATCH
    for b in range(count):
        for cell in np.flatnonzero(rng.random((SIDE // pitch) ** 2) < 0.8):
            top, left = map(int, np.array(divmod(cell, SIDE // pitch)) * pitch + rng.integers(0, 2, 2) * STEP)
            painter.digit(b, top, left, int(rng.integers(10)), int(rng.integers(len(COLOURS))))
    return painter.scenes(np.empty((count, 0)), np.empty((count, 0)))


def ask(of: Scenes, task: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One question to each picture, `[B, QUESTION]`, and its answer, `[B, ANSWER]` ended and filled by `<end>`."""
    questions, answers = [], []
    for digits, colours in zip(of.digits, of.colours, strict=True):
        shown = np.flatnonzero(digits >= 0)
        place = rng.choice(shown)
        if task == "presence":
            here = bool(rng.integers(2))
            digit = digits[place] if here else rng.choice(np.setdiff1d(np.arange(10), digits))
            words, answer = ("is", "there", DIGITS[digit]), ["yes" if here else "no"]
        elif task == "counting":
            words, answer = ("count", "any", "digits"), [DIGITS[len(shown)]]
        elif task == "position":
            words, answer = ("where", "is", DIGITS[digits[place]]), [PLACES[place]]
        elif task == "reading":
            words, answer = ("read", "any", "digits"), [DIGITS[d] for d in digits[shown]]
        else:
            words, answer = ("framed", "is", list(COLOURS)[colours[place]]), [DIGITS[digits[place]]]
        questions.append([ID[word] for word in (*words, "?")])
        answers.append([ID[word] for word in answer] + [ID["<end>"]] * (ANSWER - len(answer)))
    return torch.tensor(questions), torch.tensor(answers)
