"""Real, tiny models of speech as transformers saves them, with random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
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


def make_moonshine(folder: Path, seed: int = 0) -> Path:
    """Write a Moonshine with its processor; return its folder."""
    torch.manual_seed(seed)
    config = transformers.MoonshineConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=40,
        initializer_range=0.6,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = transformers.MoonshineForConditionalGeneration(config)
    model.generation_config.max_length = 20
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    transformers.Wav2Vec2Processor(extractor, fast).save_pretrained(folder)
    return folder


def make_speech_to_text(folder: Path, seed: int = 0) -> Path:
    """Write a Speech2Text with its processor; return its folder."""
    torch.manual_seed(seed)
    words = [" ".join(LETTERS[k : k + 4]) for k in range(len(LETTERS))]
    spm = folder / "sentencepiece.bpe"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_prefix=str(spm),
        model_type="bpe",
        vocab_size=len(LETTERS) + 4,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{spm}.model")
    tokens = ["<s>", "<pad>", "</s>", "<unk>"]
    tokens += [pieces.id_to_piece(k) for k in range(3, pieces.get_piece_size())]
    Path(f"{spm}.vocab").unlink()
    (folder / "vocab.json").write_text(json.dumps({t: k for k, t in enumerate(tokens)}))
    config = transformers.Speech2TextConfig(
        vocab_size=len(tokens),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        conv_channels=16,
        max_target_positions=40,
        init_std=0.6,
    )
    model = transformers.Speech2TextForConditionalGeneration(config)
    model.generation_config.max_length = 20
    model.save_pretrained(folder)
    tokenizer = transformers.Speech2TextTokenizer(
        str(folder / "vocab.json"), f"{spm}.model", do_lower_case=True
    )
    extractor = transformers.Speech2TextFeatureExtractor()
    transformers.Speech2TextProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder
