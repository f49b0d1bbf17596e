"""An invalid config is rejected in one line that names the field."""

import numpy as np
import pytest

from lm.config import fields, schema, validation


def changed_run(**values) -> schema.Run:
    """Return the default run with changed fields, named as in optim__lr."""
    run = schema.Run()
    for field, value in values.items():
        *path, last = field.split("__")
        target = run
        for name in path:
            target = getattr(target, name)
        setattr(target, last, value)
    return run


def test_default_run_is_valid():
    validation.validate_run(schema.Run())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval__patience": 2, "eval__interval": 5}, "eval.patience=2 needs a held-out loss: set"),
        ({"keep_best": True}, "keep_best=True needs a held-out loss: set data.heldout_fraction"),
        ({"is_prediction_target": True}, "is_prediction_target=True needs a held-out loss"),
        ({"data__sources": {"code": 1.0, "docs": 0.0}}, "data.sources['docs']=0.0 is evaluated"),
    ],
)
def test_run_without_heldout_text_needs_no_heldout_loss(values, message):
    validation.validate_run(changed_run(data__heldout_fraction=0.0))
    with pytest.raises(schema.ConfigError) as error:
        validation.validate_run(changed_run(data__heldout_fraction=0.0, **values))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_evaluation_of_a_run_checks_sources_and_rows():
    validation.validate_evaluation(changed_run(data__sources={"docs": 1.0}, data__seq_len=64))
    with pytest.raises(schema.ConfigError, match="must have weights with a positive, finite sum"):
        validation.validate_evaluation(changed_run(data__sources={"docs": 0.0}))
    with pytest.raises(schema.ConfigError, match="data.seq_len=63"):
        validation.validate_evaluation(changed_run(data__seq_len=63))
    with pytest.raises(schema.ConfigError, match="learned_positions=32 must be at least"):
        validation.validate_evaluation(changed_run(model__learned_positions=32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model__n_heads": 6, "model__n_kv_heads": 4}, "model.n_heads=6 must be a multiple of"),
        ({"model__d_head": 7}, "model.d_head=7 must be even, for rotary embeddings: try 8"),
        ({"model__dtype": "float16"}, "model.dtype='float16' must be one of float32, bfloat16"),
        ({"model__d_model": 12.5}, "model.d_model=12.5 must be int, not float"),
        ({"optim__lr": "fast"}, "optim.lr='fast' must be float"),
        ({"optim__lr": float("nan")}, "optim.lr=nan must be a finite number"),
        ({"optim__lr": 0.0}, "optim.lr=0.0 must be above 0"),
        ({"optim__schedule": "exp"}, "optim.schedule='exp' must be one of"),
        ({"optim__schedule": "wsd", "optim__decay": 0.99}, "optim.decay=0.99 plus optim.warmup"),
        ({"data__heldout_fraction": 1.5}, "data.heldout_fraction=1.5 must be between 0 and 1"),
        ({"data__tokenizer": "bpe"}, "data.tokenizer='bpe' must be bytes, bpe:8192, file:JSON"),
        ({"data__tokenizer": "bytes:1"}, "data.tokenizer='bytes:1' must be bytes"),
        ({"data__tokenizer": "bpe:9k"}, "data.tokenizer='bpe:9k' must have a size from 258"),
        ({"data__on_error": "ignore"}, "data.on_error='ignore' must be one of stop, skip"),
        ({"data__max_repeats": 2.0}, "data.max_repeats=2.0 must be between 0 and 1"),
        ({"data__decontaminate_against": "code"}, "data.decontaminate_against='code' has no"
                                                  " effect with data.decontaminate_ngram=0"),
        ({"data__unique_tokens": 9}, "data.unique_tokens=9 must be at least one row of"),
        ({"data__packing": "padded"}, "data.packing='padded' must be one of packed, continuation"),
        ({"data__loss_on": "answers"}, "data.loss_on='answers' needs data.packing='documents',"
                                       " not 'packed'"),
        ({"data__sources": {}}, "data.sources={} is empty"),
        ({"data__sources": {"code": -1.0}}, "data.sources['code']=-1.0 must be a weight"),
        ({"data__sources": {"code": 0.0}}, "must have weights with a positive, finite sum"),
        ({"data__sources": {"code": 1.0, "docs": -1.0}}, "must be a weight: a finite number"),
        ({"mesh__data": 0}, "mesh.data=0 must be at least 1, or -1"),
        ({"model__n_experts": 1}, "model.experts_per_token=2 must not exceed model.n_experts=1:"),
        ({"model__n_experts": 6, "mesh__expert": 4}, "model.n_experts=6 must be a multiple of"),
        ({"model__n_experts": 4, "model__d_ff": 385}, "the shared experts, or set"),
        ({"model__n_experts": 4, "model__d_expert": 5, "mesh__tensor": 2}, "model.d_expert=5 must"),
        ({"model__router": "linear"}, "model.router='linear' must be one of softmax, sigmoid"),
        ({"model__capacity_factor": 0.0}, "model.capacity_factor=0.0 must be above 0"),
        ({"permanent_checkpoint_interval": 300}, "permanent_checkpoint_interval=300 must be a"
                                                 " multiple of checkpoint_interval=200: try 400"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"name": "../up"}, "name='../up' must consist of letters"),
        ({"name": ""}, "name='' must consist of letters"),
        ({"name": "s/two words"}, "name='s/two words' must consist of letters"),
        ({"name": "/absolute"}, "name='/absolute' must consist of letters"),
        ({"name": "s/"}, "name='s/' must consist of letters"),
        ({"name": "a//b"}, "name='a//b' must consist of letters"),
        ({"name": "."}, "name='.' must consist of letters"),
        ({"name": "s/.."}, "name='s/..' must consist of letters"),
        ({"name": ".hidden/a"}, "name='.hidden/a' must consist of letters"),
        ({"name": 300 * "a"}, "contains a name of 300 characters: use at most 200"),
        ({"start__run": "s/.x"}, "start.run='s/.x' must consist of letters"),
        ({"start__run": "run/a", "name": "run/a/tuned"}, "name='run/a/tuned' is in the folder of"),
        ({"dir": ""}, "dir='' must name a folder"),
        ({"data__cache_dir": "a\0b"}, "data.cache_dir='a\\x00b' contains a NUL"),
        ({"data__tokenizer": "file:\udcff"}, "contains a NUL or bytes that are not UTF-8"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"seed": 2**31}, "seed=2147483648 must be at most 2147483647: try seed=0"),
        ({"seed": True}, "seed=True must be int, not bool"),
        ({"seed": "7"}, "seed='7' must be int, not str"),
        ({"steps": 10**30}, "must be at most 2147483647"),
        ({"steps": 10**5000}, "steps=an integer of 16610 bits must be at most 2147483647"),
        ({"steps": None}, "steps=None must be int, not NoneType"),
        ({"steps": 2**31 - 1, "data__batch_size": 2**31 - 2, "data__seq_len": 256},
         "more than 2^63: lower it"),
        ({"data__min_words": 2**63}, "must be at most 2147483647"),
        ({"data__unique_tokens": 2**63}, "must be between 0 and 9223372036854775807"),
        ({"optim__lr": 10**400}, "must be a finite number"),
        ({"optim__lr": float("inf")}, "optim.lr=inf must be a finite number"),
        ({"optim__weight_decay": -0.0}, "optim.weight_decay=-0.0 is a negative zero: write 0.0"),
        ({"optim__lr": True}, "optim.lr=True must be float, not bool"),
        ({"optim__lr": np.float64(1.0)}, "must be float, not float64: write float(...)"),
        ({"steps": np.int64(9)}, "must be int, not int64: write int(...)"),
        ({"steps": np.float64(9.5)}, "must be int, not float64"),
        ({"wandb": 1}, "wandb=1 must be bool, not int"),
        ({"model": None}, "model=None must be Model, not NoneType"),
        ({"optim": schema.Data()}, "must be Optimizer, not Data"),
        ({"data__sources": ["code"]}, "data.sources=['code'] must be dict, not list"),
        ({"data__sources": {"code": True}}, "data.sources['code']=True must be a weight"),
        ({"data__sources": {"code": "1"}}, "data.sources['code']='1' must be a weight"),
        ({"data__sources": {"code": 10**400}}, "must be a weight: a finite number"),
        ({"data__sources": {"code": 1.0, "docs": -0.0}}, "data.sources['docs']=-0.0 must be a"),
        ({"data__sources": {7: 1.0}}, "has a source that is not a text"),
        ({"mesh__rules": {"mlp": [["fsdp"]]}}, "mesh.rules['mlp']=[['fsdp']] must be one of"),
    ],
)  # fmt: skip
def test_invalid_run_is_rejected_by_field_name(values, message):
    with pytest.raises(schema.ConfigError) as error:
        validation.validate_run(changed_run(**values))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_number_without_a_finite_size_is_rejected():
    """NaN, infinity and an int of 400 digits are invalid in every float field."""
    for field, kind in schema.field_types(schema.Run).items():
        for value in (float("nan"), float("inf"), float("-inf"), 10**400) if kind is float else ():
            with pytest.raises(schema.ConfigError, match=rf"^{field}=.* must be a finite number"):
                validation.validate_run(changed_run(**{field.replace(".", "__"): value}))


def test_every_int_beyond_its_bound_is_rejected():
    for field, kind in schema.field_types(schema.Run).items():
        if kind is int:
            with pytest.raises(schema.ConfigError, match=rf"^{field}=\d+ must be "):
                validation.validate_run(changed_run(**{field.replace(".", "__"): 2**63}))


def test_largest_allowed_seed_is_valid():
    validation.validate_run(schema.Run(seed=fields.MAX_INT))


def test_validation_of_huge_sizes_ends():
    """The search for a suggestion takes the root of the size, not the size."""
    for changes in (
        {"model__n_heads": 2**31 - 1, "model__n_kv_heads": 2**31 - 2},
        {"data__batch_size": 2**31 - 1, "mesh__data": 2**31 - 2},
        {"data__batch_size": 2**31 - 1, "optim__grad_accumulation_steps": 2**31 - 2},
    ):
        with pytest.raises(schema.ConfigError, match="must be a multiple of"):
            validation.validate_run(changed_run(**changes))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"name": ""}, "name='' must consist of letters"),
        ({"name": "../up"}, "name='../up' must consist of letters"),
        ({"optim": {"lr": float("inf")}}, "optim.lr=inf must be a finite number"),
        ({"model": {"d_model": "wide"}}, "model.d_model='wide' must be int"),
        ({"data": {"sources": ["code"]}}, r"data.sources=\['code'\] must be dict"),
        ({"data": {"ca#he": "x"}}, "data.ca#he does not exist"),
        ({"data": 3}, "data=3 must be a dict"),
        ({"start": {"run": "a/../../b"}}, "start.run='a/../../b' must consist of"),
    ],
)
def test_stored_config_is_validated_like_a_new_one(values, message):
    with pytest.raises(schema.ConfigError, match=rf"^runs/a/config\.json: {message}") as raised:
        validation.parse_stored_run(values, "runs/a/config.json")
    assert "\n" not in str(raised.value)


def test_config_of_an_older_run_gets_defaults():
    assert validation.parse_stored_run({"name": "a"}, "config.json").data == schema.Data()
