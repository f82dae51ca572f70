"""Turns batches of speech into text with one checkpoint, by transformers' own search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils import logging as transformers_logging

from app.contract.errors import EvaluationFailedError, InvalidCheckpointError, OutOfMemoryError
from app.contract.evaluation import DecodingOptions, Dtype
from worker.evaluation.audio import SAMPLE_RATE
from worker.evaluation.checkpoint import FRAMES_PER_POSITION, CheckpointFacts, read_facts

Samples = NDArray[np.float32]


class Decoder:
    """A loaded checkpoint; the same input gives the same text on the same kind of machine."""

    def __init__(
        self, checkpoint: Path, device: str, dtype: Dtype, options: DecodingOptions
    ) -> None:
        """Load the folder offline, from safetensors only.

        Raises InvalidCheckpointError if files are missing or do not fit the config, and
        EvaluationFailedError for half precision without a GPU.
        """
        if dtype != "float32" and torch.device(device).type == "cpu":
            raise EvaluationFailedError(f"{dtype} needs a GPU; decode in float32 on a CPU.")
        self.facts = read_facts(checkpoint)
        self.device = device
        self.dtype = getattr(torch, dtype)
        with _quiet():
            self.model, self.processor = _load(checkpoint, self.dtype)
        self.model.to(device).eval()
        self.generation = _generation_config(self.model, self.processor, self.facts, options)
        self.task = options.task
        features = self.processor.feature_extractor
        self.window_samples = (
            FRAMES_PER_POSITION * self.facts.source_positions * features.hop_length
        )

    def decode(self, speech: Sequence[Samples], language: str | None = None) -> list[str]:
        """Return the text of each utterance; none may be longer than the checkpoint's window.

        `speech` is float32 at 16 kHz. `language` None leaves it to a multilingual checkpoint.
        """
        longest = max(len(samples) for samples in speech)
        if longest > self.window_samples:
            raise ValueError(f"{longest} samples do not fit the window of {self.window_samples}")
        inputs = self._features(speech, max_length=self.window_samples, padding="max_length")
        return self._generate(inputs, language, return_timestamps=False)

    def decode_long(
        self,
        samples: Samples,
        language: str | None = None,
        *,
        on_window: Callable[[], None] = lambda: None,
    ) -> str:
        """Return the text of one utterance of any length, decoded window by window.

        Each window starts where the last one's timestamps ended. `on_window` is called before
        each; what it raises ends the decoding.
        """
        inputs = self._features([samples], padding="longest", truncation=False)
        (text,) = self._generate(
            inputs,
            language,
            return_timestamps=True,
            condition_on_prev_tokens=False,
            monitor_progress=lambda _: on_window(),
        )
        return text

    def _features(self, speech: Sequence[Samples], **padding: Any) -> Any:
        return self.processor.feature_extractor(
            list(speech),
            sampling_rate=SAMPLE_RATE,
            return_attention_mask=True,
            return_tensors="pt",
            **padding,
        )

    def _spoken(self, language: str | None) -> dict[str, str | None]:
        if not self.facts.multilingual:
            return {}
        if language and f"<|{language}|>" not in self.generation.lang_to_id:
            raise EvaluationFailedError(
                f'The checkpoint does not know the language "{language}"; leave it out to have it '
                "detected."
            )
        return {"language": language, "task": self.task}

    @torch.inference_mode()
    def _generate(self, inputs: Any, language: str | None, **how: Any) -> list[str]:
        spoken = self._spoken(language)
        try:
            with _quiet():
                tokens = self.model.generate(
                    inputs.input_features.to(self.device, self.dtype),
                    attention_mask=inputs.attention_mask.to(self.device),
                    generation_config=self.generation,
                    **spoken,
                    **how,
                )
        except torch.OutOfMemoryError as error:
            size = len(inputs.input_features)
            raise OutOfMemoryError(
                f"Decoding {size} utterances at once with {self.generation.num_beams} beams ran "
                "out of GPU memory; choose a smaller batch_size."
            ) from error
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        # A byte-level vocabulary can say NUL, which databases cannot keep.
        return [text.replace("\0", "").strip() for text in texts]


def _load(
    checkpoint: Path, dtype: torch.dtype
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    offline = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, report = WhisperForConditionalGeneration.from_pretrained(
            str(checkpoint), dtype=dtype, use_safetensors=True, output_loading_info=True, **offline
        )
        processor = WhisperProcessor.from_pretrained(str(checkpoint), **offline)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InvalidCheckpointError(f"{checkpoint.name} cannot be loaded: {error}") from error
    # transformers fills what is missing with random numbers: that must never be evaluated.
    wrong = sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
    if wrong:
        raise InvalidCheckpointError(
            f"{checkpoint.name} lacks tensors that its config needs: {', '.join(wrong[:5])}."
        )
    bins = processor.feature_extractor.feature_size
    if bins != model.config.num_mel_bins:
        raise InvalidCheckpointError(
            f"{checkpoint.name}: the feature extractor makes {bins} mel bins and the model takes "
            f"{model.config.num_mel_bins}; preprocessor_config.json belongs to another model."
        )
    # Dithering adds noise, and so another transcript each time.
    processor.feature_extractor.dither = 0.0
    return model, processor


def _generation_config(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    facts: CheckpointFacts,
    options: DecodingOptions,
) -> GenerationConfig:
    """Return the checkpoint's own settings, with a deterministic search of the asked width."""
    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    config.update(
        num_beams=options.num_beams,
        num_return_sequences=1,
        do_sample=False,
        # These only have a meaning for sampling, and transformers warns of them otherwise.
        temperature=None,
        top_k=None,
        top_p=None,
        # Language and task are said by the caller; the old way of saying them is ignored.
        forced_decoder_ids=None,
        language=None,
        task=None,
        # Falling back to sampling would make transcripts random.
        compression_ratio_threshold=None,
        logprob_threshold=None,
        no_speech_threshold=None,
        return_dict_in_generate=False,
        output_scores=False,
        output_attentions=False,
        output_hidden_states=False,
    )
    if config.max_length is None and config.max_new_tokens is None:
        config.max_length = model.config.max_target_positions
    if config.pad_token_id is None:
        config.pad_token_id = model.config.pad_token_id or config.eos_token_id
    _complete_tokens(config, processor.tokenizer.get_vocab(), facts)
    return config


def _complete_tokens(
    config: GenerationConfig, vocabulary: dict[str, int], facts: CheckpointFacts
) -> None:
    """Add the token ids that fine-tuned checkpoints with an old generation config lack."""
    has = vocabulary.get
    if facts.multilingual and not getattr(config, "lang_to_id", None):
        tokens = [f"<|{code}|>" for code in LANGUAGES]
        config.lang_to_id = {token: has(token) for token in tokens if token in vocabulary}
    if facts.multilingual and not getattr(config, "task_to_id", None):
        tasks = ("transcribe", "translate")
        config.task_to_id = {task: has(f"<|{task}|>") for task in tasks}
    if facts.knows_timestamps and getattr(config, "no_timestamps_token_id", None) is None:
        config.no_timestamps_token_id = has("<|notimestamps|>")
    config.is_multilingual = facts.multilingual


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' advice and progress bars off the worker's stderr."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
