"""Lets a run's model go on with a text: as it comes, or a conversation where no --prompt is given.

uv run python -m experiments.sample --run=runs/quickstart/600K --prompt="def f("
uv run python -m experiments.sample --run=runs/quickstart/600K --temperature=0.8 --top_p=0.95
uv run python -m experiments.sample --run=runs/quickstart/600K --prompt="import " --n=4 --json
uv run python -m experiments.sample --run=runs/mine-instructed --template=chat --keep=prompts.jsonl
"""

import json
import math
import os
import signal
import sys

from absl import flags

from experiments.common import cli, console

_RUN = flags.DEFINE_string("run", None, "folder of the run")
_STEP = flags.DEFINE_integer("step", None, "checkpoint; the newest if not given")
_PROMPT = flags.DEFINE_string("prompt", None, "text to go on with; - reads it from the input")
_N = flags.DEFINE_integer("n", 1, "answers to a prompt", lower_bound=1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 200, "tokens of an answer")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token")
_TOP_K = flags.DEFINE_integer("top_k", 0, "draw from so many likeliest tokens; 0: all")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "draw from the fewest likeliest that hold this share")
_STOP = flags.DEFINE_multi_string("stop", [], "end before this string, may be repeated")
_TEMPLATE = flags.DEFINE_string("template", "", "of a model tuned on conversations, such as chat")
_KEEP = flags.DEFINE_string("keep", "", "file for prompts and answers, to be rated")
_SEED = flags.DEFINE_integer("seed", 0, "of the draws")
_JSON = flags.DEFINE_bool("json", False, "a line an answer: text, why it ended, each token's p")
_SHOW = flags.DEFINE_bool(
    "show_probabilities", False, "colour what is likely green, what is not red"
)

COLOURS = ((0.5, "green"), (0.1, "yellow"), (0.0, "red"))  # from this probability on


def main() -> int:
    import jax

    from lm.config import schema
    from lm.data import tokenizers
    from lm.data.sources import chat
    from lm.evaluation import generation
    from lm.parallel import mesh
    from lm.runs import records
    from lm.training import loaded_model

    if not _RUN.value:
        raise ValueError("--run=FOLDER is missing, such as --run=runs/quickstart/600K")
    if _TEMPLATE.value not in ("", *chat.TEMPLATES):
        raise ValueError(f"--template={_TEMPLATE.value} must be one of {', '.join(chat.TEMPLATES)}")
    if _KEEP.value and (_N.value > 1 or _JSON.value):
        raise ValueError(f"--keep={_KEEP.value} keeps one answer each: leave --n and --json out")
    stop = tuple(text.replace("\\n", "\n") for text in _STOP.value)
    stop += (chat.TEMPLATES[_TEMPLATE.value][1],) if _TEMPLATE.value else ()
    sampling = generation.SamplingParams(
        _MAX_TOKENS.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, stop, _SEED.value
    )
    generation.validate_sampling(sampling)
    if _N.value > 1 and not _TEMPERATURE.value:
        raise ValueError(f"--n={_N.value} answers would be equal: try --temperature=0.8")
    run = records.read_config(_RUN.value)
    prompt = sys.stdin.read() if _PROMPT.value == "-" else _PROMPT.value
    if _N.value == 1:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # one row cannot be split
    mesh.initialize_devices()
    run.mesh = schema.Mesh() if jax.default_backend() == "cpu" else run.mesh
    tokenizer = tokenizers.load_tokenizer(_RUN.value)
    program, saved = loaded_model.restore_model(run, _STEP.value)

    def answer(text: str) -> str:
        asked = chat.render_prompt(_TEMPLATE.value, text) if _TEMPLATE.value else text
        ids = _ids(tokenizer, asked, run.data.seq_len, begins=bool(_TEMPLATE.value))
        given = (run, program.mesh, saved["params"], [ids] * _N.value, tokenizer, sampling)
        if _JSON.value:
            for one in generation.generate(*given):
                shown = [
                    {"token": token, "text": tokenizer.decode([token]), "p": math.exp(-nats)}
                    for token, nats in zip(one.tokens, one.nats, strict=True)
                ]
                line = {"prompt": text, "text": one.text, "why": one.why, "tokens": shown}
                print(json.dumps(line, ensure_ascii=False), flush=True)
        elif _N.value > 1:
            for number, one in enumerate(generation.generate(*given), 1):
                console.print_line(f"--- {number}, {one.why}")
                console.print_line(text + one.text)
        else:
            console.print_fragment(text + ("\n" if _TEMPLATE.value else ""), "bold")
            pieces = []
            try:
                for said in generation.stream(*given):
                    colour = next(c for least, c in COLOURS if math.exp(-said.nats) >= least)
                    console.print_fragment(said.text, colour if _SHOW.value else "")
                    pieces.append(said.text)
            except KeyboardInterrupt:
                if prompt is not None or not pieces:
                    raise
            console.print_line("")
            if _KEEP.value:
                return chat.log_response(_KEEP.value, text, "".join(pieces), run.name)
        return ""

    if prompt is not None:
        answer(prompt)
    else:
        _converse(answer)
    return 0


def _ids(tokenizer, text: str, context: int, begins: bool) -> list[int]:
    """Of a prompt; none is the beginning of a document. ValueError if the context has no room."""
    ids = [int(i) for i in tokenizer.encode(text)]
    ids = [tokenizer.end, *ids] if begins or not ids else ids
    if len(ids) > context:
        raise ValueError(
            f"prompt of {len(ids)} tokens, more than data.seq_len={context} of this run: cut it"
        )
    return ids


def _converse(answer) -> None:
    """Prompt after prompt: Ctrl-C ends an answer, Ctrl-D the conversation.

    With --keep, which also keeps answers that were ended so, a line of + or - rates the last one,
    and "= text" says what it should have been.
    """
    import readline

    from lm.data.sources import chat

    readline.set_history_length(1000)  # lines can be edited, and called back by the arrows
    if sys.stdin.isatty():
        console.print_line("Ctrl-C stops an answer, Ctrl-D leaves.")
        if _KEEP.value:
            console.print_line(
                f"Kept in {_KEEP.value}. + or - rates the last answer, = TEXT mends it."
            )
    kept = ""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
            if not _KEEP.value or not (line in ("+", "-") or line.startswith("= ")):
                kept = answer(line)
            elif kept:
                chat.rate_response(_KEEP.value, kept, line == "+", line[2:])
            else:
                console.print_line("There is no answer to rate yet.")
        except KeyboardInterrupt:
            console.print_line("")
        except EOFError:
            return console.print_line("")
        except ValueError as error:
            console.print_line(str(error))


if __name__ == "__main__":
    cli.run_main(main)
