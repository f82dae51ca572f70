"""What a checkpoint's JSON files say about decoding with it, read without loading the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.contract.errors import InvalidCheckpointError

# Whisper's own rule: vocabularies from this size on have the language tokens in use.
_MULTILINGUAL_VOCABULARY = 51_865
# The encoder's convolutions halve the frames once.
FRAMES_PER_POSITION = 2


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint's window, in source positions and in seconds, and what its tokens can say."""

    source_positions: int
    window_seconds: float
    multilingual: bool
    knows_timestamps: bool
    languages: frozenset[str]


def read_facts(checkpoint: Path) -> CheckpointFacts:
    """Return the facts of a model folder; InvalidCheckpointError if its JSON cannot be read.

    `languages` is empty where the generation config does not list them.
    """
    config = read_json(checkpoint, "config.json")
    generation = read_json(checkpoint, "generation_config.json", optional=True)
    features = _feature_settings(checkpoint)
    positions = int(config.get("max_source_positions", 1500))
    vocabulary = int(config.get("vocab_size", 51_865))
    languages = frozenset(token.strip("<|>") for token in generation.get("lang_to_id") or {})
    hop = features.get("hop_length", 160) / features.get("sampling_rate", 16_000)
    no_timestamps = generation.get("no_timestamps_token_id")
    if no_timestamps is None:
        no_timestamps = _token_id(checkpoint, "<|notimestamps|>")
    return CheckpointFacts(
        source_positions=positions,
        window_seconds=positions * FRAMES_PER_POSITION * hop,
        multilingual=generation.get(
            "is_multilingual", bool(languages) or vocabulary >= _MULTILINGUAL_VOCABULARY
        ),
        # A timestamp for every position of the window, and one for its end.
        knows_timestamps=no_timestamps is not None and vocabulary - no_timestamps - 1 > positions,
        languages=languages,
    )


def read_json(checkpoint: Path, name: str, *, optional: bool = False) -> dict[str, Any]:
    """Return a JSON object of the folder; {} if it is optional and not there."""
    try:
        document = json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise InvalidCheckpointError(f"{checkpoint.name} has no {name}.") from None
    except (OSError, ValueError) as error:
        raise InvalidCheckpointError(f"{checkpoint.name}/{name}: {error}.") from None
    if not isinstance(document, dict):
        raise InvalidCheckpointError(f"{checkpoint.name}/{name} is not a JSON object.")
    return document


def _feature_settings(checkpoint: Path) -> dict[str, Any]:
    # transformers 5 writes the one file, transformers 4 the other.
    combined = read_json(checkpoint, "processor_config.json", optional=True)
    inner = combined.get("feature_extractor")
    if isinstance(inner, dict):
        return inner
    return read_json(checkpoint, "preprocessor_config.json", optional=True)


def _token_id(checkpoint: Path, token: str) -> int | None:
    added = read_json(checkpoint, "added_tokens.json", optional=True)
    if isinstance(added.get(token), int):
        return int(added[token])
    tokenizer = read_json(checkpoint, "tokenizer.json", optional=True)
    for entry in tokenizer.get("added_tokens", []):
        if entry.get("content") == token:
            return int(entry["id"])
    return None
