"""CTC models: the texts of transformers' own pipeline, whatever is in the batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCTC, AutoProcessor
from transformers.pipelines import AutomaticSpeechRecognitionPipeline

from app.contract.errors import EvaluationFailedError, InvalidCheckpointError
from app.contract.evaluation import DecodingOptions
from app.contract.settings import Settings
from app.sources.architectures.ctc import Wav2Vec2
from tests.tiny_speech import CONFIGS, VOCABULARY, make_ctc
from tests.tiny_whisper import WEIGHTS, noisy, variant
from tests.worker.evaluation.conftest import sound
from worker.evaluation.ctc import CtcDecoder
from worker.evaluation.families import load, read_facts
from worker.evaluation.jobs import DecodingSetup
from worker.merging.local import merge_recipe

# WavLM passes masks of two dtypes.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
OPTIONS = DecodingOptions()
Speech = list[np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a kind of model once."""
    return cache(lambda kind: make_ctc(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture(scope="module")
def speech() -> Speech:
    return [sound(0.4 + 0.7 * n, pitch=110 + 60 * n) for n in range(3)]


def decoder(folder: Path) -> CtcDecoder:
    found = load(folder, "cpu", "float32", OPTIONS)
    assert isinstance(found, CtcDecoder)
    return found


def heard(one: CtcDecoder, speech: Speech) -> list[str]:
    return [found.text for found in one.transcribe([one.sound(samples) for samples in speech])]


def theirs(folder: Path, speech: Speech, **how: Any) -> list[str]:
    """Return the texts of transformers' pipeline."""
    model = AutoModelForCTC.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    if "generate" in vars(type(model)):
        found = [processor(one, sampling_rate=16_000, return_tensors="pt") for one in speech]
        return [processor.decode(model.generate(**one)[0]).strip() for one in found]
    pipeline = AutomaticSpeechRecognitionPipeline(
        model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    return [pipeline(one, **how)["text"].strip() for one in speech]


@pytest.mark.parametrize("kind", CONFIGS)
def test_texts_are_those_of_transformers(
    kind: str, checkpoint: Callable[[str], Path], speech: Speech
) -> None:
    folder = checkpoint(kind)
    one = decoder(folder)
    texts = heard(one, speech)
    assert texts == theirs(folder, speech)
    assert len(set(texts)) == len(speech)


@pytest.mark.parametrize("kind", CONFIGS)
def test_assigned_weights_decode_as_loaded_ones(
    kind: str, checkpoint: Callable[[str], Path], speech: Speech, tmp_path: Path
) -> None:
    expert = variant(checkpoint(kind), tmp_path / "expert", noisy(1, size=0.2))
    one, other = decoder(checkpoint(kind)), decoder(expert)
    sounds = [other.sound(samples) for samples in speech]
    before = one.transcribe(sounds)
    one.assign(load_file(expert / WEIGHTS))
    assert one.transcribe(sounds) == other.transcribe(sounds) != before


def test_a_weight_norm_of_the_old_spelling_is_assigned_and_a_foreign_tensor_refused(
    checkpoint: Callable[[str], Path],
) -> None:
    folder = checkpoint("Wav2Vec2ForCTC")
    one = decoder(folder)
    conv = "wav2vec2.encoder.pos_conv_embed.conv"
    new = f"{conv}.parametrizations.weight.original0"
    values = load_file(folder / WEIGHTS)[new] + 1
    one.assign({f"{conv}.weight_g": values})
    assert torch.equal(one.loaded.model.state_dict()[new], values)
    with pytest.raises(EvaluationFailedError, match="another_head"):
        one.assign({"another_head.weight": values})


def test_long_audio_is_decoded_in_the_windows_of_transformers(
    checkpoint: Callable[[str], Path],
) -> None:
    folder, samples = checkpoint("Wav2Vec2ForCTC"), sound(53.1)
    windows: list[int] = []
    text = decoder(folder).decode_long(samples, on_window=lambda: windows.append(1)).text
    assert [text] == theirs(folder, [samples], chunk_length_s=30, stride_length_s=5)
    assert len(windows) == 3


def test_windows_of_parakeet_differ_from_the_whole_at_most_where_they_are_joined(
    checkpoint: Callable[[str], Path],
) -> None:
    samples = np.concatenate([sound(10, pitch=100 + 30 * n) for n in range(4)])
    one = decoder(checkpoint("ParakeetForCTC"))
    assert one.samples_per_frame == 1280
    [whole] = heard(one, [samples])
    assert abs(len(one.decode_long(samples).text) - len(whole)) <= len(whole) // 5


def test_the_shortest_audio_and_a_stop_between_windows(
    checkpoint: Callable[[str], Path],
) -> None:
    one = decoder(checkpoint("HubertForCTC"))
    assert len(one.transcribe([one.sound(np.ones(1, np.float32))])) == 1

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        one.decode_long(sound(31), on_window=stop)


def test_mms_is_decoded_in_the_language_of_its_vocabulary(tmp_path: Path, speech: Speech) -> None:
    folder = make_ctc(tmp_path / "mms", "Wav2Vec2ForCTC", adapter_attn_dim=4)
    nested = {"por": VOCABULARY, "deu": {token: n for n, token in enumerate(reversed(VOCABULARY))}}
    (folder / "vocab.json").write_text(json.dumps(nested))
    with pytest.raises(InvalidCheckpointError, match="target_lang which of them"):
        read_facts(folder)
    settings = folder / "tokenizer_config.json"
    plain = json.loads(settings.read_text())
    texts = []
    for target in nested:
        settings.write_text(json.dumps(plain | {"target_lang": target}))
        one = decoder(folder)
        texts.append(heard(one, speech))
        assert texts[-1] == theirs(folder, speech)
    assert texts[0] != texts[1]
    expected = {"por": {"pt"}, "urd-script_arabic": {"ur"}, "?": None, None: None}
    for target, languages in expected.items():
        documents = {"tokenizer_config.json": plain | {"target_lang": target}}
        described = Wav2Vec2().read({"config.json": {}, **documents})
        assert described.languages == languages


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("vocab.json", None, "has no vocab.json; copy tokenizer"),
        ("processor_config.json", None, "has no preprocessor_config.json or"),
        ("processor_config.json", {"sampling_rate": 8000}, "has sampling_rate 8000; only"),
        ("processor_config.json", {"feature_size": 10**9}, "feature_size 1000000000, more than"),
        ("tokenizer_config.json", {"tokenizer_class": "Evil"}, "tokenizer_class 'Evil'"),
        ("vocab.json", [], "not a JSON object"),
    ],
)
def test_files_that_do_not_suffice_are_refused_by_name(
    name: str, change: object, reason: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("WavLMForCTC"), tmp_path / "wrong")
    path = folder / name
    document = json.loads(path.read_text())
    path.unlink()
    if isinstance(change, Mapping):
        document.get("feature_extractor", document).update(change)
        path.write_text(json.dumps(document))
    elif change is not None:
        path.write_text(json.dumps(change))
    with pytest.raises(InvalidCheckpointError, match=reason):
        read_facts(folder)


def test_a_request_of_beams_by_default_is_decoded_greedily_and_recorded_so(
    checkpoint: Callable[[str], Path],
) -> None:
    facts = read_facts(checkpoint("Wav2Vec2ForCTC"))
    options = facts.honoured(DecodingOptions(language="pt"))
    setup = DecodingSetup("key", facts, options, "float32", "cpu", "transformers")
    record = setup.record(None)
    assert (record.search, record.num_beams, record.language, record.task) == (
        "greedy",
        1,
        None,
        None,
    )
    assert record.checkpoint_settings == {}
    assert set(setup.record(None, long=True).checkpoint_settings or {}) == {
        "window_seconds",
        "overlap_seconds",
    }


def test_counts_of_batch_norms_differ_between_experts_and_are_left_out(
    checkpoint: Callable[[str], Path], speech: Speech, tmp_path: Path
) -> None:
    base = checkpoint("ParakeetForCTC")

    def trained(steps: int) -> Callable[[str, torch.Tensor], torch.Tensor]:
        change = noisy(steps)

        def count(name: str, tensor: torch.Tensor) -> torch.Tensor:
            return tensor + steps if tensor.dtype == torch.int64 else change(name, tensor)

        return count

    experts = [variant(base, tmp_path / f"e{steps}", trained(steps)) for steps in (3, 7)]
    recipe = {"base": str(base), "checkpoints": list(map(str, experts)), "method": "iso_c"}
    made = merge_recipe(recipe, tmp_path / "m", Settings(data_dir=tmp_path, device="cpu"))
    names = load_file(base / WEIGHTS).keys() - load_file(made.folder / WEIGHTS).keys()
    assert {name.rpartition(".")[2] for name in names} == {"num_batches_tracked"}
    one = decoder(made.folder)
    assert heard(one, speech) == theirs(made.folder, speech)
