"""Define a run: every config field, its rules, the model sizes and the counts of a model.

The package uses only the standard library. An invalid run is rejected here, before JAX is imported.

    fields.py                declare a field with its description, bounds and roles
    schema.py                the config of a run: Run, Model, Data, Optimizer, Mesh, Evaluation,
                             Start
    groups/                  the group model of the config
    optimizer_config.py      the group optim of the config, steps of warm-up and decay
    field_names.py           names of fields in other projects, suggestions for unknown fields
    value_checks.py          check each field alone: type, choices, bounds, paths
    run_files.py             names in the folders of runs and sweeps, rules for run names
    validation.py            validate_run(run): combinations of fields
    checks/                  combinations of the fields of one group
    schedules/               batch size of each step, tokens and steps
    model_sizes.py           the ladder of model sizes, parameter counts, training budgets
    flops.py                 FLOPs per token and per step, by the conventions of the papers
    axis_rules.py            logical axes -> mesh axes
    hyperparameter_rules.py  published rules for learning rate and batch size
"""
