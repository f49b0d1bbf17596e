"""Generate text with the model of a run, for one prompt or in a conversation.

uv run python -m experiments.sample --run=runs/quickstart/600K --prompt="def f("
uv run python -m experiments.sample --run=runs/quickstart/600K --temperature=0.8 --top_p=0.95
uv run python -m experiments.sample --run=runs/quickstart/600K --prompt="import " --n=4 \\
    --temperature=0.8 --json
uv run python -m experiments.sample --run=runs/tuned/quickstart-100K-instructed --template=chat \\
    --feedback_file=feedback.jsonl

Without --prompt, the command reads prompts from the terminal. --template=chat is for runs that were
tuned on conversations. It adds the tokens of the template, so the prompt is the text of the user.
"""

import json
import math
import os
import signal
import sys
from typing import Any, NamedTuple

from absl import flags

from experiments.common import cli, console, flag_checks, next_command

_RUN = flags.DEFINE_string("run", None, "folder of the run")
_ALLOW = cli.allow_path_flag()
_STEP = flags.DEFINE_integer("step", None, "step of the checkpoint; default: the last")
_PROMPT = flags.DEFINE_string(
    "prompt", None, "text to continue; - reads it from standard input; default: a conversation"
)
_N = flags.DEFINE_integer("n", 1, "answers per prompt", 1, 10_000)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 200, "largest number of tokens per answer")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "divisor of the logits; 0 selects the most likely token"
)
_TOP_K = flags.DEFINE_integer("top_k", 0, "sample from the k most likely tokens; 0: from all")
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "sample from the fewest most likely tokens with this total probability"
)
_STOP = flags.DEFINE_multi_string("stop", [], "string that ends an answer; may be repeated")
_TEMPLATE = flags.DEFINE_string(
    "template", "", "chat template of a model trained on conversations, such as chat"
)
_FEEDBACK_FILE = flags.DEFINE_string(
    "feedback_file", "", "file that stores prompts, answers and your ratings"
)
_SEED = flags.DEFINE_integer("seed", 0, "random seed of sampling")
_JSON = flags.DEFINE_bool(
    "json", False, "print one JSON line per answer: text, finish_reason, probability of each token"
)
_SHOW = flags.DEFINE_bool(
    "show_probabilities",
    False,
    "color tokens by their probability: from 0.5 green, 0.1 yellow, lower red",
)

COLORS = ((0.5, "green"), (0.1, "yellow"), (0.0, "red"))  # smallest probability -> color


class Model(NamedTuple):
    """Everything that generates answers."""

    run: Any  # schema.Run
    mesh: Any  # jax.sharding.Mesh
    params: dict
    tokenizer: Any  # tokenizers.Tokenizer
    sampling: Any  # generation.SamplingParams


def main() -> int:
    run = cli.load_run(_RUN.value, _ALLOW.value)  # before JAX is imported
    sampling = _sampling_params()
    prompt = _read_prompt() if _PROMPT.value == "-" else _PROMPT.value
    model = _load_model(run, sampling)
    if prompt is None:
        _converse(model)
    elif _JSON.value or _N.value > 1:
        _print_answers(model, prompt)
    else:
        _stream_answer(model, prompt)
    if not _JSON.value:
        next_command.print_next("evaluate", f"--run={_RUN.value}")
        if _FEEDBACK_FILE.value:
            console.print_line(f"answers: {_FEEDBACK_FILE.value}")
    return 0


def _read_prompt() -> str:
    """Return the text of the standard input. Raises ValueError that names the flag."""
    try:
        text = sys.stdin.read()
        text.encode()  # depending on the locale, invalid bytes are surrogates
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(
            f"--prompt=-: position {error.start} of the standard input is not UTF-8: convert the"
            " text, such as by iconv"
        ) from None
    return text


def _sampling_params():
    """Return the sampling options of the flags. Raises ValueError for flags that cannot work."""
    from lm.data.sources import chat
    from lm.evaluation import generation

    if _TEMPLATE.value not in ("", *chat.TEMPLATES):
        raise ValueError(f"--template={_TEMPLATE.value} must be one of {', '.join(chat.TEMPLATES)}")
    if _FEEDBACK_FILE.value:
        flag_checks.check_output_file("feedback_file", _FEEDBACK_FILE.value)
    if _FEEDBACK_FILE.value and (_N.value > 1 or _JSON.value):
        raise ValueError(
            f"--feedback_file={_FEEDBACK_FILE.value} stores one answer per prompt:"
            " remove --n and --json"
        )
    stop = tuple(text.replace("\\n", "\n") for text in _STOP.value)
    stop += (chat.TEMPLATES[_TEMPLATE.value][1],) if _TEMPLATE.value else ()
    sampling = generation.SamplingParams(
        _MAX_TOKENS.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, stop, _SEED.value
    )
    generation.validate_sampling(sampling)
    if _N.value > 1 and not _TEMPERATURE.value:
        raise ValueError(f"--n={_N.value} answers would be equal: add --temperature=0.8")
    return sampling


def _load_model(run, sampling) -> Model:
    """Load the model of a run on the devices of this machine; on CPU it is not sharded."""
    from lm.data import evaluation_text
    from lm.parallel import mesh
    from lm.training import loaded_model

    if _N.value == 1:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")  # one row cannot be split
    mesh.initialize_devices()
    tokenizer = evaluation_text.load_run_tokenizer(run)
    run = loaded_model.fit_to_devices(run)
    program, state = loaded_model.restore_model(run, _STEP.value)
    return Model(run, program.mesh, state["params"], tokenizer, sampling)


def _generation_arguments(model: Model, text: str) -> tuple:
    """Return the arguments of generation.generate for --n answers to a prompt.

    Raises ValueError if the prompt has more tokens than the context of the model.
    """
    from lm.data.sources import chat
    from lm.data.tokenization import token_healing

    prompt = chat.render_prompt(_TEMPLATE.value, text) if _TEMPLATE.value else text
    context, tokenizer = model.run.data.seq_len, model.tokenizer
    ids = token_healing.encode_prompt(tokenizer, prompt)
    if len(ids) > context:
        raise ValueError(
            f"prompt of {len(ids)} tokens, more than data.seq_len={context} of this run: shorten it"
        )
    return model.run, model.mesh, model.params, [ids] * _N.value, tokenizer, model.sampling


def _print_answers(model: Model, text: str) -> None:
    """Print the answers to a prompt: as JSON lines with --json, else with a heading each."""
    from lm.evaluation import generation

    answers = generation.generate(*_generation_arguments(model, text))
    for number, answer in enumerate(answers, 1):
        if not _JSON.value:
            console.print_line(f"--- {number}, {answer.finish_reason}")
            console.print_line(text + answer.text)
            continue
        tokens = [
            {"token": token, "text": model.tokenizer.decode([token]), "p": math.exp(-nats)}
            for token, nats in zip(answer.tokens, answer.nats, strict=True)
        ]
        line = {"prompt": text, "text": answer.text}
        line |= {"finish_reason": answer.finish_reason, "tokens": tokens}
        print(json.dumps(line, ensure_ascii=False), flush=True)


def _stream_answer(model: Model, text: str) -> str:
    """Print the answer to a prompt token by token.

    Return the id of the answer in --feedback_file, or "" without it. In a conversation, Ctrl-C ends
    an answer that has begun.
    """
    from lm.data.sources import chat
    from lm.evaluation import generation

    arguments = _generation_arguments(model, text)
    console.print_fragment(text + ("\n" if _TEMPLATE.value else ""), "bold")
    pieces = []
    try:
        for token in generation.stream(*arguments):
            p = math.exp(-token.nats)
            color = next(name for threshold, name in COLORS if p >= threshold)
            console.print_fragment(token.text, color if _SHOW.value else "")
            pieces.append(token.text)
    except KeyboardInterrupt:
        if _PROMPT.value is not None or not pieces:
            raise
    console.print_line("")
    if not _FEEDBACK_FILE.value:
        return ""
    return chat.log_response(_FEEDBACK_FILE.value, text, "".join(pieces), model.run.name)


def _converse(model: Model) -> None:
    """Answer prompts from standard input until Ctrl-D. Ctrl-C ends an answer.

    With --feedback_file, a line of + or - rates the last answer, and "= TEXT" stores a better
    answer. Answers that were ended by Ctrl-C are stored too.
    """
    import readline

    from lm.data.sources import chat

    file, is_terminal = _FEEDBACK_FILE.value, sys.stdin.isatty()
    readline.set_history_length(1000)  # the import makes lines editable, with a history
    if is_terminal:
        console.print_line("Ctrl-C ends an answer. Ctrl-D ends the conversation.")
        if file:
            console.print_line(
                f"Answers are stored in {file}. Type + or - to rate the last answer,"
                " or = TEXT to store a better answer."
            )
    last_answer_id = ""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        try:
            line = input("> " if is_terminal else "")
            is_rating = bool(file) and (line in ("+", "-") or line.startswith("= "))
            if not is_rating and (_JSON.value or _N.value > 1):
                _print_answers(model, line)
            elif not is_rating:
                last_answer_id = _stream_answer(model, line)
            elif last_answer_id:
                chat.rate_response(file, last_answer_id, line == "+", line[2:])
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
