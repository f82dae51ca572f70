"""Whisper for transcription: the first architecture, and the one that is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.sources.architectures.architecture import (
    CONFIG,
    PREPROCESSOR,
    TOKENIZER_CONFIG,
    Architecture,
    Description,
    Difference,
    Lack,
    Shapes,
    Tensors,
)
from app.sources.architectures.whisper import configs, ctranslate2, generation, shapes

if TYPE_CHECKING:
    from app.sources.checkpoint import ResolvedCheckpoint

_ENGLISH_VOCABULARY = 51_864
# What features are made by.
_FEATURES = ("feature_size", "hop_length", "n_fft", "chunk_length", "padding_value")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
)


class Whisper(Architecture):
    """Whisper's checkpoints. What each field of their JSON files means is known; others go."""

    name = "whisper"
    model_class = "WhisperForConditionalGeneration"
    task = "seq2seq"
    searches_beams = falls_back = translates = can_be_calibrated = converts = True
    max_bytes = configs.MAX_BYTES
    copied = ("tokenizer.json", "vocab.json", "merges.txt")
    copied_dtypes = frozenset()
    token_rows = (shapes.EMBEDDING, shapes.OUTPUT)
    tokenizer_files = TOKENIZER_FILES

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Return whether it is of Whisper, but for the encoder alone or another head."""
        classes = config.get("architectures")
        another = isinstance(classes, list) and classes and self.model_class not in classes
        return config.get("model_type") == "whisper" and not another

    def read(self, documents: Mapping[str, Mapping[str, Any]]) -> Description:
        """Return the known fields, and every value that is not sound."""
        stated, said = documents.get(generation.FILE), CONFIG
        config, problems = configs.read_config(documents[CONFIG], decodes=stated is None)
        if stated is not None:
            said = generation.FILE
        problems += generation.generation_problems(documents[said], config, said)
        others = {name: document for name, document in documents.items() if name != CONFIG}
        kept, wrong = configs.read_documents(others, config)
        languages = None
        if not problems and type(config.get("vocab_size")) is int:
            languages = generation.languages_of(stated, config)
        return Description(config, kept, languages, (*problems, *wrong))

    def config_problems(self, config: Mapping[str, Any]) -> list[str]:
        """Return what keeps it from being a model for transcription of a sensible size."""
        return shapes.config_problems(config)

    def expected_shapes(self, config: Mapping[str, Any]) -> Shapes:
        """Return every tensor that the sizes in config.json ask for."""
        return shapes.expected_shapes(config)

    def tied(self, config: Mapping[str, Any], inputs: Sequence[Tensors]) -> Mapping[str, str]:
        """Return that the output projection is the token embedding, unless config.json unties."""
        return {shapes.OUTPUT: shapes.EMBEDDING} if shapes.is_output_tied(config) else {}

    def left_out(self, inputs: Sequence[Tensors]) -> frozenset[str]:
        """Return none: every tensor is known."""
        return frozenset()

    def differences(
        self, checkpoint: ResolvedCheckpoint, reference: ResolvedCheckpoint
    ) -> list[Difference]:
        """Return differing sizes, activations, ties and settings of the features."""
        theirs, ours = checkpoint.config, reference.config
        compared = [Difference(CONFIG, key, theirs[key], ours.get(key)) for key in shapes.SIZE_KEYS]
        compared += [
            Difference(CONFIG, key, theirs.get(key, default), ours.get(key, default))
            for key, default in (("activation_function", "gelu"), ("tie_word_embeddings", True))
        ]
        if PREPROCESSOR in checkpoint.documents and PREPROCESSOR in reference.documents:
            theirs, ours = checkpoint.documents[PREPROCESSOR], reference.documents[PREPROCESSOR]
            compared += [
                Difference(PREPROCESSOR, key, theirs.get(key), ours.get(key)) for key in _FEATURES
            ]
        return [found for found in compared if found.theirs != found.ours]

    def lacks(self, checkpoint: ResolvedCheckpoint) -> list[Lack]:
        """Return which of tokenizer, feature extractor and generation_config.json are lacking."""
        files = {file.name for file in checkpoint.files}
        found = []
        if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
            said = "no tokenizer (tokenizer.json, or vocab.json and merges.txt)"
            found.append(Lack(TOKENIZER_FILES, said))
        if PREPROCESSOR not in checkpoint.documents:
            names = configs.FEATURE_FILES
            found.append(Lack(names, f"no feature extractor ({' or '.join(names)})"))
        if generation.FILE not in checkpoint.documents:
            found.append(Lack((generation.FILE,), None))
        return found

    def unconvertible(self, checkpoint: ResolvedCheckpoint) -> str | None:
        """Return the first setting that CTranslate2 does not obey."""
        return ctranslate2.obstacle(
            checkpoint.config, checkpoint.documents.get(generation.FILE), checkpoint.uri
        )

    def stated_ids(self, checkpoint: ResolvedCheckpoint) -> Mapping[str, int]:
        """Return the tokens of languages and tasks, which the decoder begins with."""
        settings = generation.settings_of(
            checkpoint.documents.get(generation.FILE), checkpoint.config
        )
        tasks = {f"<|{task}|>": number for task, number in (settings.task_to_id or {}).items()}
        return dict(settings.lang_to_id or {}) | tasks

    def is_english_only(self, checkpoint: ResolvedCheckpoint) -> bool:
        """Return whether its tokens are those of the English-only models (`.en`)."""
        size = checkpoint.config.get("vocab_size")
        return checkpoint.languages is None and size == _ENGLISH_VOCABULARY

    def companions(
        self, config: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Mapping[str, Any]]:
        """Return the files in the form that transformers 4 and 5 both read."""
        made: dict[str, Mapping[str, Any]] = {
            CONFIG: configs.model_config_of(config),
            generation.FILE: generation.generation_config_of(
                documents.get(generation.FILE), config
            ),
        }
        made |= {name: documents[name] for name in TOKENIZER_FILES if name in documents}
        if TOKENIZER_CONFIG in documents:
            made[TOKENIZER_CONFIG] = configs.tokenizer_config_of(documents[TOKENIZER_CONFIG])
        if PREPROCESSOR in documents:
            made |= configs.feature_documents(documents[PREPROCESSOR])
        return made

    def summary(self, config: Mapping[str, Any]) -> dict[str, str | None]:
        """Return what any model's says, with the class that has tokenizer and features."""
        said = super().summary(config)
        return said | {"model_class": self.model_class, "processor_class": "WhisperProcessor"}
