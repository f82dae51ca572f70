from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import InvalidCheckpointError
from app.sources.architectures.whisper.generation import (
    IGNORED,
    REFUSED,
    GenerationSettings,
    constraints,
    generation_config_of,
    generation_problems,
    settings_of,
    summarize,
)
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from tests.tiny_whisper import make_base

CONFIG = {"vocab_size": 1000, "max_target_positions": 448, "decoder_start_token_id": 7}
USED = sorted(GenerationSettings.model_fields)
NAMES = sorted({*USED, *REFUSED, *(name for names in IGNORED.values() for name in names)})
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 10**400, -(10**30)])
    | st.floats()
    | st.text(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def effective(settings: dict[str, Any], num_beams: int = 1, **more: Any) -> dict[str, Any]:
    assert generation_problems(settings, CONFIG) == []
    found = settings_of(settings, CONFIG)
    return constraints(found, CONFIG, num_beams=num_beams, prompt=4, **more)


def test_every_setting_that_transformers_knows_has_one_rule() -> None:
    from transformers import GenerationConfig

    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known <= set(NAMES)
    rules = [*USED, *REFUSED, *(name for names in IGNORED.values() for name in names)]
    assert len(rules) == len(set(rules))


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), values, max_size=5))
def test_any_value_is_either_refused_by_its_name_or_sound(document: dict[str, Any]) -> None:
    problems = generation_problems(document, CONFIG)
    for problem in problems:
        assert problem.startswith("generation_config.json s")
        assert any(name in problem for name in document)
    if not problems:
        kept = generation_config_of(document, CONFIG)
        assert generation_problems(kept, CONFIG) == []
        assert generation_config_of(kept, CONFIG) == kept
        assert set(kept) <= set(NAMES)
        json.dumps(kept, allow_nan=False)
        for num_beams in (1, 5):
            effective(document, num_beams)
            assert effective(kept, num_beams) == effective(document, num_beams)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_length": "9"}, "max_length: Input should be a valid integer (given: '9')"),
        ({"max_length": True}, "max_length"),
        ({"max_new_tokens": 0}, "max_new_tokens: Input should be greater than or equal to 1"),
        ({"decoder_start_token_id": 10**9}, "decoder_start_token_id 1000000000; the vocabulary"),
        ({"eos_token_id": [3, 1000]}, "eos_token_id 1000; the vocabulary has 1,000 tokens"),
        ({"lang_to_id": [["<|en|>", 3]]}, "lang_to_id"),
        ({"lang_to_id": {"<|en|>": 1000}}, "lang_to_id[<|en|>] 1000"),
        ({"lang_to_id": {"English": 3}}, "lang_to_id.English"),
        ({"length_penalty": float("nan")}, "length_penalty: Input should be a finite number"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"guidance_scale": 2.0}, "sets guidance_scale, which no search here obeys"),
        ({"stop_strings": ["."]}, "sets stop_strings"),
        ({"sequence_bias": [[[3], -1.0]]}, "sets sequence_bias"),
        ({"max_time": 1.0}, "sets max_time"),
    ],
    ids=str,
)
def test_what_cannot_be_obeyed_is_refused_with_field_and_value(
    settings: dict[str, Any], said: str
) -> None:
    (problem,) = generation_problems(settings, CONFIG)
    assert said in problem


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_length": 448},
        {"max_new_tokens": 448},
        {"max_new_tokens": 444},
        {"max_length": 10**9},
        {"min_length": 4},
        {"suppress_tokens": []},
        {"suppress_tokens": [-1, 1000, 10**30]},
        {"length_penalty": 0.5, "early_stopping": True, "renormalize_logits": True},
        {"repetition_penalty": 1, "no_repeat_ngram_size": 0},
        {"num_beams": 9, "do_sample": True, "temperature": 0.3, "num_beam_groups": 3},
        {"language": "pt", "task": "translate", "forced_decoder_ids": [[1, None], [2, 5]]},
        {"no_speech_threshold": 0.6, "logprob_threshold": -1.0},
        {"forced_decoder_ids": "damaged", "use_cache": "no", "cache_implementation": "nonsense"},
        {"guidance_scale": 1.0, "stop_strings": None},
        {"max_initial_timestamp_index": 50},
    ],
    ids=str,
)
def test_settings_without_effect_are_none(settings: dict[str, Any]) -> None:
    assert effective(settings) == {}


@pytest.mark.parametrize(
    ("settings", "num_beams", "found"),
    [
        ({"max_length": 24}, 1, {"max_new_tokens": 24}),
        ({"max_new_tokens": 24, "max_length": 448}, 1, {"max_new_tokens": 24}),
        ({"min_length": 6}, 1, {"min_new_tokens": 2}),
        ({"suppress_tokens": [9, 3, 3, -1]}, 1, {"suppress_tokens": [3, 9]}),
        (
            {"suppress_tokens": [3], "begin_suppress_tokens": [3, 5]},
            1,
            {"suppress_tokens": [3], "begin_suppress_tokens": [5]},
        ),
        ({"length_penalty": 0.5}, 5, {"length_penalty": 0.5}),
        ({"early_stopping": True}, 2, {"early_stopping": True}),
        ({"bad_words_ids": [[4], [2, 3], [1000]]}, 1, {"bad_words_ids": [[2, 3], [4]]}),
        ({"eos_token_id": [3, 4]}, 1, {"eos_token_id": [3, 4]}),
    ],
    ids=str,
)
def test_what_can_change_a_hypothesis_has_one_spelling(
    settings: dict[str, Any], num_beams: int, found: dict[str, Any]
) -> None:
    assert effective(settings, num_beams) == found


def test_the_first_time_stamp_matters_to_long_audio_only() -> None:
    settings = {"max_initial_timestamp_index": 50}
    assert effective(settings, timestamps=True) == settings


def test_config_json_speaks_where_there_is_no_generation_config() -> None:
    old = {**CONFIG, "suppress_tokens": [3], "begin_suppress_tokens": None, "max_length": 20}
    found = settings_of(None, old)
    assert constraints(found, CONFIG, num_beams=1, prompt=4) == {
        "max_new_tokens": 20,
        "suppress_tokens": [3],
    }
    assert found.decoder_start_token_id == 7
    # With a file, what it leaves out is left out; only token ids are looked up.
    assert constraints(settings_of({}, old), CONFIG, num_beams=1, prompt=4) == {}
    assert settings_of({"decoder_start_token_id": None}, old).decoder_start_token_id == 7


def test_an_artifact_keeps_what_describes_the_model() -> None:
    own = {
        "alignment_heads": [[1, 0]],
        "decoder_start_token_id": None,
        "forced_decoder_ids": [[1, None], [2, 5]],
        "language": "pt",
        "max_length": 448,
        "no_speech_threshold": 0.6,
        "num_beams": 5,
        "pad_token_id": 10**6,
        "quantization_config": {"load_in_4bit": True},
        "suppress_tokens": [-1, 4],
        "temperature": [0.0, 0.2],
        "use_cache": True,
    }
    assert generation_config_of(own, CONFIG) == {
        "alignment_heads": [[1, 0]],
        "decoder_start_token_id": 7,
        "forced_decoder_ids": [[1, None], [2, 5]],
        "language": "pt",
        "max_length": 448,
        "num_beams": 5,
        "suppress_tokens": [4],
    }


def test_long_lists_are_shown_by_number_and_digest() -> None:
    assert summarize([1, 2]) == "[1, 2]"
    assert summarize(list(range(90))).startswith("90 entries (sha256 ")
    assert summarize(list(range(90))) != summarize(list(range(1, 91)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"max_length": "9"}', "generation_config.json says max_length"),
        ('{"decoder_start_token_id": 51}', "the vocabulary has 51 tokens"),
        ("[]", "generation_config.json is not a JSON object"),
        ("{", "generation_config.json is not JSON"),
        ('{"max_length": 1' + "0" * 5000 + "}", "generation_config.json is not JSON"),
        ('{"a": "' + "a" * 300_000 + '"}', "bytes, over 262,144"),
    ],
)
def test_a_source_is_refused_before_anything_is_merged(
    tmp_path: Path, content: str, said: str
) -> None:
    folder = make_base(tmp_path / "base")
    (folder / "generation_config.json").write_text(content)
    refuse(folder, said, tmp_path)


def test_without_a_generation_config_the_old_place_is_held_to_the_same(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_length": [3]}))
    refuse(folder, "config.json says max_length", tmp_path)


def refuse(folder: Path, said: str, tmp_path: Path) -> None:
    policy = SourcePolicy(cache_dir=tmp_path / "cache", file_roots=(tmp_path,))
    with pytest.raises(InvalidCheckpointError) as refused:
        resolve(folder.as_uri(), policy)
    assert said in refused.value.message
