"""A model that is not known merges with its like: config, tensors and tokenizer must agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.contract.errors import IncompatibleCheckpointError, InvalidCheckpointError
from app.contract.recipe import parse_request
from app.services.preparation import Prepared, prepare
from app.services.presentation import architecture_summary
from app.sources.policy import SourcePolicy
from tests.app.sources.conftest import write_safetensors

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 4,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "vocab_size": 3,
    "id2label": {"0": "_silence_", "1": "yes"},
}
WORDS = ["[UNK]", "um", "dois"]
Pair = Callable[..., Prepared]


@pytest.fixture
def pair(make_checkpoint: Callable[..., Path], policy: SourcePolicy) -> Pair:
    """Prepare a merge of a base with the files `ours` and an expert with `theirs`."""

    def make(ours: dict[str, Any], theirs: dict[str, Any]) -> Prepared:
        folders = []
        for name, changes in (("base", ours), ("expert", theirs)):
            tensors = {"bert.embeddings.weight": ("F32", (3, 4)), "bert.bias": ("F32", (4,))}
            files = {"config.json": CONFIG, **changes}
            contents = {
                file: content if isinstance(content, bytes) else json.dumps(content).encode()
                for file, content in files.items()
            }
            contents["model.safetensors"] = write_safetensors(tensors)
            folders.append(make_checkpoint(name, contents).as_uri())
        recipe = {"base": folders[0], "checkpoints": folders[1:], "method": "ties"}
        return prepare(parse_request(recipe, max_checkpoints=2).recipe, policy)

    return make


def config(**fields: Any) -> dict[str, Any]:
    return {"config.json": CONFIG | fields}


def test_it_needs_no_companion_and_keeps_what_config_json_says(pair: Pair) -> None:
    prepared = pair(config(_name_or_path="/home/me", auto_map={"AutoModel": "a.B"}), {})
    assert prepared.reference.config == CONFIG
    assert list(prepared.plan.as_document()["totals"]["by_treatment"]) == ["merge"]
    assert prepared.sources()["architecture"]["model_class"] == "BertForMaskedLM"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            {"hidden_dropout_prob": 0.1, "layerdrop": 0.1},
            {"hidden_dropout_prob": 0, "layerdrop": 0},
        ),
        ({"transformers_version": "5.1", "dtype": "float32"}, {"transformers_version": "4.1"}),
        ({"ctc_loss_reduction": "sum"}, {"ctc_loss_reduction": "mean"}),
        ({"pad_token_id": 0, "mask_time_prob": 0.05}, {"pad_token_id": 1, "mask_time_prob": 0.7}),
        ({"a": {"size": 4}, "b_config": {"dtype": 1}}, {"c": 1, "b_config": {"dtype": 2}}),
    ],
)
def test_how_it_was_trained_and_written_may_differ(
    pair: Pair, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    assert pair(config(**ours), config(**theirs)).plan.steps


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 8),
        ("num_attention_heads", 1),
        ("hidden_act", "relu"),
        ("audio_config", {"hidden_size": 8}),
        ("id2label", {"0": "yes", "1": "_silence_"}),
    ],
)
def test_what_decides_the_result_must_agree(pair: Pair, field: str, value: Any) -> None:
    with pytest.raises(
        IncompatibleCheckpointError, match=f"config.json says {field}[ .]"
    ) as refusal:
        pair(config(audio_config={"hidden_size": 4}), config(**{field: value}))
    assert refusal.value.as_problems()[0].param == "checkpoints[0].uri"


def test_features_must_agree(pair: Pair) -> None:
    ours, theirs = ({"preprocessor_config.json": {"sampling_rate": n}} for n in (16_000, 8_000))
    with pytest.raises(IncompatibleCheckpointError, match="sampling_rate 8000, that of"):
        pair(ours, theirs)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": None}, "model_type None"),
        ({"model_type": "../evil"}, "the name of an architecture is needed"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights"),
        ({"num_labels": 10**9}, "num_labels 1000000000, more than"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, more than"),
        ({"text_config": {"n_layer": 10**9}}, "text_config.n_layer 1000000000, more than"),
    ],
)
def test_a_config_that_cannot_be_merged_is_refused(
    pair: Pair, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(IncompatibleCheckpointError, match=said):
        pair(config(**fields), config(**fields))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_json_of_any_depth_is_refused_by_name(pair: Pair, name: str) -> None:
    deep = b'{"model_type": "bert", "a":' + b"[" * 600 + b"]" * 600 + b"}"
    with pytest.raises(InvalidCheckpointError, match=f"{name} has objects or lists nested"):
        pair({name: deep}, {name: deep})


def tokenizer(kind: str, words: list[str]) -> dict[str, Any]:
    ids = {word: number for number, word in enumerate(words)}
    pairs = [[word, -1.0] for word in words]
    return {
        "wordpiece": {"tokenizer.json": {"model": {"type": "WordPiece", "vocab": ids}}},
        "unigram": {"tokenizer.json": {"model": {"type": "Unigram", "vocab": pairs}}},
        "lines": {"vocab.txt": "\n".join([*words, ""]).encode()},
        "letters": {"vocab.json": ids},
        "languages": {"vocab.json": {"por": ids}},
    }[kind]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "lines", "letters", "languages"])
def test_tokenizers_of_other_ids_are_refused(pair: Pair, kind: str) -> None:
    with pytest.raises(IncompatibleCheckpointError, match="rows of unlike tokens"):
        pair(tokenizer(kind, WORDS), tokenizer(kind, WORDS[::-1]))


def test_tokenizers_of_two_forms_may_say_the_same(pair: Pair) -> None:
    prepared = pair(tokenizer("wordpiece", WORDS), tokenizer("lines", WORDS))
    assert prepared.plan.steps


@pytest.mark.parametrize(
    ("file", "document"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": []}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("added_tokens.json", {"a": "b"}),
    ],
)
def test_what_is_no_table_of_tokens_is_refused_by_file(
    pair: Pair, file: str, document: dict[str, Any]
) -> None:
    files = tokenizer("lines", WORDS) | {file: document}
    with pytest.raises(InvalidCheckpointError, match=file):
        pair(files, files)


def test_a_merge_recorded_before_architectures_were_is_of_whisper() -> None:
    recorded = architecture_summary({"sources": {"base": None, "checkpoints": []}})
    assert (recorded["model_type"], recorded["task"]) == ("whisper", "seq2seq")
