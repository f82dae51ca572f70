"""Models of transformers: loaded from safetensors, offline, and given other weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from app.contract.errors import EvaluationFailedError, InvalidCheckpointError
from app.sources.architectures.architecture import spellings
from worker.loadable import OFFLINE, blaming

# Used in training only: a checkpoint may do without them.
_OF_TRAINING = ("masked_spec_embed", "num_batches_tracked")


class LoadedModel:
    """A model of transformers with a checkpoint's weights."""

    def __init__(
        self,
        kind: Any,
        checkpoint: Path,
        config: Any,
        device: str,
        dtype: torch.dtype,
        **settings: Any,
    ) -> None:
        """Load the folder's weights into a `kind` of this config.

        InvalidCheckpointError for weights that cannot be read, and for tensors that the config
        needs and the folder lacks.
        """
        self.name = checkpoint.name
        with blaming(f"{self.name} cannot be loaded"):
            self.model, report = kind.from_pretrained(
                str(checkpoint),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **settings,
                **OFFLINE,
            )
        # transformers initialises missing tensors at random; never evaluate those.
        missing = [str(key) for key in report["missing_keys"] if not key.endswith(_OF_TRAINING)]
        wrong = sorted((*missing, *map(str, report["mismatched_keys"])))
        if wrong:
            raise InvalidCheckpointError(
                f"{self.name} lacks tensors that its config needs: {', '.join(wrong[:5])}."
            )
        self._unused = frozenset(report["unexpected_keys"])
        self.model.to(device).eval()

    @torch.no_grad()
    def assign(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the weights, in place, by tensors of these names and shapes.

        EvaluationFailedError for a name or a shape that the model does not have, unless the loaded
        checkpoint has the name too.
        """
        own = self.model.state_dict()
        for name, values in weights.items():
            names = (name, f"model.{name}", *spellings(name))
            target = next((own[one] for one in names if one in own), None)
            if target is None and name in self._unused:
                continue
            if target is None or target.shape != values.shape:
                raise EvaluationFailedError(
                    f"{self.name}: the merged tensor {name} {tuple(values.shape)} has no place in "
                    "the loaded model."
                )
            target.copy_(values)
