"""Prompts with as many placeholders as tokens stay."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ._config import Grid, Pruner


class PrunedPrompts:
    """Mixin of a multimodal processor of vLLM: what it would insert for an item, cut to the tokens that stay."""

    pruners: Mapping[str, Pruner]

    @abstractmethod
    def grid(self, modality: str, items: Any, index: int, tokens: int) -> Grid | None:
        """(frames, rows, columns) of an item in tokens, None where they fill no grid. `items`: processed data."""

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        return [replace(update, replacement=partial(self._kept, update, out_mm_kwargs)) for update in updates]

    def _kept(self, update: Any, items: Any, index: int) -> list[int]:
        placeholders = update.replacement(index)
        pruner = self.pruners.get(update.modality)
        if pruner is None:
            return placeholders
        tokens = len(placeholders)
        return placeholders[:pruner.count(tokens, self.grid(update.modality, items, index, tokens))]
