"""JSON files of a checkpoint are reduced to known fields with sound values, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import InvalidCheckpointError
from app.sources.architectures.whisper.configs import (
    DOCUMENTS,
    MAX_BYTES,
    read_config,
    read_documents,
)
from app.sources.completion import companions_of
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from tests.app.sources.conftest import CONFIG, checkpoint_files

Make = Callable[..., Path]


@pytest.fixture
def resolved(make_checkpoint: Make, policy: SourcePolicy) -> Any:
    """Resolve a checkpoint with other fields in one of its files."""

    def make(file: str, fields: dict[str, Any]) -> Any:
        files = checkpoint_files()
        content = json.loads(files.get(file, b"{}")) | fields
        folder = make_checkpoint(files=files | {file: json.dumps(content).encode()})
        return resolve(folder.as_uri(), policy, param="base.uri")

    return make


@pytest.mark.parametrize(
    "name",
    [
        "quantization_config",
        "attn_implementation",
        "_attn_implementation",
        "_name_or_path",
        "auto_map",
        "num_labels",
        "id2label",
        "torch_dtype",
        "use_bfloat16",
        "pruned_heads",
        "unsloth_version",
        "transformers_version",
        "custom_pipelines",
        "mask_time_prob",
        "cross_attention_hidden_size",
    ],
)
def test_settings_of_a_training_run_do_not_reach_the_artifact(resolved: Any, name: str) -> None:
    found = resolved("config.json", {name: {"a": 10**9}, "dropout": 0.1})
    kept = json.loads(companions_of(found)["config.json"])
    assert name not in kept
    assert kept["dropout"] == 0.1
    assert kept.items() >= CONFIG.items()


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "max_source_positions", 10**9),
        ("config.json", "d_model", 7),
        ("config.json", "encoder_layers", 10**9),
        ("config.json", "encoder_attention_heads", 3),
        ("config.json", "num_mel_bins", 10**9),
        ("config.json", "vocab_size", "20"),
        ("config.json", "dropout", float("nan")),
        ("config.json", "dropout", 1e300),
        ("config.json", "init_std", [[[]]]),
        ("config.json", "activation_function", "evil"),
        ("config.json", "activation_function", "\ud800"),
        ("config.json", "scale_embedding", True),
        ("config.json", "tie_word_embeddings", 1),
        ("config.json", "is_encoder_decoder", False),
        ("config.json", "eos_token_id", 20),
        ("config.json", "pad_token_id", -1),
        ("config.json", "architectures", {"a": 1}),
        ("preprocessor_config.json", "hop_length", 10**9),
        ("preprocessor_config.json", "hop_length", 0),
        ("preprocessor_config.json", "n_fft", 10**9),
        ("preprocessor_config.json", "chunk_length", 10**9),
        ("preprocessor_config.json", "feature_size", 10**9),
        ("preprocessor_config.json", "sampling_rate", 8000),
        ("preprocessor_config.json", "sampling_rate", 10**400),
        ("preprocessor_config.json", "padding_value", float("inf")),
        ("preprocessor_config.json", "feature_extractor_type", "EvilExtractor"),
        ("processor_config.json", "feature_extractor", []),
        ("tokenizer_config.json", "model_max_length", float("nan")),
        ("tokenizer_config.json", "errors", "os.system"),
        ("tokenizer_config.json", "bos_token", 7),
        ("tokenizer_config.json", "added_tokens_decoder", {"x": {"content": "a"}}),
        ("special_tokens_map.json", "pad_token", {"content": 1}),
        ("added_tokens.json", "a", "1"),
        ("normalizer.json", "a", 1),
    ],
)
def test_what_cannot_be_is_refused_by_file_and_field(
    resolved: Any, file: str, field: str, value: Any
) -> None:
    with pytest.raises(InvalidCheckpointError, match=field) as refusal:
        resolved(file, {field: value})
    assert file.split("_")[0] in refusal.value.message.replace("processor", "preprocessor")
    assert refusal.value.as_problems()[0].param == "base.uri"
    assert len(refusal.value.message) < 1000


def test_a_feature_extractor_of_another_model_is_refused(resolved: Any) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"makes 5 mel bins and config\.json says"):
        resolved("preprocessor_config.json", {"feature_size": 5})


@pytest.mark.parametrize("name", MAX_BYTES)
def test_every_file_has_a_limit_that_is_held_before_it_is_read(
    make_checkpoint: Make, policy: SourcePolicy, name: str
) -> None:
    folder = make_checkpoint()
    with (folder / name).open("ab") as file:
        file.truncate(MAX_BYTES[name] + 1)
    with pytest.raises(InvalidCheckpointError, match=rf"{name} has .* bytes, over"):
        resolve(folder.as_uri(), policy)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    [
        *CONFIG,
        "added_tokens_decoder",
        "bos_token",
        "eos_token_id",
        "extra_special_tokens",
        "feature_extractor",
        "feature_size",
        "hop_length",
        "language",
        "model_max_length",
        "padding_value",
    ]
)


@given(st.dictionaries(st.sampled_from(DOCUMENTS), st.dictionaries(_FIELDS, _JSON, max_size=3)))
def test_any_documents_are_reduced_to_what_json_can_say_or_refused(
    documents: dict[str, dict[str, Any]],
) -> None:
    config, problems = read_config(documents.pop("config.json", {}))
    found, more = read_documents(documents, config)
    assert all(isinstance(problem, str) for problem in (*problems, *more))
    if not problems and not more:
        found.pop("generation_config.json", None)
        json.dumps([config, found], allow_nan=False)
