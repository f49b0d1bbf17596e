"""What can be shown of an answer while its tokens come: whole characters, and no stop string.

talk = Talk(tokenizer, stop=("\\n",), max_tokens=50)
for token in ...:
    print(talk.add(token), end="")
    if talk.why: break                 # end, stop or length
"""

import codecs

from lm import tokens


class Talk:
    """The text of one answer. A stop string may begin and end within tokens."""

    def __init__(self, tokenizer: tokens.Tokenizer, stop: tuple[str, ...], max_tokens: int):
        self.pieces, self.end, self.n_left = tokenizer.pieces, tokenizer.end, max_tokens
        self.stops = [text.encode() for text in stop]
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = b""  # said, and perhaps the beginning of a stop string
        self.n_said, self.why = 0, ""

    def add(self, token: int) -> str:
        """What one more token lets be shown; sets `why` if it was the last."""
        self.n_said, self.n_left = self.n_said + 1, self.n_left - 1
        self.held += self.pieces[token]
        found = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            self.why, self.held = "stop", self.held[: min(found)]
        elif token == self.end:
            self.why = "end"
        elif not self.n_left:
            self.why = "length"
        open_at = len(self.held) if self.why else len(self.held) - self._n_open()
        shown, self.held = self.held[:open_at], self.held[open_at:]
        return self.decoder.decode(shown, final=bool(self.why))

    def _n_open(self) -> int:
        """Bytes at the end of what is held that a stop string may begin with."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        ends = range(min(longest, len(self.held)), 0, -1)
        return next((n for n in ends if any(s.startswith(self.held[-n:]) for s in self.stops)), 0)
