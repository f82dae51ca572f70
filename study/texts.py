"""English sentences of five topics from templates, in disjoint training, dev and test splits."""

from __future__ import annotations

import hashlib
import random
import re
from typing import Literal

Split = Literal["train", "dev", "test"]

# fmt: off
_WORDS: dict[str, tuple[str, ...]] = {
    "name": ("Margaret", "Oliver", "Hannah", "Patrick", "Susan", "George", "Amelia", "Walter",
             "Caroline", "Douglas", "Beatrice", "Vincent", "Rebecca", "Stanley", "Julia", "Edward"),
    "surname": ("Harrison", "Bennett", "Wallace", "Fletcher", "Thompson", "Murray", "Collins",
                "Gallagher", "Whitfield", "Newman", "Barlow", "Sutherland"),
    "city": ("London", "Bristol", "Dublin", "Chicago", "Glasgow", "Boston", "Leeds", "Toronto",
             "Cardiff", "Denver", "Belfast", "Portland"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": ("January", "February", "March", "April", "June", "July", "August", "September",
              "October", "November", "December"),
    "number": ("three", "four", "seven", "nine", "eleven", "twelve", "fifteen", "eighteen",
               "twenty", "thirty two", "forty five", "sixty seven", "eighty", "ninety one"),
    "hour": ("half past two", "nine o'clock", "a quarter to five", "noon", "ten in the morning",
             "eight tonight", "a quarter past six"),
    "goods": ("blue jacket", "washing machine", "wooden table", "train ticket", "mobile phone",
              "hotel room", "electric kettle", "winter coat", "garden chair", "rental car"),
    "trouble": ("arrived broken", "was never delivered", "is the wrong colour", "stopped working",
                "costs more than you said", "has a missing part", "was sent to my old address"),
    "policy": ("the housing budget", "public transport", "the fishing agreement",
               "the national health service", "renewable energy", "higher education",
               "the new tax on fuel", "the reform of pensions", "border control", "clean water",
               "rural schools", "the price of medicine"),
    "body": ("the committee", "the government", "this house", "the opposition", "the commission",
             "the minister", "the council", "the assembly"),
    "verdict": ("deserves more time", "has failed our citizens", "must be explained in public",
                "will not solve the problem", "needs the support of every party",
                "was a serious mistake", "should be sent back to the committee"),
    "animal": ("elephant", "rabbit", "penguin", "tiger", "hedgehog", "donkey", "squirrel",
               "dolphin", "kitten", "parrot"),
    "game": ("hide and seek", "football", "chess", "treasure hunt", "pirates", "the card game",
             "musical chairs"),
    "place": ("the garden", "the kitchen", "the playground", "the attic", "the swimming pool",
              "the tree house", "the classroom", "grandmother's house"),
    "food": ("chocolate cake", "strawberries", "pancakes", "vegetable soup", "cheese sandwiches",
             "apple juice", "ice cream", "scrambled eggs"),
    "landmark": ("the railway station", "the cathedral", "the old bridge", "the post office",
                 "the town hall", "the harbour", "the bus stop", "the market square"),
    "turn": ("turn left", "turn right", "go straight on", "cross the road", "walk up the hill",
             "take the second street", "follow the river"),
    "weather": ("heavy rain", "thick fog", "bright sunshine", "strong wind", "light snow",
                "thunder and lightning", "a sharp frost"),
    "science": ("a new species of beetle", "an ancient settlement", "a distant planet",
                "a cheaper battery", "a lost manuscript", "a treatment for asthma",
                "the wreck of a ship"),
    "trade": ("engineer", "nurse", "carpenter", "journalist", "teacher", "musician", "farmer",
              "librarian", "architect", "plumber"),
}

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "telephone": (
        "Hello, my name is {name} {surname} and I am calling about a {goods}.",
        "The {goods} that I ordered in {month} {trouble}.",
        "Could you tell {name} that I will be there on {day} at {hour}?",
        "My reference number is {number}, {number}, {number}.",
        "I would like to cancel the {goods} and get my money back.",
        "Please hold the line, {surname} will be with you in {number} minutes.",
        "Is this the number for the {city} office? I need to speak to the {trade}.",
        "You charged me {number} pounds for a {goods}, but it {trouble}.",
        "The {trade} can come on {day}, the {number} of us will be at home.",
        "Sorry, the line is terrible. Did you say {hour} or {hour}?",
        "I have been waiting for {number} days and the {goods} is still in {city}.",
    ),
    "parliament": (
        "Madam President, {policy} {verdict}.",
        "I thank {body} for its report on {policy}.",
        "We voted against {policy} in {month} because it {verdict}.",
        "The member for {city} asked {body} about {policy}.",
        "Since {month}, {body} has spent {number} million on {policy}.",
        "It is the duty of {body} to protect {policy}.",
        "Colleagues, what {body} said on {day} about {policy} {verdict}.",
        "Minister {surname} promised that {policy} would come before {body}.",
        "{number} amendments on {policy} were rejected by {body}.",
        "Let us be honest, {body} knows that {policy} {verdict}.",
        "I ask {body} to publish the figures for {city} by {month}.",
    ),
    "children": (
        "Can we play {game} in {place} after lunch?",
        "My {animal} is bigger than your {animal} and it can swim.",
        "{name} ate all the {food} and did not share with me!",
        "Look, there is a {animal} hiding in {place}!",
        "I drew a picture of a {animal} eating {food}.",
        "Mummy said we can have {food} on {day}.",
        "When I grow up I want to be a {trade} and live in {city}.",
        "I counted {number} birds and one {animal} from {place}.",
        "It is not fair, {name} always wins at {game}.",
        "We are going to {place} with {name} and the {animal}.",
        "Why does the {animal} sleep all day and eat {food} at night?",
    ),
    "street": (
        "To get to {landmark}, {turn} and then {turn}.",
        "Excuse me, is {landmark} far from {landmark}?",
        "The bus to {city} leaves from {landmark} at {hour}.",
        "There was {weather} near {landmark} on {day}.",
        "If you see {landmark}, {turn} and ask for {surname} the {trade}.",
        "{name} sells {food} in front of {landmark} every {day}.",
        "You have missed the tram, {turn} and wait {number} minutes.",
        "Because of {weather}, the road to {landmark} is closed until {month}.",
        "Careful, a {animal} ran across the road by {landmark}.",
    ),
    "news": (
        "Scientists in {city} have discovered {science}.",
        "{weather} is expected across {city} on {day}.",
        "The price of {food} rose by {number} percent in {month}.",
        "{name} {surname}, a {trade} from {city}, has won the prize.",
        "After {weather} in {month}, {number} families left {city}.",
        "The museum in {city} will show {science} until {month}.",
        "Doctors advise the people of {city} to eat less {food}.",
        "A {trade} found {science} under {landmark}.",
        "The trial of {surname} was moved from {city} to {city}.",
        "Visitors came from {city} to see {science} in spite of {weather}.",
    ),
}
# fmt: on
TOPICS = tuple(_TEMPLATES)
_SLOT = re.compile(r"\{(\w+)\}")


def split_of(sentence: str) -> Split:
    """Return a sentence's split: 60 % are for training, 10 % for tuning, 30 % for testing."""
    share = hashlib.sha256(sentence.encode()).digest()[0] / 256
    return "train" if share < 0.6 else "dev" if share < 0.7 else "test"


def draw_sentences(topic: str, split: Split, count: int) -> list[str]:
    """Return `count` different sentences of a topic's split, the same on every run."""
    rng = random.Random(f"{topic}, {split}")
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        sentence = _fill(rng.choice(_TEMPLATES[topic]), rng)
        if split_of(sentence) == split:
            drawn[sentence] = None
    return list(drawn)


def _fill(template: str, rng: random.Random) -> str:
    sentence = _SLOT.sub(lambda slot: rng.choice(_WORDS[slot[1]]), template)
    sentence = re.sub(r"\ba (?=[aeiou])", "an ", sentence)
    return sentence[0].upper() + sentence[1:]
