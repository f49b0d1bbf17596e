"""The two questions to a model: how likely is this answer, and what would you say?

    score(run, device_mesh, params, prompts, answers)                          [Scored, ...]
    generate(run, device_mesh, params, prompts, tokenizer, Sampling(stop=("\n",)))  [Generated, ...]
    for said in stream(...same...): print(said.text, end="")                    token by token

Prompts and answers are token ids. Tensor names end in their axes: B rows, T time, S slot, V
vocabulary, N tokens of a chunk.
"""

import bisect
import codecs
import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm import cache, config, mesh, model, tokens

ROWS = 64  # prompts that are answered at a time
CHUNK = 16  # tokens that are said before the host looks at them


@dataclasses.dataclass
class Scored:
    nats: np.ndarray  # float64 [n]: -log p of each token of the answer
    is_greedy: bool  # whether each is the likeliest
    n_cut: int = 0  # tokens cut off the left of the prompt, for which the context has no room


@dataclasses.dataclass(frozen=True)
class Sampling:
    max_tokens: int = 128  # of an answer
    temperature: float = 0.0  # logits are divided by it; 0 takes the likeliest token
    top_k: int = 0  # of the likeliest tokens alone; 0: all
    top_p: float = 1.0  # of the fewest likeliest that hold this share (Holtzman et al. 2020)
    stop: tuple[str, ...] = ()  # strings before which an answer ends
    seed: int = 0


@dataclasses.dataclass
class Said:
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


# --- How likely is this answer? ---


def score(
    run: config.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> list[Scored]:
    """The nats of each answer after its prompt.

    Equal prompts are computed once: a row holds a prompt and then all of its answers, each of which
    sees the prompt and itself alone, and as many such items as fit. One program a call, whose row
    length is a power of two or data.seq_len. ValueError for an empty prompt, or an answer longer
    than data.seq_len.
    """
    context = run.data.seq_len
    found: list[Scored | None] = [None] * len(prompts)
    items: dict[tuple[int, ...], list[int]] = {}  # prompt, as long as there is room -> its answers
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not len(prompt):
            raise ValueError(f"prompts[{i}] is empty: begin it with the tokenizer's end")
        if len(answer) > context:
            raise ValueError(
                f"answers[{i}] has {len(answer)} tokens, more than data.seq_len={context}: cut it"
            )
        room = context + 1 - len(answer)
        found[i] = Scored(np.zeros(0), True, max(0, len(prompt) - room))
        if len(answer):
            items.setdefault(tuple(int(x) for x in prompt[-room:]), []).append(i)
    pieces = [piece for item in items.items() for piece in _pieces(*item, answers, context)]
    if not pieces:
        return [one for one in found if one]

    # Four items a row, so that little of it stays empty; the longest fit anyway.
    length = min(_power_of_two(4 * max(p.length for p in pieces)), context)
    rows = _packed(pieces, length)
    split = device_mesh.shape["data"] * device_mesh.shape["fsdp"]
    size = split * max(1, run.data.batch_size * context // length // split)
    size = min(size, split * _power_of_two(-(-len(rows) // split), least=1))
    program = _scorer(_key(run.model), device_mesh)
    for start in range(0, len(rows), size):
        batch, places = _arrays(rows[start : start + size], answers, size, length)
        here = {name: array[mesh.rows_here(size)] for name, array in batch.items()}
        with jax.set_mesh(device_mesh):
            said = program(params, mesh.place(device_mesh, here))
        nats_BT, is_best_BT = jax.device_get(said)
        for i, row, place in places:
            span = slice(place, place + len(answers[i]))
            scored = found[i]
            assert scored
            scored.nats = nats_BT[row, span].astype(np.float64)
            scored.is_greedy = bool(is_best_BT[row, span].all())
    return [one for one in found if one]


@dataclasses.dataclass
class _Piece:
    """A prompt and as many of its answers as have room in a row with it."""

    prompt: tuple[int, ...]
    answers: list[int]
    length: int


def _pieces(prompt, mine: list[int], answers, context: int) -> Iterator[_Piece]:
    """The last token of a prompt is read once an answer: it is what the first token follows."""
    piece = _Piece(prompt, [], len(prompt) - 1)
    for i in mine:
        if piece.answers and piece.length + len(answers[i]) > context:
            yield piece
            piece = _Piece(prompt, [], len(prompt) - 1)
        piece.answers.append(i)
        piece.length += len(answers[i])
    yield piece


def _packed(pieces: list[_Piece], length: int) -> list[list[_Piece]]:
    """Rows of pieces: the longest first, each where the least room is left (best fit)."""
    rows, room = [], []  # room: sorted (tokens left, row)
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        at = bisect.bisect_left(room, (piece.length, -1))
        left, row = room.pop(at) if at < len(room) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        bisect.insort(room, (left - piece.length, row))
    return rows


def _arrays(rows, answers, size: int, length: int) -> tuple[dict, list[tuple[int, int, int]]]:
    """The arrays of packed rows, int32 [size, length], and (answer, row, place) of each answer.

    segments: of one prompt, or one answer; roots: the segment of the prompt that it follows;
    times: places in the text of a prompt with one answer.
    """
    names = ("tokens", "targets", "times", "segments", "roots")
    batch = {name: np.zeros((size, length), np.int32) for name in names}
    places = []
    for row, pieces in enumerate(rows):
        at, segment = 0, 0
        for piece in pieces:
            root, trunk = segment + 1, len(piece.prompt) - 1
            parts = [(piece.prompt[:-1], None, 0)]
            parts += [((piece.prompt[-1], *answers[i][:-1]), i, trunk) for i in piece.answers]
            for ids, answer, time in parts:
                segment += 1
                span = slice(at, at + len(ids))
                batch["tokens"][row, span] = ids
                batch["times"][row, span] = np.arange(time, time + len(ids))
                batch["segments"][row, span] = segment
                batch["roots"][row, span] = root
                if answer is not None:
                    batch["targets"][row, span] = answers[answer]
                    places.append((answer, row, at))
                at += len(ids)
    return batch, places


@functools.cache
def _scorer(key: str, device_mesh: jax.sharding.Mesh) -> Callable:
    """jit of (params, batch of _arrays) -> nats_BT of the targets, whether each is likeliest."""
    shape = _shape(key)

    def score(params: dict, batch: dict):
        segments_BT, roots_BT, t = batch["segments"], batch["roots"], batch["tokens"].shape[1]
        own_BTS = segments_BT[:, :, None] == segments_BT[:, None]
        trunk_BTS = roots_BT[:, :, None] == segments_BT[:, None]
        seen_BTS = (own_BTS | trunk_BTS) & (jnp.arange(t)[:, None] >= jnp.arange(t))
        logits_BTV, _ = cache.reader(shape, params)(batch["tokens"], batch["times"], seen_BTS)
        nats_BT, _ = model.nats(logits_BTV, batch["targets"])
        return nats_BT, jnp.argmax(logits_BTV, axis=-1) == batch["targets"]

    return jax.jit(score, out_shardings=mesh.sharding(device_mesh))


# --- What would you say? ---


def generate(
    run: config.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[Sequence[int]],
    tokenizer: tokens.Tokenizer,
    sampling: Sampling = Sampling(),
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
    run: config.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[Sequence[int]],
    tokenizer: tokens.Tokenizer,
    sampling: Sampling = Sampling(),
) -> Iterator[Said]:
    """The tokens of the answers as they come, those of several prompts in turns.

    An answer is a function of its prompt, the seed and how many equal prompts came before; not of
    the other prompts. Where the context, data.seq_len, is full, it goes on from its later half.
    ValueError for an empty prompt, or knobs that cannot work.
    """
    check(sampling)
    copies: dict[bytes, int] = {}
    talks = []
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompts[{i}] is empty: begin it with the tokenizer's end")
        content = np.asarray(prompt, np.int32).tobytes()
        copies[content] = copies.get(content, -1) + 1
        ids = [int(x) for x in prompt[-run.data.seq_len :]]
        talks.append(_Talk(i, ids, zlib.crc32(content), copies[content], tokenizer, sampling))
    talks.sort(key=lambda talk: -len(talk.ids))
    for start in range(0, len(talks), ROWS):
        yield from _answers(
            run, device_mesh, params, talks[start : start + ROWS], tokenizer, sampling
        )


def check(sampling: Sampling) -> None:
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


class _Talk:
    """One prompt, what was said so far, and what of it can be shown."""

    def __init__(self, prompt: int, ids: list[int], crc: int, copy: int, tokenizer, sampling):
        self.prompt, self.ids, self.crc, self.copy = prompt, ids, crc, copy
        self.pieces, self.end, self.max_tokens = (
            tokenizer.pieces,
            tokenizer.end,
            sampling.max_tokens,
        )
        self.stops = [text.encode() for text in sampling.stop]
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held, self.n_said, self.why = b"", 0, ""

    def add(self, token: int, nats: float) -> Said:
        self.ids.append(token)
        self.n_said += 1
        self.held += self.pieces[token]
        at = min((i for stop in self.stops if (i := self.held.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.why, self.held = "stop", self.held[:at]
        elif token == self.end:
            self.why = "end"
        elif self.n_said == self.max_tokens:
            self.why = "length"
        keep = 0 if self.why else self._n_open()
        show, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        text = self.decoder.decode(show, final=bool(self.why))
        return Said(self.prompt, token, nats, text, self.why)

    def _n_open(self) -> int:
        """Bytes at the end of what is held that may be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for n in range(min(longest, len(self.held)), 0, -1):
            if any(stop.startswith(self.held[-n:]) for stop in self.stops):
                return n
        return 0


def _answers(run, device_mesh, params, talks: list[_Talk], tokenizer, sampling) -> Iterator[Said]:
    """The answers of one batch of prompts, which are sorted by length, the longest first.

    Rows lie side by side so that all say their next token into the same slot: the last token of
    each prompt is in the same column. `cursor` is that column; slots are used again in turns.
    """
    context, longest = run.data.seq_len, len(talks[0].ids)
    split = device_mesh.shape["data"] * device_mesh.shape["fsdp"]
    size = split * _power_of_two(-(-len(talks) // split), least=1)
    slots = min(_power_of_two(longest + sampling.max_tokens), context)
    knobs = (sampling.temperature > 0, sampling.top_k, sampling.top_p < 1, tokenizer.vocab_size)
    begin, resume, go_on = _speakers(_key(run.model), device_mesh, slots, *knobs)
    here = mesh.rows_here(size)

    def place(**arrays) -> dict:
        """Arrays [talks, ...] -> [size, ...], split over the mesh."""
        split, placed = mesh.sharding(device_mesh, "batch"), {}
        for name, array in arrays.items():
            rows = np.concatenate(
                [array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)]
            )
            placed[name] = jax.make_array_from_process_local_data(split, rows[here])
        return placed

    def state() -> dict:
        return place(
            crc=np.array([talk.crc for talk in talks], np.uint32),
            copy=np.array([talk.copy for talk in talks], np.int32),
            n_said=np.array([talk.n_said for talk in talks], np.int32),
            token=np.array([talk.ids[-1] for talk in talks], np.int32),
            n_kept=n_kept.astype(np.int32),
            is_live=np.array([not talk.why for talk in talks]),
        )

    def prompt(rows: np.ndarray, most: int) -> tuple[dict, np.ndarray]:
        """The last tokens of the talks that are marked, each row's at its right end."""
        ids = [t.ids[-most:] if mark else [0] for t, mark in zip(talks, rows, strict=True)]
        lengths = np.array([len(one) for one in ids], np.int32)
        width = min(_power_of_two(max(lengths)), slots)
        tokens_BT = np.zeros((len(ids), width), np.int32)
        for row, one in enumerate(ids):
            tokens_BT[row, width - len(one) :] = one
        return place(tokens=tokens_BT, length=lengths, is_new=rows), lengths

    how = {"seed": sampling.seed, "temperature": sampling.temperature, "top_p": sampling.top_p}
    n_kept = np.zeros(len(talks), int)  # tokens of each row that the cache holds
    everyone = np.ones(len(talks), bool)
    with jax.set_mesh(device_mesh):
        rows, n_kept = prompt(everyone, context)
        kept, said = begin(params, rows, state(), how)
    cursor, new = rows["tokens"].shape[1], everyone
    while True:
        token_BN, nats_BN = jax.device_get(said)
        for column in range(token_BN.shape[1]):
            for row, talk in enumerate(talks):
                if new[row] and not talk.why:
                    yield talk.add(int(token_BN[row, column]), float(nats_BN[row, column]))
        live = np.array([not talk.why for talk in talks])
        if not live.any():
            return
        new = live & (n_kept == context)
        with jax.set_mesh(device_mesh):
            if new.any():
                rows, lengths = prompt(new, max(1, context // 2))
                n_kept = np.where(new, lengths, n_kept)
                kept, said = resume(params, kept, rows, state(), how, cursor)
            else:
                left = max(talk.max_tokens - talk.n_said for talk in talks if not talk.why)
                n = min(CHUNK, left, context - n_kept[live].max())
                kept, said, n_done = go_on(params, kept, state(), how, cursor, n, tokenizer.end)
                said, n_done = jax.device_get((said, n_done))
                said = tuple(x_BN[:, :n_done] for x_BN in said)
                cursor, n_kept, new = cursor + n_done, n_kept + n_done, live


@functools.cache
def _speakers(
    key: str, device_mesh, slots: int, is_random: bool, top_k: int, has_top_p: bool, n_ids: int
) -> tuple[Callable, Callable, Callable]:
    """Compiled: begin (read prompts), resume (read some rows anew), go_on (say up to CHUNK)."""
    shape = _shape(key)
    ids_V = np.arange(shape.vocab_size)

    def choose(logits_BV, row_keys, n_said_B, how: dict) -> tuple[jax.Array, jax.Array]:
        """The next token of each row and its nats."""
        choices_BV = jnp.where(ids_V < n_ids, logits_BV, model.MASKED)
        if is_random:
            choices_BV = choices_BV / how["temperature"]
            if 0 < top_k < shape.vocab_size:
                least_B1 = jax.lax.top_k(choices_BV, top_k)[0][:, -1:]
                choices_BV = jnp.where(choices_BV >= least_B1, choices_BV, model.MASKED)
            if has_top_p:
                sorted_BV = jnp.sort(choices_BV, axis=-1, descending=True)
                share_BV = jax.nn.softmax(sorted_BV, axis=-1)
                is_needed_BV = jnp.cumsum(share_BV, axis=-1) - share_BV < how["top_p"]
                least_B1 = jnp.where(is_needed_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
                choices_BV = jnp.where(choices_BV >= least_B1, choices_BV, model.MASKED)
            keys = jax.vmap(jax.random.fold_in)(row_keys, n_said_B)
            token_B = jax.vmap(jax.random.categorical)(keys, choices_BV)
        else:
            token_B = jnp.argmax(choices_BV, axis=-1)
        nats_B1, _ = model.nats(logits_BV[:, None], token_B[:, None])
        return token_B.astype(jnp.int32), nats_B1[:, 0]

    def row_keys(state: dict, how: dict):
        fold = jax.vmap(lambda key, n: jax.random.fold_in(key, n), in_axes=(None, 0))
        keys = fold(jax.random.key(how["seed"]), state["crc"])
        return jax.vmap(jax.random.fold_in)(keys, state["copy"])

    def begin(params: dict, rows: dict, state: dict, how: dict):
        tokens_BT, length_B = rows["tokens"], rows["length"]
        t = tokens_BT.shape[1]
        times_BT = jnp.arange(t) - (t - length_B[:, None])
        seen_BTS = (jnp.arange(t)[:, None] >= jnp.arange(t)) & (times_BT >= 0)[:, None]
        read = cache.reader(shape, params)
        logits_B1V, kept = read(tokens_BT, times_BT, seen_BTS, last=True)
        token_B, nats_B = choose(logits_B1V[:, 0], row_keys(state, how), state["n_said"], how)
        return cache.grown(kept, slots), (token_B[:, None], nats_B[:, None])

    def resume(params: dict, kept: cache.Kept, rows: dict, state: dict, how: dict, cursor):
        fresh, said = begin(params, rows, state, how)
        shift = cursor - rows["tokens"].shape[1]
        return cache.replaced(kept, fresh, rows["is_new"], shift), said

    def go_on(params: dict, kept: cache.Kept, state: dict, how: dict, cursor, n, end):
        read, keys = cache.reader(shape, params), row_keys(state, how)
        rows = state["token"].shape[0]

        def goes_on(carry):
            i, _, _, is_live_B, _, _ = carry
            return (i < n) & is_live_B.any()

        def say(carry):
            i, kept, token_B, is_live_B, token_BN, nats_BN = carry
            slot = (cursor + i) % slots
            age_S = (slot - jnp.arange(slots)) % slots  # 0: the token itself
            times_B1 = (state["n_kept"] + i)[:, None]
            seen_B1S = (age_S <= times_B1)[:, None]
            logits_B1V, kept = read(token_B[:, None], times_B1, seen_B1S, kept, slot)
            token_B, nats_B = choose(logits_B1V[:, 0], keys, state["n_said"] + i, how)
            is_live_B &= token_B != end
            token_BN, nats_BN = token_BN.at[:, i].set(token_B), nats_BN.at[:, i].set(nats_B)
            return i + 1, kept, token_B, is_live_B, token_BN, nats_BN

        empty = jnp.zeros((rows, CHUNK), jnp.int32), jnp.zeros((rows, CHUNK), jnp.float32)
        carry = (0, kept, state["token"], state["is_live"], *empty)
        i, kept, _, _, token_BN, nats_BN = jax.lax.while_loop(goes_on, say, carry)
        return kept, (token_BN, nats_BN), i

    everywhere = mesh.sharding(device_mesh)
    kept = mesh.sharding(device_mesh, "batch", "kv_heads", None, None)
    return (
        jax.jit(begin, out_shardings=(kept, everywhere)),
        jax.jit(resume, out_shardings=(kept, everywhere), donate_argnums=1),
        jax.jit(go_on, out_shardings=(kept, everywhere, everywhere), donate_argnums=1),
    )


def _power_of_two(n: int, least: int = 32) -> int:
    """The smallest that is not below n: few lengths, few programs."""
    return max(least, 1 << (int(n) - 1).bit_length())


def _key(shape: config.Model) -> str:
    """What a compiled program of this model can be found again by."""
    return json.dumps(dataclasses.asdict(shape))


def _shape(key: str) -> config.Model:
    return config.from_dict(json.loads(key), config.Model)
