"""A tokenizer of whole words, for folders written by hand."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def word_tokenizer(rows: int, *more: str) -> PreTrainedTokenizerFast:
    """Ids 0 to ``rows`` - 1: begin, padding, end, unknown, then words w4, w5, ...; after them the tokens ``more``."""
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    vocabulary |= {f"w{number}": number for number in range(len(SPECIAL), rows)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    begin, pad, end, unknown = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=begin, pad_token=pad, eos_token=end, unk_token=unknown
    )
    if more:
        tokenizer.add_special_tokens({"extra_special_tokens": list(more)})
    return tokenizer
