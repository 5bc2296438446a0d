"""Detokenisers: functions that undo what a corpus did to its text before it was published."""

import re

# Patterns in LM1B's text and what replaces them. They are applied in this order, as in the published code.
_LM1B_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(https?) : / / ", r"\1://"),
        (r" '(\w)", r"'\1"),  # "he 's" becomes "he's"; "do n't" stays as it is
        (r" (\w+) \. ", r" \1. "),
        (r" (\w+) \.$", r" \1."),
        (r" \? ", "? "),
        (r" \?$", "?"),
        (r" ! ", "! "),
        (r" !$", "!"),
        (r" , ", ", "),
        (r" : ", ": "),
        (r" ; ", "; "),
        (r" / ", "/"),
        (r'" ([^"]+) "', r'"\1"'),
        (r"' ([^']+) '", r"'\1'"),
        (r"\( ([^()]+) \)", r"(\1)"),
        (r"\[ ([^\[\]]+) \]", r"[\1]"),
        (r"([$£]) ", r"\1"),
    ]
]


def detokenize_lm1b(text: str) -> str:
    """Remove the spaces that LM1B has around punctuation: "he 's here ." becomes "he's here."."""
    for pattern, replacement in _LM1B_RULES:
        text = pattern.sub(replacement, text)
    return text


DETOKENIZERS = {"lm1b": detokenize_lm1b}
