"""Reads a Whisper's decoding settings from its JSON files, without loading the model."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.contract.errors import InvalidCheckpointError, Problem
from app.contract.evaluation import DecodingOptions, Dtype
from app.sources.architectures.architecture import SAMPLE_RATE
from app.sources.architectures.whisper import generation
from app.sources.architectures.whisper.generation import GenerationSettings
from app.sources.architectures.whisper.shapes import config_problems
from worker.evaluation.json_files import read_json, read_optional
from worker.evaluation.whisper.rules import unsupported

OWN_BACKEND, TRANSFORMERS = "afluente", "transformers"
# The encoder's convolutions halve the frames once.
FRAMES_PER_POSITION = 2
END, START, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
_TASKS = ("transcribe", "translate")
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_LONGEST_FOURIER = 4096


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of log-mel features: bins, samples per frame, samples per Fourier transform."""

    feature_size: int
    hop_length: int
    n_fft: int


@dataclass(frozen=True)
class WhisperFacts:
    """A checkpoint's window, special tokens and decoding settings.

    `languages` and `tasks` are token ids by language code and task, empty unless `multilingual`;
    `ends` are the end tokens, the tokenizer's first.
    """

    config: Mapping[str, Any]
    generation: GenerationSettings
    features: FeatureSettings
    start: int
    ends: tuple[int, ...]
    no_timestamps: int | None
    multilingual: bool
    languages: Mapping[str, int]
    tasks: Mapping[str, int]

    @property
    def source_positions(self) -> int:
        """The window in the encoder's positions."""
        return int(self.config["max_source_positions"])

    @property
    def window_samples(self) -> int:
        """The window in samples."""
        return FRAMES_PER_POSITION * self.source_positions * self.features.hop_length

    @property
    def window_seconds(self) -> float:
        """The window in seconds."""
        return self.window_samples / SAMPLE_RATE

    @property
    def knows_timestamps(self) -> bool:
        """Whether there is a timestamp token for every position of the window and its end."""
        if self.no_timestamps is None:
            return False
        return int(self.config["vocab_size"]) - self.no_timestamps - 1 > self.source_positions

    @property
    def prompt_length(self) -> int:
        """The number of prompt tokens for an utterance of one window."""
        return 1 + 2 * self.multilingual + (self.no_timestamps is not None)

    @property
    def long_form_obstacle(self) -> str | None:
        """None if it knows timestamps, by which windows are joined."""
        if self.knows_timestamps:
            return None
        window = f"a window of {self.window_seconds:g} s"
        return f"the checkpoint has {window}, and no timestamps for longer audio"

    @property
    def sound_key(self) -> Hashable:
        """The settings of the features, and the window."""
        return self.features, self.window_samples

    def honoured(self, options: DecodingOptions) -> DecodingOptions:
        """Return the options: all are possible."""
        return options

    def settings(
        self, options: DecodingOptions, language: str | None, *, long: bool
    ) -> dict[str, Any]:
        """Return the constraints of the search, and the languages that are told apart."""
        own = self.constraints(options.num_beams, timestamps=long)
        if self.multilingual and language is None:
            own["detected_languages"] = sorted(self.languages)
        return own

    def backend(self, options: DecodingOptions, dtype: Dtype, device: str) -> str:
        """Return the backend for utterances of one window.

        Both backends find the same hypotheses.
        """
        if dtype != "float32" or torch.device(device).type != "cpu":
            return TRANSFORMERS
        own = self.constraints(options.num_beams)
        activation = self.config.get("activation_function", "gelu")
        width = int(self.config["vocab_size"])
        missing = unsupported(own, activation, width, options.num_beams)
        return TRANSFORMERS if missing else OWN_BACKEND

    def constraints(self, num_beams: int, *, timestamps: bool = False) -> dict[str, Any]:
        """Return the checkpoint's settings that can change a hypothesis."""
        return generation.constraints(
            self.generation,
            self.config,
            num_beams=num_beams,
            prompt=self.prompt_length,
            timestamps=timestamps,
        )


def read_facts(checkpoint: Path) -> WhisperFacts:
    """Return the facts of a model folder.

    Raises InvalidCheckpointError with file and field for unreadable JSON and invalid values, and
    for a folder without a tokenizer.
    """
    config = read_json(checkpoint, "config.json")
    _refuse(checkpoint, config_problems(config))
    document = read_optional(checkpoint, generation.FILE)
    file = "config.json" if document is None else generation.FILE
    _refuse(
        checkpoint,
        generation.generation_problems(config if document is None else document, config, file),
    )
    settings = generation.settings_of(document, config)
    tokens = _special_tokens(checkpoint)
    languages = settings.lang_to_id or {
        token: number for token, number in tokens.items() if _LANGUAGE.fullmatch(token)
    }
    multilingual = generation.is_multilingual(settings, config)
    tasks = {task: number for task in _TASKS if (number := tokens.get(f"<|{task}|>")) is not None}
    no_timestamps = settings.no_timestamps_token_id
    facts = WhisperFacts(
        config=config,
        generation=settings,
        features=_features(checkpoint, int(config["num_mel_bins"])),
        start=_first(settings.decoder_start_token_id, tokens.get(START)),
        ends=_ends(settings.ends, tokens.get(END)),
        no_timestamps=tokens.get(NO_TIMESTAMPS) if no_timestamps is None else no_timestamps,
        multilingual=multilingual,
        languages={token.strip("<|>"): number for token, number in languages.items()}
        if multilingual
        else {},
        tasks=tasks | dict(settings.task_to_id or {}) if multilingual else {},
    )
    _refuse(checkpoint, list(_disagreements(facts, tokens)))
    return facts


def _refuse(checkpoint: Path, problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidCheckpointError(
            f"{checkpoint.name}: {problems[0]}{more}.",
            problems=[Problem(f"{checkpoint.name}: {problem}.") for problem in problems],
        )


def _first(stated: int | None, of_tokenizer: int | None) -> int:
    """Return the token that is known, or -1."""
    found = of_tokenizer if stated is None else stated
    return -1 if found is None else found


def _ends(stated: tuple[int, ...], of_tokenizer: int | None) -> tuple[int, ...]:
    """Return the end tokens, the tokenizer's first if it is one of them."""
    if not stated:
        return (_first(None, of_tokenizer),)
    return tuple(sorted(stated, key=lambda token: token != of_tokenizer))


def _special_tokens(checkpoint: Path) -> dict[str, int]:
    """Return the ids of the tokenizer's tokens of the form `<|...|>`."""
    tokenizer = read_optional(checkpoint, "tokenizer.json")
    if tokenizer is not None:
        model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        found = dict(vocabulary) if isinstance(vocabulary, dict) else {}
        for entry in added if isinstance(added, list) else ():
            if isinstance(entry, dict):
                found[str(entry.get("content"))] = entry.get("id")
    else:
        vocabulary = read_optional(checkpoint, "vocab.json")
        if vocabulary is None or not (checkpoint / "merges.txt").exists():
            raise InvalidCheckpointError(
                f"{checkpoint.name} has no tokenizer: tokenizer.json, or vocab.json and "
                "merges.txt, must be in the same folder as the weights. A Trainer's checkpoint-N "
                "often has none; copy the tokenizer's files from the model that was fine-tuned."
            )
        found = vocabulary | (read_optional(checkpoint, "added_tokens.json") or {})
        settings = read_optional(checkpoint, "tokenizer_config.json") or {}
        decoder = settings.get("added_tokens_decoder")
        for number, entry in decoder.items() if isinstance(decoder, dict) else ():
            if isinstance(entry, dict) and number.isdecimal() and len(number) < 10:
                found[str(entry.get("content"))] = int(number)
    return {
        token: number
        for token, number in found.items()
        if token.startswith("<|") and token.endswith("|>") and type(number) is int
    }


def _disagreements(facts: WhisperFacts, tokens: Mapping[str, int]) -> Iterator[str]:
    """Yield a message for each special token that differs from the tokenizer's."""
    size = int(facts.config["vocab_size"])
    used = {START: facts.start, END: facts.ends[0]}
    if facts.no_timestamps is not None:
        used[NO_TIMESTAMPS] = facts.no_timestamps
    used |= {f"<|{code}|>": number for code, number in facts.languages.items()}
    used |= {f"<|{task}|>": number for task, number in facts.tasks.items()}
    for token, number in used.items():
        if tokens.get(token) != number or number >= size:
            stated = f"token {number}" if number >= 0 else "no token"
            yield (
                f"for {token} the tokenizer has {tokens.get(token, 'no token')}, but the "
                f"generation config {stated} of {size:,}; the files are incomplete or of another "
                "model"
            )
    if facts.multilingual and not facts.languages:
        yield "it is multilingual, but its tokenizer has no language (<|en|>, ...)"
    for task in _TASKS if facts.multilingual else ():
        if task not in facts.tasks:
            yield f"it is multilingual, but its tokenizer has no <|{task}|>"


def _features(checkpoint: Path, bins: int) -> FeatureSettings:
    """Return the feature extractor's settings; refuse those that do not fit the model."""
    # transformers 5 writes processor_config.json, transformers 4 preprocessor_config.json.
    name, combined = "processor_config.json", read_optional(checkpoint, "processor_config.json")
    document = (combined or {}).get("feature_extractor")
    if not isinstance(document, dict):
        name = "preprocessor_config.json"
        document = read_optional(checkpoint, name) or {}
    found = {
        field: document.get(field, default)
        for field, default in (
            ("feature_size", 80),
            ("sampling_rate", SAMPLE_RATE),
            ("hop_length", 160),
            ("n_fft", 400),
        )
    }
    if found["feature_size"] != bins:
        raise InvalidCheckpointError(
            f"{checkpoint.name}: the feature extractor makes {ascii(found['feature_size'])[:60]} "
            f"mel bins, but the model needs {bins}; {name} is of another model."
        )
    longest = found["n_fft"] if type(found["n_fft"]) is int else _LONGEST_FOURIER
    for field, least, most in (
        ("feature_size", 1, bins),
        ("sampling_rate", SAMPLE_RATE, SAMPLE_RATE),
        ("n_fft", 16, _LONGEST_FOURIER),
        ("hop_length", 1, longest),
    ):
        if type(found[field]) is not int or not least <= found[field] <= most:
            needed = f"{least}" if least == most else f"an integer from {least} to {most}"
            raise InvalidCheckpointError(
                f"{checkpoint.name}/{name} has {field} {ascii(found[field])[:60]}; the model "
                f"needs {needed}."
            )
    return FeatureSettings(found["feature_size"], found["hop_length"], found["n_fft"])
