"""The published response-format strings of LLaVA-1.5: the line after a question that says what form its answer has.

Models were trained on them byte for byte (table 7 of "Improved Baselines with Visual Instruction Tuning"), so they
are constants of the recipe. Each stands on a line of its own after the question.
"""

from __future__ import annotations

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
ONE_SENTENCE = "Provide a one-sentence caption for the provided image."
REGION_DESCRIPTION = "Provide a short description for this region."
REGION_BOX = "Provide the bounding box coordinate of the region this sentence describes."
