"""Detokenisers: each undoes what a corpus did to its text before it was published."""

import re

# What LM1B's tokenisation looks like, and the text it stands for; in this order, as in the published code.
_LM1B_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(https?) : / / ", r"\1://"),
        (r" '(\w)", r"'\1"),  # he 's; "do n't" has no space before its apostrophe and stays
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
    """LM1B's text, which has spaces around its punctuation, as it would be written."""
    for pattern, replacement in _LM1B_RULES:
        text = pattern.sub(replacement, text)
    return text


DETOKENIZERS = {"lm1b": detokenize_lm1b}
