from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import soundfile
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from app.contract.evaluation import DatasetResult, DecodingOptions, Transcript
from app.sources.manifests import Manifest
from worker.evaluation.cache import InMemoryTranscriptCache
from worker.evaluation.runner import EvaluationStoppedError, evaluate
from worker.evaluation.whisper import checkpoint as whisper

OPTIONS = DecodingOptions(num_beams=1, batch_size=2)
OPTIONS_PT = DecodingOptions(num_beams=1, batch_size=2, language="pt")
LENGTHS = (0.5, 1.2, 0.8, 1.9, 0.4)


class CountingCache(InMemoryTranscriptCache):
    """Counts the batches that are put."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def put_many(self, transcripts: Mapping[str, Transcript]) -> None:
        self.batches.append(len(transcripts))
        super().put_many(transcripts)


def run(checkpoint: Path, manifest: Manifest, cache=None, **how) -> DatasetResult:
    options = how.pop("options", OPTIONS)
    key = how.pop("key", "a" * 64)
    cache = InMemoryTranscriptCache() if cache is None else cache
    return evaluate(checkpoint, key, manifest, options, cache, device="cpu", **how)


def hypotheses(result: DatasetResult) -> list[str]:
    return [utterance.hypothesis for utterance in result.utterances]


def test_results_keep_the_manifests_order_and_fields(english: Path, make_manifest) -> None:
    manifest = make_manifest(*LENGTHS, speaker="ana", session=7, lang="pt-PT", offset=0)
    result = run(english, manifest)
    assert result.status == "succeeded"
    assert [utterance.index for utterance in result.utterances] == [0, 1, 2, 3, 4]
    assert [utterance.audio_seconds for utterance in result.utterances] == list(LENGTHS)
    assert {utterance.speaker for utterance in result.utterances} == {"ana"}
    assert {utterance.session for utterance in result.utterances} == {"7"}
    assert {utterance.offset_seconds for utterance in result.utterances} == {0.0}
    assert result.language == "pt"
    assert result.manifest_sha256 == manifest.manifest_sha256
    # English-only: the language counts for scoring and is never told to the model.
    assert (result.decoding.language, result.decoding.task) == (None, None)
    assert len(set(hypotheses(result))) > 1


def test_the_result_survives_json(multilingual: Path, make_manifest) -> None:
    result = run(multilingual, make_manifest(0.5, 0.9, language="pt"))
    assert DatasetResult.model_validate_json(result.model_dump_json()) == result
    assert (result.decoding.language, result.decoding.task) == ("pt", "transcribe")


def test_batches_hold_the_longest_first(english: Path, make_manifest) -> None:
    cache = CountingCache()
    progress: list[tuple[int, int]] = []
    run(english, make_manifest(*LENGTHS), cache, progress=lambda *at: progress.append(at))
    assert cache.batches == [2, 2, 1]
    assert progress == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_what_is_cached_is_decoded_without_loading_the_model(
    english: Path, make_manifest, tmp_path: Path
) -> None:
    manifest = make_manifest(*LENGTHS)
    cache = InMemoryTranscriptCache()
    first = run(english, manifest, cache)
    bare = tmp_path / "without-weights"
    bare.mkdir()
    for name in (
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
    ):
        (bare / name).write_bytes((english / name).read_bytes())
    second = run(bare, manifest, cache)
    assert hypotheses(second) == hypotheses(first)
    assert all(utterance.cached for utterance in second.utterances)
    assert not any(utterance.cached for utterance in first.utterances)


@pytest.mark.parametrize(
    "how",
    [
        {"key": "b" * 64},
        {"options": DecodingOptions(num_beams=2, batch_size=2)},
        {"options": DecodingOptions(num_beams=1, language="en")},
        {"options": DecodingOptions(num_beams=1, task="translate")},
    ],
)
def test_another_checkpoint_or_setting_is_another_transcript(
    multilingual: Path, make_manifest, how
) -> None:
    manifest = make_manifest(0.5, 0.9, language="pt")
    options = DecodingOptions(num_beams=1, batch_size=2)
    cache = InMemoryTranscriptCache()
    run(multilingual, manifest, cache, options=options)
    again = run(multilingual, manifest, cache, **{"options": options, **how})
    assert not any(utterance.cached for utterance in again.utterances)


def test_batch_text_and_name_do_not_affect_the_key(
    english: Path, make_manifest, tmp_path: Path
) -> None:
    cache = InMemoryTranscriptCache()
    run(english, make_manifest(0.5, 0.9), cache)
    (tmp_path / "0.flac").rename(tmp_path / "renamed.flac")
    renamed = {"audio_filepath": "renamed.flac", "text": "another text"}
    manifest = make_manifest(extra=(renamed,))
    options = DecodingOptions(num_beams=1, batch_size=9)
    assert run(english, manifest, cache, options=options).utterances[0].cached


def test_a_stopped_evaluation_resumes(english: Path, make_manifest) -> None:
    manifest = make_manifest(*LENGTHS)
    whole = run(english, manifest)
    cache = CountingCache()
    with pytest.raises(EvaluationStoppedError):
        run(english, manifest, cache, should_stop=lambda: len(cache.batches) == 1)
    assert cache.batches == [2]
    resumed = run(english, manifest, cache)
    assert cache.batches == [2, 2, 1]
    assert hypotheses(resumed) == hypotheses(whole)
    assert sum(utterance.cached for utterance in resumed.utterances) == 2


def test_the_same_audio_twice_is_decoded_once(english: Path, make_manifest) -> None:
    twice = {"audio_filepath": "0.flac", "text": "again"}
    cache = CountingCache()
    progress: list[tuple[int, int]] = []
    manifest = make_manifest(0.5, extra=(twice, twice))
    result = run(english, manifest, cache, progress=lambda *at: progress.append(at))
    assert sum(cache.batches) == 1
    assert len(result.utterances) == 3
    assert progress[-1] == (3, 3)


def test_bad_audio_is_named_and_the_rest_is_decoded(
    english: Path, make_manifest, tmp_path: Path
) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not audio at all\n" * 99)
    names = ("missing.wav", "empty.wav", "text.wav", "cut.flac", "cut.flac")
    extra = tuple({"audio_filepath": name, "text": "x"} for name in names)
    make_manifest(0.5, 1.9)
    content = (tmp_path / "1.flac").read_bytes()
    # Its header is whole: only reading it finds the damage.
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    progress: list[tuple[int, int]] = []
    manifest = make_manifest(0.5, 1.9, extra=extra)
    result = run(english, manifest, progress=lambda *at: progress.append(at))
    assert result.status == "partial"
    assert [utterance.index for utterance in result.utterances] == [0, 1]
    assert [(skipped.index, skipped.audio) for skipped in result.skipped] == list(
        enumerate(names, start=2)
    )
    assert all(skipped.reason for skipped in result.skipped)
    assert progress[-1] == (7, 7)


def test_nothing_to_score_is_a_failure(english: Path, make_manifest) -> None:
    manifest = make_manifest(extra=({"audio_filepath": "missing.wav", "text": "x"},))
    assert run(english, manifest).status == "failed"


def test_long_audio_is_decoded_in_windows_or_skipped_by_name(
    english: Path, multilingual: Path, make_manifest
) -> None:
    manifest = make_manifest(0.5, 5.3)
    assert len(run(multilingual, manifest).utterances) == 2
    (skipped,) = run(english, manifest).skipped
    assert skipped.reason == (
        "5.30 s of audio; the checkpoint has a window of 2 s, and no timestamps for longer audio; "
        "ask for voice_activity to divide it"
    )


def test_audio_as_long_as_the_window_fits_at_any_rate(
    english: Path, make_manifest, make_sound, tmp_path: Path
) -> None:
    for rate in (11_025, 22_050, 44_100, 48_000):
        soundfile.write(tmp_path / f"{rate}.wav", make_sound(2.0, rate=rate), rate)
    extra = tuple(
        {"audio_filepath": f"{rate}.wav", "text": "x"} for rate in (11_025, 22_050, 44_100, 48_000)
    )
    assert run(english, make_manifest(extra=extra)).status == "succeeded"


def test_languages_are_decoded_apart(multilingual: Path, make_manifest) -> None:
    make_manifest(0.5, 0.9, 0.7)
    lines = tuple(
        {"audio_filepath": f"{index}.flac", "text": "x", **({"lang": lang} if lang else {})}
        for index, lang in enumerate(("pt", "en", None))
    )
    mixed = run(multilingual, make_manifest(extra=lines))
    assert [utterance.language for utterance in mixed.utterances] == ["pt", "en", None]
    alone = run(multilingual, make_manifest(0.5, language="pt"))
    assert hypotheses(alone)[0] == hypotheses(mixed)[0]
    assert mixed.language is None
    assert (mixed.decoding.language, mixed.decoding.languages) == (None, ("detected", "en", "pt"))
    detected = [utterance.detected_language for utterance in mixed.utterances]
    assert detected[:2] == [None, None]
    assert detected[2] in {"en", "pt"}
    # Told one language for all of them, the set is not decoded alike.
    told = run(multilingual, make_manifest(extra=lines), options=OPTIONS_PT)
    assert told.decoding.language == "pt"
    assert told.decoding.settings != mixed.decoding.settings


def test_detected_languages_are_those_of_transformers_and_are_cached(
    multilingual: Path, make_manifest, make_sound
) -> None:
    lengths = (0.5, 1.2, 1.9, 4.3)  # the last is longer than the window
    cache = InMemoryTranscriptCache()
    found = run(multilingual, make_manifest(*lengths), cache)
    model = WhisperForConditionalGeneration.from_pretrained(multilingual)
    codes = {token: code for code, token in whisper.read_facts(multilingual).languages.items()}
    extractor = WhisperFeatureExtractor(feature_size=40, chunk_length=2)
    for utterance in found.utterances:
        samples = make_sound(lengths[utterance.index], pitch=120 + 40 * utterance.index)
        features = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
        assert utterance.detected_language == codes[int(model.detect_language(features))]
        assert utterance.language is None
    again = run(multilingual, make_manifest(*lengths), cache)
    assert all(utterance.cached for utterance in again.utterances)
    assert [u.detected_language for u in again.utterances] == [
        u.detected_language for u in found.utterances
    ]
    beams = DecodingOptions(num_beams=1, batch_size=2, search="temperature_fallback")
    fallback = run(multilingual, make_manifest(*lengths), options=beams)
    assert [u.detected_language for u in fallback.utterances] == [
        u.detected_language for u in found.utterances
    ]


def test_an_english_only_checkpoint_detects_nothing(english: Path, make_manifest) -> None:
    result = run(english, make_manifest(0.5))
    assert result.utterances[0].detected_language is None
    assert (result.decoding.language, result.decoding.languages) == (None, None)


def test_an_unknown_language_is_skipped_by_name(multilingual: Path, make_manifest) -> None:
    result = run(multilingual, make_manifest(0.5, language="fi"))
    assert result.skipped[0].reason == 'the checkpoint does not know the language "fi"'


def test_audio_outside_the_roots_is_named(english: Path, make_manifest, tmp_path: Path) -> None:
    manifest = make_manifest(0.5, 0.9)
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "1.flac").rename(inside / "1.flac")
    (tmp_path / "1.flac").symlink_to(inside / "1.flac")
    result = run(english, manifest, roots=(inside,))
    assert "outside the folders" in result.skipped[0].reason
    assert len(result.utterances) == 1


def test_the_result_names_backend_search_and_dtype(
    english: Path, make_manifest, tmp_path: Path
) -> None:
    manifest = make_manifest(0.5)
    own = run(english, manifest).decoding
    assert (own.backend, own.search, own.num_beams, own.dtype) == (
        "afluente",
        "greedy",
        1,
        "float32",
    )
    folder = shutil.copytree(english, tmp_path / "penalised")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps(settings | {"repetition_penalty": 2.0})
    )
    other = run(folder, manifest, options=DecodingOptions(num_beams=3)).decoding
    assert (other.backend, other.search, other.num_beams) == ("transformers", "beam", 3)
