"""An unknown field name suggests the field of the same meaning."""

import pytest

from lm.config import field_names, schema


def test_every_field_has_synonyms():
    assert list(field_names.SYNONYMS) == list(schema.field_types(schema.Run))


def test_every_synonym_suggests_its_field():
    """A synonym that is itself a field of another group suggests this field, too."""
    for field, names in field_names.SYNONYMS.items():
        for name in names.split():
            group = field.rpartition(".")[0]
            message = field_names.unknown_field_message(f"{group}.{name}" if group else name)
            assert f"{name} does not exist: did you mean " in message
            assert field in message or "the group" in message, (field, name, message)


def test_no_synonym_is_also_explained_as_missing():
    synonyms = {name for names in field_names.SYNONYMS.values() for name in names.split()}
    missing = {name for names in field_names.MISSING for name in names.split()}
    assert not synonyms & missing


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("optim.learning_rate", "did you mean optim.lr?"),
        ("optim.Learning-Rate", "did you mean optim.lr?"),
        ("optim.learningrate", "did you mean optim.lr?"),
        ("learnin_rate", "did you mean optim.lr"),
        ("model.layers", "did you mean model.n_layers?"),
        ("model.num_hidden_layers", "did you mean model.n_layers?"),
        ("optimizer.grad_accum", "did you mean optim.grad_accumulation_steps?"),
        ("lr", "did you mean optim.lr?"),
        ("optim.batch_size", "did you mean data.batch_size?"),
        ("model.seqlen", "did you mean data.seq_len?"),
        ("warmup_steps", "did you mean optim.warmup_steps?"),
        ("warmup_ratio", "did you mean optim.warmup?"),
        ("optim.beta2_half_life_tokens", "did you mean optim.b2_half_life_tokens?"),
        ("mu_dtype", "did you mean optim.moment_dtype?"),
        ("optim.embedding_weight_decay", "did you mean optim.embedding_decay_factor?"),
        ("optim.num_warmup_steps", "did you mean optim.warmup_steps?"),
        ("eval.every", "did you mean eval.interval?"),
        ("init_from", "did you mean start.run?"),
        ("predct", "did you mean is_prediction_target?"),
        ("optimizer", "did you mean the group optim?"),
        ("optim.lr", "is a field of a group: set it as run.optim.lr"),
        ("model.dropout", "does not exist: dropout is not implemented"),
        ("train_tokens", "set steps, such as model_sizes.steps_for_budget"),
        ("qqzz", "all fields are in lm/config/schema.py"),
    ],
)
def test_unknown_name_suggests_a_field_or_a_remedy(name, suggestion):
    message = field_names.unknown_field_message(name)
    assert message.startswith(name) and suggestion in message and "\n" not in message


def test_field_without_synonyms_is_suggested_as_a_sibling():
    message = field_names.unknown_field_message("data.new_fild", ["data.new_field"])
    assert message.endswith("did you mean data.new_field?")
