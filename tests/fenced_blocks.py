"""Fenced blocks of Markdown, as CommonMark reads them."""

import re


def blocks(text):
    """(language, content) of each fenced block, as CommonMark reads them: a fence ends at one as long, or longer."""
    found, fence = [], None
    for line in text.splitlines(keepends=True):
        match = re.fullmatch(r" {0,3}(`{3,})([^`\n]*)\n?", line)
        if fence is None and match:
            fence = len(match[1])
            found.append([match[2].strip(), ""])
        elif fence is not None and match and len(match[1]) >= fence and not match[2].strip():
            fence = None
        elif fence is not None:
            found[-1][1] += line
    assert fence is None, "a block that never ends"
    return [tuple(block) for block in found]
