"""Tiny scenes of somebody's day, each of which makes the person feel one way."""

from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from worker.federated.tasks.stories import NAMES

Feeling = Literal["happy", "sad", "angry", "scared"]
FEELINGS: tuple[Feeling, ...] = get_args(Feeling)

EVENTS: dict[Feeling, tuple[str, ...]] = {
    "happy": (
        "won a prize", "got a kiss", "ate warm cake", "met a friend", "heard a song",
        "saw a rainbow", "found a puppy", "got a gift", "rode a pony", "danced in the sun",
        "flew a kite", "passed the test", "caught a fish", "built a castle",
    ),
    "sad": (
        "lost a ring", "missed the train", "broke a leg", "said goodbye", "failed the test",
        "was alone", "buried a bird", "lost the game", "dropped the cake", "had no friend",
        "left the house", "had a cold", "ripped a book", "missed the party",
    ),
    "angry": (
        "was pushed", "was robbed", "heard a lie", "was cheated", "got no turn",
        "was blamed", "was kicked", "saw a thief", "had to wait", "was teased",
        "was ignored", "was insulted", "got a bad deal", "found a broken toy",
    ),
    "scared": (
        "saw a snake", "heard thunder", "met a bear", "was lost", "fell in a hole",
        "heard a scream", "saw a ghost", "met a wolf", "smelled smoke", "saw a shadow",
        "was chased", "heard footsteps", "felt the ground shake", "saw a big spider",
    ),
}  # fmt: skip
PLACES = (
    "the park",
    "home",
    "school",
    "the lake",
    "the farm",
    "the shop",
    "the camp",
    "the zoo",
    "the beach",
    "the pool",
    "the market",
    "the barn",
)
REMARKS = (
    "The sky was grey.", "It was noon.", "A dog slept.", "The door was open.",
    "The grass was wet.", "A bus drove by.", "It was late.", "The wall was red.",
    "A cat sat there.", "The road was long.", "It was cold.", "The tree was tall.",
    "A bell rang.", "The lamp was on.", "It was May.", "The table was old.",
    "It was ten.", "The room was big.", "A boat came.", "The path was dry.",
    "A car stood there.", "The music was low.", "It was spring.", "The wind blew.",
)  # fmt: skip
DAYS = ("On Monday", "On Tuesday", "On Friday", "On Sunday", "Today", "Yesterday")


@dataclass(frozen=True, slots=True)
class Scene:
    """What happened to whom, among things that do not matter."""

    key: str  # the same for scenes that differ in names only
    person: str
    event: str
    text: str
    feeling: Feeling


def draw_scene(rng: Random) -> Scene:
    """Any scene; the feelings are equally frequent."""
    feeling = rng.choice(FEELINGS)
    event, person = rng.choice(EVENTS[feeling]), rng.choice(NAMES)
    place, day, remark = rng.choice(PLACES), rng.choice(DAYS), rng.choice(REMARKS)
    return Scene(
        key=f"{day} {event} {place} {remark}",
        person=person,
        event=event,
        text=f"{day} {person} {event} at {place}. {remark}",
        feeling=feeling,
    )
