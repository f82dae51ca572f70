"""Real, tiny models of speech as transformers saves them, with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models

LETTERS = "abcdefghijklmnopqrst"
VOCABULARY = {
    token: number for number, token in enumerate(("<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS))
}
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": len(VOCABULARY),
    "pad_token_id": 0,
    "initializer_range": 0.6,
}
_CONVOLUTIONS = {
    "conv_dim": [8] * 3,
    "conv_kernel": [10, 8, 4],
    "conv_stride": [10, 8, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
_MEL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_mel_bins": 80,
    "subsampling_conv_channels": 8,
    "conv_kernel_size": 5,
    "initializer_range": 0.6,
}
# The fields of each config besides the sizes.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "Wav2Vec2ForCTC": _CONVOLUTIONS,
    "Wav2Vec2BertForCTC": {"feature_projection_input_dim": 160, "conv_depthwise_kernel_size": 3},
    "Wav2Vec2ConformerForCTC": _CONVOLUTIONS | {"conv_depthwise_kernel_size": 3},
    "HubertForCTC": _CONVOLUTIONS,
    "WavLMForCTC": _CONVOLUTIONS,
    "UniSpeechForCTC": _CONVOLUTIONS,
    "UniSpeechSatForCTC": _CONVOLUTIONS,
    "Data2VecAudioForCTC": _CONVOLUTIONS
    | {"num_conv_pos_embeddings": 1, "conv_pos_kernel_size": 3},
    "SEWForCTC": _CONVOLUTIONS | {"squeeze_factor": 1},
    "ParakeetForCTC": {"encoder_config": _MEL},
}


def make_ctc(folder: Path, kind: str, seed: int = 0, **fields: Any) -> Path:
    """Write a model for CTC with its processor; return its folder."""
    torch.manual_seed(seed)
    model = getattr(transformers, kind)
    config = model.config_class(**_SIZES | CONFIGS[kind] | fields)
    model(config).save_pretrained(folder)
    _processor(folder, kind).save_pretrained(folder)
    return folder


def _processor(folder: Path, kind: str) -> Any:
    if kind == "ParakeetForCTC":
        tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
        tokenizer.decoder = decoders.Fuse()
        fast = transformers.ParakeetTokenizer(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
        )
        return transformers.ParakeetProcessor(transformers.ParakeetFeatureExtractor(), fast)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    letters = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    if kind == "Wav2Vec2BertForCTC":
        extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1)
        return transformers.Wav2Vec2BertProcessor(extractor, letters)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    return transformers.Wav2Vec2Processor(extractor, letters)
