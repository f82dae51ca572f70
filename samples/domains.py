"""The speech domains: voices, speeds and acoustic conditions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from samples import acoustics
from samples.digits import draw_distinct_texts, draw_text
from samples.speaking import Delivery, speak
from samples.tiny_whisper import WINDOW_SECONDS

# fmt: off
TRAINING_VARIANTS = (
    "m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "adam", "anika", "antonio",
    "benjamin", "david", "ed", "gustave", "iven", "john", "linda", "marcelo", "max",
    "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "steph", "travis",
)
# fmt: on
EVALUATION_VARIANTS = ("m7", "m8", "f4", "f5", "Diogo", "Alicia", "Henrique", "edward")


@dataclass(frozen=True)
class Domain:
    """A domain; `slowest` and `fastest` are words per minute."""

    name: str
    condition: acoustics.Condition
    slowest: int = 150
    fastest: int = 200


@dataclass(frozen=True)
class Utterance:
    """A text, its speaker (the espeak-ng voice) and the samples, float32 at 16 kHz."""

    text: str
    speaker: str
    samples: np.ndarray


CLEAN = Domain("clean", acoustics.quiet_room)
EXPERT_DOMAINS = (
    Domain("telephone", acoustics.telephone),
    Domain("parliament", acoustics.hall),
    Domain("fast", acoustics.quiet_room, slowest=240, fastest=300),
)
UNSEEN = Domain("street", acoustics.street)
ALL_DOMAINS = (CLEAN, *EXPERT_DOMAINS, UNSEEN)


def _render(domain: Domain, text: str, variant: str, rng: random.Random) -> Utterance:
    speed = rng.randint(domain.slowest, domain.fastest)
    delivery = Delivery(f"pt+{variant}", speed, rng.randint(30, 70))
    noise = np.random.default_rng(rng.getrandbits(64))
    samples = domain.condition(speak(text, delivery), noise, WINDOW_SECONDS)
    return Utterance(text, delivery.voice, samples)


def training_utterances(domain: Domain, count: int) -> Iterator[Utterance]:
    """Yield `count` utterances of training strings and training voices, the same on every run."""
    rng = random.Random(f"{domain.name}, training")
    for _ in range(count):
        text = draw_text(rng, held_out=False)
        yield _render(domain, text, rng.choice(TRAINING_VARIANTS), rng)


def evaluation_utterances(domain: Domain, count: int) -> Iterator[Utterance]:
    """Yield `count` utterances of held-out strings by held-out voices, the same on every run."""
    rng = random.Random(f"{domain.name}, evaluation")
    for index, text in enumerate(draw_distinct_texts(rng, count)):
        variant = EVALUATION_VARIANTS[index % len(EVALUATION_VARIANTS)]
        yield _render(domain, text, variant, rng)
