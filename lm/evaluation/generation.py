"""What can be shown of an answer while its tokens come: whole characters, and no stop string.

talk = Talk(tokenizer, stop=("\\n",), max_tokens=50)
for token in ...:
    print(talk.add(token), end="")
    if talk.why: break                 # end, stop or length
"""

import codecs
import collections
import dataclasses
import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lm.config import schema
from lm.data import tokenizers
from lm.evaluation import decoding, scoring
from lm.parallel import mesh


class StreamingDecoder:
    """The text of one answer. A stop string may begin and end within tokens."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, stop: tuple[str, ...], max_tokens: int):
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


# MERGED DOCSTRING of lm.sample:
# """The two questions to a model: how likely is this answer, and what would you say?
#
#     score(run, device_mesh, params, prompts, answers)                          [Scored, ...]
# generate(run, device_mesh, params, prompts, tokenizer, Sampling(stop=("\n",))) [Generated, ...]
#     for said in stream(...same...): print(said.text, end="")                    token by token
#
# Prompts and answers are token ids; what runs on the devices is lm/evaluation/decoding.py. Tensor
# names end in
# their axes: B rows, T time, N tokens of a chunk.
# """

ROWS = 64  # prompts that are answered at a time


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    max_tokens: int = 128  # of an answer
    temperature: float = 0.0  # logits are divided by it; 0 takes the likeliest token
    top_k: int = 0  # of the likeliest tokens alone; 0: all
    top_p: float = 1.0  # of the fewest likeliest that hold this share (Holtzman et al. 2020)
    stop: tuple[str, ...] = ()  # strings before which an answer ends
    seed: int = 0


@dataclasses.dataclass
class GeneratedToken:
    prompt: int  # whose answer it belongs to
    token: int
    nats: float  # -log p under the model itself: temperature 1, all tokens
    text: str  # what can be shown now: whole characters that are no part of a stop string
    why: str = ""  # of the last token: end (tokenizer.end), stop (a stop string), length


@dataclasses.dataclass
class Generated:
    tokens: list[int]  # as they were said: with `end`, or what completes a stop string
    nats: list[float]  # of each; see Said
    text: str  # without the stop string
    why: str  # see Said
    n_cut: int = 0  # tokens cut off the left of the prompt


# --- What would you say? ---


def generate(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[Sequence[int]],
    tokenizer: tokenizers.Tokenizer,
    sampling: SamplingParams = SamplingParams(),
) -> list[Generated]:
    """An answer to each prompt; see `stream`."""
    context = run.data.seq_len
    found = [Generated([], [], "", "", max(0, len(p) - context)) for p in prompts]
    for said in stream(run, device_mesh, params, prompts, tokenizer, sampling):
        one = found[said.prompt]
        one.tokens.append(said.token)
        one.nats.append(said.nats)
        one.text, one.why = one.text + said.text, said.why
    return found


def stream(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[Sequence[int]],
    tokenizer: tokenizers.Tokenizer,
    sampling: SamplingParams = SamplingParams(),
) -> Iterator[GeneratedToken]:
    """The tokens of the answers as they come, those of several prompts in turns.

    An answer is a function of its prompt, the seed and how many equal prompts came before; not of
    the other prompts. Where the context, data.seq_len, is full, it goes on from its later half.
    ValueError for an empty prompt, or knobs that cannot work.
    """
    validate_sampling(sampling)
    scoring.validate_prompts(prompts)
    copies: collections.Counter[bytes] = collections.Counter()
    answers = []
    for i, prompt in enumerate(prompts):
        content = np.asarray(prompt, np.int32).tobytes()
        ids = [int(x) for x in prompt[-run.data.seq_len :]]
        said = StreamingDecoder(tokenizer, sampling.stop, sampling.max_tokens)
        answers.append(_Answer(i, ids, zlib.crc32(content), copies[content], said))
        copies[content] += 1
    answers.sort(key=lambda answer: -len(answer.ids))
    for start in range(0, len(answers), ROWS):
        here = answers[start : start + ROWS]
        yield from _answer(run, device_mesh, params, here, tokenizer, sampling)


def validate_sampling(sampling: SamplingParams) -> None:
    """ValueError for a knob that cannot work."""
    for name, is_good, rule in (
        ("max_tokens", sampling.max_tokens >= 1, "must be at least 1"),
        ("temperature", sampling.temperature >= 0, "must be at least 0"),
        ("top_k", sampling.top_k >= 0, "must be at least 0"),
        ("top_p", 0 < sampling.top_p <= 1, "is a share: above 0, up to 1"),
        ("stop", all(sampling.stop), "must hold no empty string"),
        ("seed", sampling.seed >= 0, "must be at least 0"),
    ):
        if not is_good:
            raise ValueError(f"{name}={getattr(sampling, name)!r} {rule}")


@dataclasses.dataclass
class _Answer:
    """One prompt, and what follows it so far."""

    prompt: int
    ids: list[int]  # the prompt, as much as the context has room for, and what was said
    crc: int  # of the prompt
    copy: int  # how many equal prompts came before
    decoder: StreamingDecoder

    def add(self, token: int, nats: float) -> GeneratedToken:
        self.ids.append(token)
        return GeneratedToken(self.prompt, token, nats, self.decoder.add(token), self.decoder.why)


def _answer(run, device_mesh, params, answers: list[_Answer], tokenizer, sampling) -> Iterator:
    """The answers of one batch of prompts, which are sorted by length, the longest first.

    Rows lie side by side so that all say their next token into the same slot: the last token of
    each prompt is in the same column. `cursor` is that column; slots are used again in turns.
    """
    context, longest = run.data.seq_len, len(answers[0].ids)
    split = mesh.n_batch_devices(device_mesh)
    size = split * scoring.next_power_of_two(-(-len(answers) // split))
    slots = min(scoring.next_power_of_two(longest + sampling.max_tokens, 32), context)
    knobs = (sampling.temperature > 0, sampling.top_k, sampling.top_p < 1, tokenizer.vocab_size)
    begin, resume, go_on = decoding.generation_programs(
        decoding.program_cache_key(run), device_mesh, slots, *knobs
    )
    here = mesh.local_rows(device_mesh, size)

    def place(**arrays) -> dict:
        """Arrays [answers, ...] -> [size, ...], split over the mesh."""
        split, placed = mesh.named_sharding(device_mesh, "batch"), {}
        for name, array in arrays.items():
            rows = np.concatenate(
                [array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)]
            )
            placed[name] = jax.make_array_from_process_local_data(split, rows[here])
        return placed

    def state() -> dict:
        return place(
            crc=np.array([one.crc for one in answers], np.uint32),
            copy=np.array([one.copy for one in answers], np.int32),
            n_said=np.array([one.decoder.n_said for one in answers], np.int32),
            token=np.array([one.ids[-1] for one in answers], np.int32),
            n_kept=n_kept.astype(np.int32),
            is_live=np.array([not one.decoder.why for one in answers]),
        )

    def prompt(rows: np.ndarray, most: int) -> tuple[dict, np.ndarray]:
        """The last tokens of the answers that are marked, each row's at its right end."""
        ids = [a.ids[-most:] if mark else [0] for a, mark in zip(answers, rows, strict=True)]
        lengths = np.array([len(one) for one in ids], np.int32)
        width = min(scoring.next_power_of_two(max(lengths), 32), slots)
        tokens_BT = np.zeros((len(ids), width), np.int32)
        for row, one in enumerate(ids):
            tokens_BT[row, width - len(one) :] = one
        return place(tokens=tokens_BT, length=lengths, is_new=rows), lengths

    how = {"seed": sampling.seed, "temperature": sampling.temperature, "top_p": sampling.top_p}
    n_kept = np.zeros(len(answers), int)  # tokens of each row that the cache holds
    everyone = np.ones(len(answers), bool)
    with jax.set_mesh(device_mesh):
        rows, n_kept = prompt(everyone, context)
        kept, said = begin(params, rows, state(), how)
    cursor, new = rows["tokens"].shape[1], everyone
    while True:
        token_BN, nats_BN = jax.device_get(said)
        for column in range(token_BN.shape[1]):
            for row, answer in enumerate(answers):
                if new[row] and not answer.decoder.why:
                    yield answer.add(int(token_BN[row, column]), float(nats_BN[row, column]))
        live = np.array([not one.decoder.why for one in answers])
        if not live.any():
            return
        new = live & (n_kept == context)
        with jax.set_mesh(device_mesh):
            if new.any():
                rows, lengths = prompt(new, max(1, context // 2))
                n_kept = np.where(new, lengths, n_kept)
                kept, said = resume(params, kept, rows, state(), how, cursor)
            else:
                left = max(one.decoder.n_left for one in answers if not one.decoder.why)
                n = min(decoding.CHUNK, left, context - n_kept[live].max())
                kept, said, n_done = go_on(params, kept, state(), how, cursor, n, tokenizer.end)
                said, n_done = jax.device_get((said, n_done))
                said = tuple(x_BN[:, :n_done] for x_BN in said)
                cursor, n_kept, new = cursor + n_done, n_kept + n_done, live
