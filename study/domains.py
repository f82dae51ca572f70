"""The study's five domains of speech: topic, accent, voices and acoustic condition."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from samples import acoustics
from samples.domains import EVALUATION_VARIANTS, TRAINING_VARIANTS, Utterance
from samples.speaking import SAMPLE_RATE, Delivery, speak
from study.texts import Split, draw_sentences

MOST_SECONDS = 6.0
LEAST_MARGIN_SECONDS = 0.5


@dataclass(frozen=True)
class Domain:
    """A domain; ranges are inclusive: words per minute, espeak-ng's pitch (0 to 99)."""

    name: str
    topic: str
    accent: str
    condition: acoustics.Condition
    speeds: tuple[int, int] = (150, 190)
    pitches: tuple[int, int] = (30, 70)


IN_DOMAIN = (
    Domain("telephone", "telephone", "en-us", acoustics.telephone),
    Domain("parliament", "parliament", "en-gb-x-rp", acoustics.hall, (140, 175), (25, 55)),
    Domain("children", "children", "en-gb", acoustics.quiet_room, (210, 250), (85, 99)),
)
OUT_OF_DOMAIN = (
    Domain("street", "street", "en-gb-scotland", acoustics.street),
    Domain("news", "news", "en-029", acoustics.quiet_room),
)


def utterances(domain: Domain, split: Split, count: int) -> Iterator[Utterance]:
    """Yield `count` utterances of a split, at most 6 s long, the same on every run.

    Test speakers (espeak-ng variants) do not occur in training or tuning; all speak equally often.
    """
    rng = random.Random(f"{domain.name}, {split}, speech")
    speakers = EVALUATION_VARIANTS if split == "test" else TRAINING_VARIANTS
    # Replacements for sentences that are too long when spoken slowly.
    sentences = iter(draw_sentences(domain.topic, split, 2 * count))
    for index in range(count):
        utterance = None
        while utterance is None:
            utterance = _say(domain, next(sentences), speakers[index % len(speakers)], rng)
        yield utterance


def _say(domain: Domain, text: str, variant: str, rng: random.Random) -> Utterance | None:
    delivery = Delivery(
        f"{domain.accent}+{variant}", rng.randint(*domain.speeds), rng.randint(*domain.pitches)
    )
    noise = np.random.default_rng(rng.getrandbits(64))
    speech = speak(text, delivery)
    if len(speech) > (MOST_SECONDS - LEAST_MARGIN_SECONDS) * SAMPLE_RATE:
        return None
    return Utterance(text, delivery.voice, domain.condition(speech, noise, MOST_SECONDS))
