"""Models with a CTC head: a token for each frame of sound, decoded greedily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from app.contract.languages import language_code
from app.sources.architectures.architecture import TOKENIZER_CONFIG, Description, Difference
from app.sources.architectures.speech import SpeechModel

if TYPE_CHECKING:
    from app.sources.checkpoint import ResolvedCheckpoint


class Ctc(SpeechModel):
    """A model for CTC; the subclasses name its classes in transformers."""

    task = "ctc"
    processor_class = "Wav2Vec2Processor"
    tokenizer_class = "Wav2Vec2CTCTokenizer"
    tokenizers: ClassVar[tuple[str, ...]] = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")
    extractor_class = "Wav2Vec2FeatureExtractor"
    vocabulary: ClassVar[tuple[str, ...]] = ("vocab.json",)

    def read(self, documents: Mapping[str, Mapping[str, Any]]) -> Description:
        """Return what any model's says, with the language of MMS that its vocabulary is of."""
        found = super().read(documents)
        language = _language(found.documents)
        return replace(found, languages=frozenset({language}) if language else None)

    def differences(
        self, checkpoint: ResolvedCheckpoint, reference: ResolvedCheckpoint
    ) -> list[Difference]:
        """Return what any model's says, and the language of MMS."""
        found = super().differences(checkpoint, reference)
        theirs, ours = _target(checkpoint.documents), _target(reference.documents)
        if theirs != ours and theirs is not None and ours is not None:
            found.append(Difference(TOKENIZER_CONFIG, "target_lang", theirs, ours))
        return found


class Wav2Vec2(Ctc):
    """wav2vec 2.0, XLS-R, and MMS in the language that its vocabulary is of."""

    name, model_class = "wav2vec2", "Wav2Vec2ForCTC"


class Wav2Vec2Bert(Ctc):
    """wav2vec-BERT 2.0."""

    name, model_class = "wav2vec2-bert", "Wav2Vec2BertForCTC"
    processor_class = "Wav2Vec2BertProcessor"
    extractor_class = "SeamlessM4TFeatureExtractor"


class Wav2Vec2Conformer(Ctc):
    """wav2vec 2.0 with conformer blocks."""

    name, model_class = "wav2vec2-conformer", "Wav2Vec2ConformerForCTC"


class Hubert(Ctc):
    """HuBERT."""

    name, model_class = "hubert", "HubertForCTC"


class WavLM(Ctc):
    """WavLM."""

    name, model_class = "wavlm", "WavLMForCTC"


class UniSpeech(Ctc):
    """UniSpeech."""

    name, model_class = "unispeech", "UniSpeechForCTC"


class UniSpeechSat(Ctc):
    """UniSpeech-SAT."""

    name, model_class = "unispeech-sat", "UniSpeechSatForCTC"


class Data2VecAudio(Ctc):
    """data2vec for audio."""

    name, model_class = "data2vec-audio", "Data2VecAudioForCTC"


class Sew(Ctc):
    """SEW."""

    name, model_class = "sew", "SEWForCTC"


class Parakeet(Ctc):
    """NVIDIA's Parakeet-CTC, converted to transformers' form."""

    name, model_class = "parakeet_ctc", "ParakeetForCTC"
    processor_class = "ParakeetProcessor"
    tokenizer_class = "ParakeetTokenizer"
    tokenizers = ("ParakeetTokenizer", "ParakeetTokenizerFast")
    extractor_class = "ParakeetFeatureExtractor"
    vocabulary = ("tokenizer.json",)


CTC: tuple[Ctc, ...] = (
    Wav2Vec2(),
    Wav2Vec2Bert(),
    Wav2Vec2Conformer(),
    Hubert(),
    WavLM(),
    UniSpeech(),
    UniSpeechSat(),
    Data2VecAudio(),
    Sew(),
    Parakeet(),
)


def _target(documents: Mapping[str, Mapping[str, Any]]) -> object:
    """Return which of the languages of MMS a tokenizer is of (`por`, `urd-script_arabic`)."""
    return documents.get(TOKENIZER_CONFIG, {}).get("target_lang")


def _language(documents: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the code of the language of MMS that a tokenizer is of, if it has one."""
    target = _target(documents)
    try:
        return str(language_code(target)) if isinstance(target, str) else None
    except ValueError:
        return None
