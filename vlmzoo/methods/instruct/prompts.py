"""What a text model is told, so that it writes instruction data from captions and boxes; all of it is data.

The recipe is LLaVA's ("Visual Instruction Tuning", section 3): a system message, a few worked examples as turns, then
the picture's context. The words and the examples are our own, and a file may stand in for any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from vlmzoo.config import Config
from vlmzoo.endpoint import message
from vlmzoo.methods.instruct.records import Annotated, Thing

Kind = Literal["conversation", "detail", "reasoning"]
SEPARATOR = "==="


class Shown(Config):
    """An object of an example: its category and its box, (left, top, right, bottom) as fractions of the picture."""

    category: str
    bbox: tuple[float, float, float, float]


class Example(Config):
    """A picture's context and the reply that it should get."""

    captions: tuple[str, ...]
    instances: tuple[Shown, ...] = ()
    reply: str

    def context(self) -> str:
        """As :func:`render` writes a picture's."""
        things = tuple(Thing(one.category, one.bbox) for one in self.instances)
        return render(Annotated("", "", self.captions, things))


class Prompt(Config):
    """What is said before a picture's context.

    Attributes:
        system: what to write and in which form. examples: contexts with their replies, as turns of the conversation.
        questions: where the reply is only an answer, the questions that one is drawn from for it; else empty, and the
            reply holds questions and answers.
        rounds: most pairs that a reply may hold; 0 for as many as it likes.
    """

    system: str = Field(min_length=1)
    examples: tuple[Example, ...] = ()
    questions: tuple[str, ...] = ()
    rounds: int = Field(default=0, ge=0)

    def messages(self, picture: Annotated) -> list[dict[str, Any]]:
        """The conversation that a picture's reply continues."""
        turns = [message("system", self.system)]
        for example in self.examples:
            turns += [message("user", example.context()), message("assistant", example.reply)]
        return [*turns, message("user", render(picture))]


def render(picture: Annotated) -> str:
    """A picture's context: its captions, one a line, and after an empty line its boxes, ``category: [x1, y1, x2, y2]``."""
    lines = list(picture.captions)
    if picture.things or picture.crowds:
        lines.append("")
        for thing in picture.things:
            lines.append(f"{thing.category}: [{', '.join(f'{edge:.3f}' for edge in thing.box)}]")
        lines += [f"{category}: many" for category in sorted(picture.crowds)]
    return "\n".join(lines).strip("\n")


def _dialogue(*rounds: tuple[str, str]) -> str:
    lines: list[str] = []
    for question, answer in rounds:
        lines += ["Question:", question, SEPARATOR, "Answer:", answer, SEPARATOR]
    return "\n".join(lines[:-1])


def _shown(*things: tuple[str, Sequence[float]]) -> tuple[Shown, ...]:
    return tuple(Shown(category=name, bbox=tuple(edges)) for name, edges in things)  # type: ignore[arg-type]


_SIGHT = """\
You will be given notes about one photograph. First come sentences by people who looked at it, one a line. After an \
empty line there may be a list of objects, each with the box around it: left, top, right and bottom edge, as fractions \
of the photograph's width and height, counted from its top left corner. "many" in place of a box stands for a crowd \
that nobody counted.
You yourself cannot see the photograph, but whoever reads you believes that you can, and must never notice the notes. \
So speak of the photograph itself. Do not mention sentences, captions, notes, lists, boxes, coordinates or numbers taken \
from boxes; say "on the left", "in the background" or "next to" where a place matters. Say nothing that the notes do \
not support, and leave out whatever you are unsure of."""

_PAIR = f"""\
in exactly this form, with nothing before, between or after:
Question:
the question
{SEPARATOR}
Answer:
the answer"""

_KITCHEN = (
    "An elderly woman rolls out dough on a wooden table while a boy watches.",
    "A grandmother and a child are baking together in a small kitchen.",
    "A boy in an apron leans on a table covered with flour.",
    "Two people preparing dough next to a bowl and a bottle of oil.",
)
_KITCHEN_THINGS = _shown(
    ("person", (0.112, 0.084, 0.496, 0.887)),
    ("person", (0.571, 0.278, 0.842, 0.903)),
    ("dining table", (0.034, 0.642, 0.981, 0.998)),
    ("bowl", (0.433, 0.610, 0.562, 0.715)),
    ("bottle", (0.871, 0.472, 0.930, 0.688)),
)
_HARBOUR = (
    "Three fishing boats are tied up at a stone pier in the early morning.",
    "Small boats in a calm harbour with gulls on the wall.",
    "A man sits on the pier and mends a net beside the boats.",
)
_HARBOUR_THINGS = _shown(
    ("boat", (0.021, 0.438, 0.317, 0.702)),
    ("boat", (0.342, 0.455, 0.588, 0.690)),
    ("boat", (0.604, 0.471, 0.790, 0.668)),
    ("person", (0.835, 0.520, 0.921, 0.774)),
    ("bird", (0.412, 0.301, 0.437, 0.334)),
    ("bird", (0.466, 0.298, 0.489, 0.331)),
)
_STREET = (
    "A cyclist waits at a crossing with a dog in the basket of her bicycle.",
    "A woman on a bike stops at a red light on a wet street.",
    "Rainy street with a bicycle, a bus behind it, and people under umbrellas.",
)
_STREET_THINGS = _shown(
    ("person", (0.318, 0.250, 0.477, 0.731)),
    ("bicycle", (0.289, 0.470, 0.541, 0.893)),
    ("dog", (0.472, 0.428, 0.549, 0.546)),
    ("bus", (0.520, 0.120, 0.967, 0.640)),
    ("traffic light", (0.083, 0.041, 0.128, 0.186)),
    ("umbrella", (0.012, 0.322, 0.147, 0.421)),
    ("umbrella", (0.155, 0.339, 0.262, 0.430)),
)

CONVERSATION = Prompt(
    system=f"""{_SIGHT}
Your task: write a conversation between somebody who asks about the photograph and you, who look at it and answer. Ask \
about different things: which objects there are, how many, what they look like, what is going on, where it happens, \
where things are relative to each other. Ask only what has a definite answer: either it can plainly be seen, or it can \
plainly be seen not to be so. Let two or three of the last questions go further, to the background of an object or an \
event, and answer these at more length, with reasons and examples. Answer in whole sentences and in a friendly tone.
Write each pair {_PAIR}
{SEPARATOR}
Question:
the next question, and so on""",
    examples=(
        Example(
            captions=_HARBOUR,
            instances=_HARBOUR_THINGS,
            reply=_dialogue(
                ("How many boats are tied up at the pier?", "Three boats are tied up there, side by side."),
                (
                    "What is the man on the pier doing?",
                    "He is sitting on the pier to the right of the boats and mending a net.",
                ),
                ("Are there any birds?", "Yes, two gulls are sitting on the wall behind the boats."),
                (
                    "Is the sea rough?",
                    "No, the water in the harbour is calm, so the boats lie almost still.",
                ),
                (
                    "Why do fishermen mend their nets at this time of the day?",
                    "Many boats go out at night or before dawn and are back by early morning. The catch has been landed "
                    "then, and the damage that rocks, large fish or the hauling itself did to the net can be seen and "
                    "repaired before the next trip. Small holes grow quickly under load, so a few minutes of work on "
                    "the pier save a net that would be costly to replace.",
                ),
            ),
        ),
        Example(
            captions=_KITCHEN,
            instances=_KITCHEN_THINGS,
            reply=_dialogue(
                ("Who is in the kitchen?", "An elderly woman and a boy, who seem to be baking together."),
                (
                    "What does the woman do?",
                    "She is rolling out dough on a wooden table that is covered with flour.",
                ),
                ("Where is the boy?", "He is on the right, leaning on the table and watching her."),
                ("What stands between the two of them?", "There is a bowl on the table between them."),
                (
                    "What might a child learn from baking with a grandparent?",
                    "Quite a lot, and most of it without noticing. Measuring flour and dividing dough is practical "
                    "arithmetic, waiting for it to rise takes patience, and a recipe has to be followed in the right "
                    "order. Beyond that, a recipe is often a family's memory: who made it, for which feast, and how "
                    "the dough should feel under the hands cannot be read in a book as well as it can be shown.",
                ),
            ),
        ),
    ),
)

DETAIL_QUESTIONS = (
    "What can you see in this picture? Please go into detail.",
    "Tell me everything you notice about this photograph.",
    "Could you walk me through this picture from one side to the other?",
    "Please describe this scene as precisely as you can.",
    "I cannot see the picture. What does it show, in detail?",
    "Write a thorough description of what is in this picture.",
    "Paint me a picture in words of what you see here.",
    "How would you describe this photograph to somebody on the telephone?",
    "What is shown here? Leave nothing important out.",
    "Look closely: what is in this picture, and where?",
    "Give a full account of the scene in front of you.",
    "Describe the objects, their places and what happens in this picture.",
    "Please write a paragraph about what this picture shows.",
    "What would I see if I looked at this picture carefully?",
    "Take your time and describe everything in view.",
    "Explain in detail what this picture contains.",
)

DETAIL = Prompt(
    system=f"""{_SIGHT}
Your task: write one description of the photograph, as somebody would who looks at it for a while. Begin with what it \
shows as a whole, go on to the objects, how many there are, what they look like and where they are relative to each \
other, and end with the surroundings. Write plain prose of about four to ten sentences, without headings or lists, and \
write nothing but the description.""",
    examples=(
        Example(
            captions=_STREET,
            instances=_STREET_THINGS,
            reply="A woman on a bicycle has stopped at a crossing on a wet city street. She is a little to the left of "
            "the middle, and a dog sits in the basket at the front of her bicycle. A bus stands close behind her "
            "and fills most of the right half of the view. The traffic light at the upper left shows red, which is why "
            "she waits. Further to the left, people walk under two umbrellas. The ground is shiny with rain, and "
            "everything has the look of a grey, busy day.",
        ),
        Example(
            captions=_HARBOUR,
            instances=_HARBOUR_THINGS,
            reply="It is early morning in a small, calm harbour. Three fishing boats lie side by side along a stone "
            "pier; the one on the left is the largest in view, and the others follow towards the right. At the right "
            "end a man sits on the pier and mends a net. Behind the boats, two gulls rest on the wall, close to each "
            "other. Nothing else moves, and the water is almost smooth.",
        ),
        Example(
            captions=_KITCHEN,
            instances=_KITCHEN_THINGS,
            reply="An elderly woman and a boy are baking in a small kitchen. The woman stands on the left and rolls out "
            "dough on a wooden table, which takes up the whole lower part of the view and is white with flour. The boy, "
            "in an apron, leans on the table to the right of her and watches closely. Between them stands a bowl, and "
            "at the right end of the table there is a bottle of oil. The two look absorbed in what they are doing.",
        ),
    ),
    questions=DETAIL_QUESTIONS,
)

REASONING = Prompt(
    system=f"""{_SIGHT}
Your task: write one demanding question about the photograph and its answer. The question must need thought beyond \
what is visible: why something is as it is, what may happen next, what somebody there should mind, how the situation \
could be handled. It must not give away what the photograph shows, so that whoever answers has to look first. The \
answer goes step by step from what can be seen to a conclusion, in one or two paragraphs.
Write the pair {_PAIR}""",
    examples=(
        Example(
            captions=_STREET,
            instances=_STREET_THINGS,
            reply=_dialogue(
                (
                    "What should the woman be especially careful about when she sets off again?",
                    "She has stopped on a street that is wet from the rain, so her tyres and brakes grip less than "
                    "usual, and a sudden start or turn could make her slip. A bus stands close behind her; its driver "
                    "may not see a cyclist well from up there, and its way past her is narrow.\nShe also carries a dog "
                    "in her front basket. Its weight makes the steering sluggish, and if it moves just as she starts, "
                    "she may swerve. So it would be wise to wait until the light is green, look back at the bus, start "
                    "slowly and in a straight line, and keep a hand ready to calm the dog.",
                )
            ),
        ),
        Example(
            captions=_KITCHEN,
            instances=_KITCHEN_THINGS,
            reply=_dialogue(
                (
                    "What makes this a good moment to let the younger one take over, and how could that be done?",
                    "The boy already wears an apron, stands right at the table and follows every movement, so he is "
                    "clearly interested and ready. The dough is being rolled out, which is a step that forgives "
                    "mistakes: if it tears or becomes uneven, it can simply be folded and rolled again.\nThe woman "
                    "could hand him the rolling pin, stand behind him and guide the first strokes. The flour that is "
                    "spread on the table already keeps the dough from sticking, so he could soon go on by himself.",
                )
            ),
        ),
        Example(
            captions=_HARBOUR,
            instances=_HARBOUR_THINGS,
            reply=_dialogue(
                (
                    "What does the scene tell about how the day's work is going?",
                    "The light is that of early morning, and yet all three boats are tied up at the pier instead of "
                    "being out at sea. The man sits and repairs a net, which is done after a trip or when going out is "
                    "not worth it. As the water is calm, bad weather is hardly the reason for staying.\nIt is therefore "
                    "likely that the night's fishing is over, the catch has been landed, and the quiet work of "
                    "getting everything ready for the next trip has begun.",
                )
            ),
        ),
    ),
    rounds=1,
)

PROMPTS: dict[Kind, Prompt] = {"conversation": CONVERSATION, "detail": DETAIL, "reasoning": REASONING}
