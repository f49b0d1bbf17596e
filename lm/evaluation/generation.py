"""Generate answers to prompts: sampling, streaming and stop strings.

    sampling = generation.SamplingParams(max_tokens=50, temperature=0.8, stop=("\\n",))
    answers = generation.generate(run, device_mesh, params, prompts, tokenizer, sampling)
    answers[0].text, answers[0].finish_reason
    for token in generation.stream(run, device_mesh, params, prompts, tokenizer, sampling):
        print(token.text, end="")

Prompts are token ids: see token_healing.encode_prompt. If a token of the vocabulary can span the
end of a prompt, the answer may begin inside of this token: see token_healing.py. decoding.py has
the compiled programs. Tensor names end in their axes: B rows, T time, N tokens of a chunk.
"""

import codecs
import collections
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from lm.config import fields, schema
from lm.data import tokenizers
from lm.evaluation import coverings, decoding, scoring
from lm.model import kv_cache
from lm.parallel import mesh

TEMPERATURES = (1e-3, 1e3)  # smallest and largest temperature other than 0
MAX_PROMPTS = 64  # largest number of prompts in one batch


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Options of generation."""

    max_tokens: int = 128  # largest number of tokens per answer
    temperature: float = 0.0  # divisor of the logits; 0 selects the most likely token
    top_k: int = 0  # sample from the k most likely tokens; 0: from all tokens
    top_p: float = 1.0  # sample from the fewest most likely tokens with this total probability
    stop: tuple[str, ...] = ()  # strings that end an answer and are removed from its text
    seed: int = 0


@dataclasses.dataclass
class GeneratedToken:
    """A streamed token of an answer."""

    prompt_index: int  # index of the prompt
    token: int  # token id
    nats: float  # -log p at temperature 1, over all tokens; a token that begins in the prompt: over
    # the tokens that contain the end of the prompt
    text: str  # text to print now: complete characters that cannot be part of a stop string
    finish_reason: str = ""  # last token only: end (tokenizer.end), stop (stop string) or length


@dataclasses.dataclass
class Generated:
    """An answer. str() returns its text."""

    tokens: list[int]  # all token ids, with tokenizer.end or the tokens of the stop string
    nats: list[float]  # of each token: see GeneratedToken
    text: str  # text without the stop string
    finish_reason: str  # end, stop or length: see GeneratedToken
    n_truncated: int = 0  # tokens removed from the beginning of the prompt

    def __str__(self) -> str:
        """Return the text."""
        return self.text


class StreamingDecoder:
    """Convert the tokens of one answer to text that can be printed.

    Text is delayed until its characters are complete and it cannot be part of a stop string. A stop
    string may begin and end inside of tokens.

        decoder = StreamingDecoder(tokenizer, stop=("\\n",), max_tokens=50)
        for token in ...:
            print(decoder.add(token), end="")
            if decoder.finish_reason:
                break                          # end, stop or length
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        stop: tuple[str, ...],
        max_tokens: int,
        starts_text: bool = False,
    ):
        """Begin an answer. starts_text: no text precedes the answer in its encoded text."""
        self.pieces, self.max_tokens = tokenizer.pieces, max_tokens
        self.ends = {tokenizer.end, *tokenizer.stops}
        self.has_extra_space = starts_text and tokenizer.adds_leading_space
        self.stops = [text.encode() for text in stop]
        self.utf8_decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.buffer = b""  # bytes that are not printed yet
        self.n_generated, self.finish_reason = 0, ""

    def add(self, token: int, n_prompt_bytes: int = 0) -> str:
        """Add a token and return the text to print. Set finish_reason if the token is the last.

        n_prompt_bytes: first bytes of the token that belong to the prompt.
        """
        self.n_generated += 1
        piece = self.pieces[token][n_prompt_bytes:]
        if piece and self.has_extra_space:
            piece, self.has_extra_space = piece.removeprefix(b" "), False
        self.buffer += piece
        positions = [p for stop in self.stops if (p := self.buffer.find(stop)) >= 0]
        if positions:
            self.finish_reason, self.buffer = "stop", self.buffer[: min(positions)]
        elif token in self.ends:
            self.finish_reason = "end"
        elif self.n_generated == self.max_tokens:
            self.finish_reason = "length"
        n_delayed = 0 if self.finish_reason else self._stop_prefix_size()
        n_printed = len(self.buffer) - n_delayed
        printed, self.buffer = self.buffer[:n_printed], self.buffer[n_printed:]
        return self.utf8_decoder.decode(printed, final=bool(self.finish_reason))

    def _stop_prefix_size(self) -> int:
        """Return the size in bytes of the longest buffer end that is the start of a stop string."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for size in range(min(longest, len(self.buffer)), 0, -1):
            if any(stop.startswith(self.buffer[-size:]) for stop in self.stops):
                return size
        return 0


def generate(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[Sequence[int]],
    tokenizer: tokenizers.Tokenizer,
    sampling: SamplingParams = SamplingParams(),
    on_progress: Callable[[], None] | None = None,
) -> list[Generated]:
    """Return an answer to each prompt: see `stream`. on_progress: called after each token."""
    context = run.data.seq_len
    answers = [Generated([], [], "", "", max(0, len(p) - context)) for p in prompts]
    for token in stream(run, device_mesh, params, prompts, tokenizer, sampling):
        answer = answers[token.prompt_index]
        answer.tokens.append(token.token)
        answer.nats.append(token.nats)
        answer.text += token.text
        answer.finish_reason = token.finish_reason
        if on_progress is not None:
            on_progress()
    return answers


def stream(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[Sequence[int]],
    tokenizer: tokenizers.Tokenizer,
    sampling: SamplingParams = SamplingParams(),
) -> Iterator[GeneratedToken]:
    """Yield the tokens of the answers; tokens of different prompts are interleaved.

    An answer depends on its prompt, the seed and the number of equal prompts before it, but not on
    the other prompts. When prompt and answer fill the context of data.seq_len tokens, generation
    continues from the second half of the context. Raises ValueError for an empty prompt or a
    sampling option that is out of range.
    """
    validate_sampling(sampling)
    scoring.validate_prompts(prompts)
    n_equal: collections.Counter[bytes] = collections.Counter()
    answers = []
    barriers = {tokenizer.start, tokenizer.end, *(tokenizer.marks or ())}
    for i, prompt in enumerate(prompts):
        content = np.asarray(prompt, np.int32).tobytes()
        ids = [int(x) for x in prompt[-run.data.seq_len :]]
        starts_text = ids[-1] in barriers
        decoder = StreamingDecoder(tokenizer, sampling.stop, sampling.max_tokens, starts_text)
        answers.append(_Answer(i, ids, zlib.crc32(content), n_equal[content], decoder))
        n_equal[content] += 1
    with jax.set_mesh(device_mesh):
        cast = decoding.cast_program(decoding.program_cache_key(run), device_mesh)
        model = (run, device_mesh, cast(params))
    yield from _heal_prompts(model, tokenizer, sampling, prompts, answers)
    answers = [answer for answer in answers if answer.is_active]
    answers.sort(key=lambda answer: -len(answer.ids))
    for start in range(0, len(answers), MAX_PROMPTS):
        batch = answers[start : start + MAX_PROMPTS]
        yield from _AnswerBatch(*model, batch, tokenizer, sampling).generate()


def _heal_prompts(
    model: tuple[schema.Run, jax.sharding.Mesh, dict],
    tokenizer: tokenizers.Tokenizer,
    sampling: SamplingParams,
    prompts: Sequence[Sequence[int]],
    answers: "list[_Answer]",
) -> Iterator[GeneratedToken]:
    """Yield the first tokens of the answers that begin inside of a token. answers: of `prompts`."""

    def select(i: int, log_p_N: np.ndarray) -> int:
        if not sampling.temperature:
            return int(log_p_N.argmax())
        rng = np.random.default_rng((sampling.seed, answers[i].prompt_crc, answers[i].copy_index))
        return sample_index(rng, log_p_N, sampling)

    for i, healed in coverings.heal_prompts(*model, tokenizer, prompts, select).items():
        answers[i].ids = healed.ids[:-1][-model[0].data.seq_len :]
        yield answers[i].add(healed.ids[-1], healed.nats, healed.n_tail_bytes)


def sample_index(rng: np.random.Generator, log_p_N: np.ndarray, sampling: SamplingParams) -> int:
    """Sample an index with the temperature, top_k and top_p of the sampling options."""
    order = np.argsort(-log_p_N, kind="stable")[: sampling.top_k or None]
    p = np.exp((log_p_N[order] - log_p_N.max()) / sampling.temperature)
    p /= p.sum()
    p = p[np.cumsum(p) - p < sampling.top_p]
    return int(rng.choice(order[: len(p)], p=p / p.sum()))


def validate_sampling(sampling: SamplingParams) -> None:
    """Raise ValueError if a sampling option is out of range."""
    low, high = TEMPERATURES
    is_temperature_valid = sampling.temperature == 0 or low <= sampling.temperature <= high
    for name, is_valid, rule in (
        (
            "max_tokens",
            1 <= sampling.max_tokens <= fields.MAX_INT,
            f"must be from 1 to {fields.MAX_INT}",
        ),
        ("temperature", is_temperature_valid, f"must be 0, or from {low} to {high}"),
        ("top_k", 0 <= sampling.top_k <= fields.MAX_INT, f"must be from 0 to {fields.MAX_INT}"),
        ("top_p", 0 < sampling.top_p <= 1, "must be above 0 and at most 1"),
        ("stop", all(sampling.stop), "must not contain an empty string"),
        ("seed", 0 <= sampling.seed <= fields.MAX_INT, f"must be from 0 to {fields.MAX_INT}"),
    ):
        if not is_valid:
            raise ValueError(f"{name}={getattr(sampling, name)!r} {rule}")


@dataclasses.dataclass
class _Answer:
    """A prompt and its answer during generation."""

    prompt_index: int
    ids: list[int]  # the prompt, truncated to the context, and the tokens generated after it
    prompt_crc: int  # CRC-32 of the prompt
    copy_index: int  # number of equal prompts before this prompt
    decoder: StreamingDecoder

    @property
    def is_active(self) -> bool:
        """Return True if the answer needs more tokens."""
        return not self.decoder.finish_reason

    def add(self, token: int, nats: float, n_prompt_bytes: int = 0) -> GeneratedToken:
        """Append a token and return it with its text, without bytes of the prompt."""
        self.ids.append(token)
        text = self.decoder.add(token, n_prompt_bytes)
        return GeneratedToken(self.prompt_index, token, nats, text, self.decoder.finish_reason)


class _AnswerBatch:
    """Generate several answers together, with one key-value cache on the devices.

    answers: sorted by prompt length, the longest first. Prompts are aligned to the right, so all
    rows write their next token into the same cache slot, `cursor`. The cache is a ring buffer.
    """

    def __init__(
        self,
        run: schema.Run,
        device_mesh: jax.sharding.Mesh,
        params: dict,
        answers: list[_Answer],
        tokenizer: tokenizers.Tokenizer,
        sampling: SamplingParams,
    ):
        self.device_mesh, self.params, self.answers = device_mesh, params, answers
        self.context, self.end = run.data.seq_len, tokenizer.end
        self.max_tokens = sampling.max_tokens
        n_devices = mesh.n_batch_devices(device_mesh)
        rows_per_device = decoding.next_power_of_two(-(-len(answers) // n_devices))
        self.n_rows = n_devices * rows_per_device
        longest = len(answers[0].ids) + sampling.max_tokens
        self.options = decoding.ProgramOptions(
            n_slots=min(decoding.next_power_of_two(longest, 32), self.context),
            is_random=sampling.temperature > 0,
            top_k=sampling.top_k,
            has_top_p=sampling.top_p < 1,
            n_ids=tokenizer.vocab_size,
        )
        self.programs = decoding.generation_programs(
            decoding.program_cache_key(run), device_mesh, self.options
        )
        self.scalars = {
            "seed": sampling.seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        self.n_cached = np.zeros(len(answers), int)  # tokens of each answer in the cache
        self.cursor = 0
        self.cache: kv_cache.KVCache = []

    def generate(self) -> Iterator[GeneratedToken]:
        """Yield tokens until every answer has a finish reason."""
        is_sampled = np.ones(len(self.answers), bool)  # answers that receive the sampled tokens
        sampled = self._prefill()
        while True:
            yield from self._add_tokens(sampled, is_sampled)
            is_active = np.array([answer.is_active for answer in self.answers])
            if not is_active.any():
                return
            is_full = is_active & (self.n_cached == self.context)
            if is_full.any():
                is_sampled, sampled = is_full, self._reprefill(is_full)
            else:
                is_sampled, sampled = is_active, self._decode_chunk(is_active)

    def _prefill(self) -> decoding.SampledTokens:
        """Fill the cache from all prompts. Return the first token of each answer."""
        is_new = np.ones(len(self.answers), bool)
        with jax.set_mesh(self.device_mesh):
            rows, self.n_cached = self._prompt_arrays(is_new, self.context)
            self.cache, sampled = self.programs.prefill(
                self.params, rows, self._state_arrays(), self.scalars
            )
        self.cursor = rows["tokens"].shape[1]
        return sampled

    def _reprefill(self, is_full: np.ndarray) -> decoding.SampledTokens:
        """Restart full answers from the second half of their context. Return their next token."""
        with jax.set_mesh(self.device_mesh):
            rows, lengths = self._prompt_arrays(is_full, max(1, self.context // 2))
            self.n_cached = np.where(is_full, lengths, self.n_cached)
            self.cache, sampled = self.programs.reprefill(
                self.params, self.cache, rows, self._state_arrays(), self.scalars, self.cursor
            )
        return sampled

    def _decode_chunk(self, is_active: np.ndarray) -> decoding.SampledTokens:
        """Return the next tokens of each answer, until a row is full or all have ended."""
        n_generated = min(a.decoder.n_generated for a in self.answers if a.is_active)
        room = self.context - int(self.n_cached[is_active].max())
        n_tokens = min(decoding.CHUNK_SIZE, self.max_tokens - n_generated, room)
        with jax.set_mesh(self.device_mesh):
            arrays = (self._state_arrays(), self.scalars, self.cursor, n_tokens, self.end)
            self.cache, sampled, n_filled = self.programs.decode_chunk(
                self.params, self.cache, *arrays
            )
            (token_BN, nats_BN), n_filled = jax.device_get((sampled, n_filled))
        self.cursor += int(n_filled)
        self.n_cached = self.n_cached + int(n_filled)
        return token_BN[:, :n_filled], nats_BN[:, :n_filled]

    def _add_tokens(
        self, sampled: decoding.SampledTokens, is_sampled: np.ndarray
    ) -> Iterator[GeneratedToken]:
        """Append sampled tokens to the active answers in is_sampled and yield them."""
        token_BN, nats_BN = jax.device_get(sampled)
        for column in range(token_BN.shape[1]):
            for row, answer in enumerate(self.answers):
                if is_sampled[row] and answer.is_active:
                    yield answer.add(int(token_BN[row, column]), float(nats_BN[row, column]))

    def _prompt_arrays(self, is_new: np.ndarray, max_length: int) -> tuple[dict, np.ndarray]:
        """Return decoding's `rows` and the lengths: the last tokens of the answers in is_new."""
        ids = [
            answer.ids[-max_length:] if selected else [0]
            for answer, selected in zip(self.answers, is_new, strict=True)
        ]
        lengths = np.array([len(row) for row in ids], np.int32)
        width = min(decoding.next_power_of_two(max(lengths), 32), self.options.n_slots)
        tokens_BT = np.zeros((len(ids), width), np.int32)
        for i, row in enumerate(ids):
            tokens_BT[i, width - len(row) :] = row
        return self._shard_rows(tokens=tokens_BT, length=lengths, is_new=is_new), lengths

    def _state_arrays(self) -> dict:
        """Return decoding's `state`."""
        answers = self.answers
        return self._shard_rows(
            prompt_crc=np.array([answer.prompt_crc for answer in answers], np.uint32),
            copy_index=np.array([answer.copy_index for answer in answers], np.int32),
            n_generated=np.array([answer.decoder.n_generated for answer in answers], np.int32),
            last_token=np.array([answer.ids[-1] for answer in answers], np.int32),
            n_cached=self.n_cached.astype(np.int32),
            is_active=np.array([answer.is_active for answer in answers]),
        )

    def _shard_rows(self, **arrays: np.ndarray) -> dict:
        """Pad arrays [answers, ...] with zeros to [n_rows, ...] and split them over the mesh."""
        sharding = mesh.named_sharding(self.device_mesh, "batch")
        local_rows, sharded = mesh.local_rows(self.device_mesh, self.n_rows), {}
        for name, array in arrays.items():
            padding = np.zeros((self.n_rows - len(array), *array.shape[1:]), array.dtype)
            rows = np.concatenate([array, padding])[local_rows]
            sharded[name] = jax.make_array_from_process_local_data(sharding, rows)
        return sharded
