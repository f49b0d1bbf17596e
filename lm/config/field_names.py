"""Names of config fields in other projects, and error messages that suggest the right field.

    unknown_field_message("optim.learning_rate")
    # "optim.learning_rate does not exist: did you mean optim.lr?"

A name is looked up without case, underscores, hyphens and dots.
"""

import difflib
import functools
from collections.abc import Iterable

MAX_SUGGESTIONS = 3
MAX_SHOWN = 200  # characters of a value in a message
CUTOFF = 0.8  # smallest similarity of a misspelled name, see difflib.get_close_matches

# Field -> names of the same quantity in other projects, in papers and in version 0.1.
SYNONYMS = {
    "name": "run_name run_id experiment exp_name experiment_name",
    "dir": "out out_dir output output_dir run_dir runs_dir log_dir logdir save_dir root work_dir",
    "seed": "random_seed rng_seed rng prng_seed manual_seed key init_seed data_seed",
    "steps": "n_steps num_steps max_steps total_steps train_steps training_steps max_iters"
    " num_iterations iterations iters train_iters num_train_steps max_train_steps n_iters",
    "log_interval": "log_every logging_steps log_freq log_steps log_frequency print_every"
    " logging_interval log_every_n_steps report_every",
    "steps_per_call": "steps_per_loop steps_per_execution inner_steps steps_per_jit",
    "checkpoint_interval": "checkpoint_every save_every save_steps save_interval ckpt_every"
    " checkpoint_steps ckpt_interval checkpoint_period save_freq checkpoint_freq save_checkpoint",
    "permanent_checkpoint_interval": "keep_every keep_period keep_checkpoint_every archive_every"
    " permanent_every save_total_limit max_to_keep keep_checkpoints",
    "keep_best": "save_best best_checkpoint load_best_model_at_end best save_best_only",
    "resume": "resume_from resume_from_checkpoint restart auto_resume continue",
    "resume_tolerance": "resume_rtol loss_tolerance resume_atol restart_tolerance",
    "stall_seconds": "stall timeout watchdog hang_timeout stall_timeout timeout_seconds",
    "wandb": "use_wandb wandb_log enable_wandb report_to log_to_wandb weights_and_biases"
    " wandb_project",
    "check_memory": "memory_check check_fit oom_check verify_memory estimate_memory",
    "is_prediction_target": "predict predicted target is_target predict_target prediction_target"
    " predicted_run forecast",
    "model.vocab_size": "vocab n_vocab vocabulary vocabulary_size num_tokens num_embeddings"
    " padded_vocab_size n_tokens vocab_dim",
    "model.d_model": "hidden_size hidden_dim width n_embd dim model_dim embed_dim emb_dim d_embed"
    " embedding_dim n_embed embedding_size residual_dim emb_size d_hidden hidden",
    "model.n_layers": "num_layers n_layer layers depth num_hidden_layers num_blocks n_blocks"
    " num_decoder_layers n_transformer_layers",
    "model.n_heads": "num_heads n_head heads num_attention_heads attention_heads n_q_heads"
    " num_query_heads n_attention_heads",
    "model.n_kv_heads": "num_kv_heads kv_heads num_key_value_heads n_kv_head n_query_groups"
    " num_query_groups num_groups n_groups kv_groups",
    "model.d_head": "head_dim head_size d_k kv_channels head_width attention_head_dim dim_head",
    "model.d_ff": "intermediate_size ffn_dim mlp_dim d_mlp ff_dim feed_forward_dim n_inner"
    " ffn_hidden_size mlp_hidden_size mlp_ratio d_ffn dim_ff d_inner ffn mlp_width hidden_ff",
    "model.mlp": "activation act_fn hidden_act activation_function mlp_type ffn_type swiglu glu"
    " nonlinearity mlp_activation act",
    "model.norm": "norm_type normalization layer_norm rms_norm rmsnorm layernorm norm_layer",
    "model.norm_eps": "layer_norm_eps rms_norm_eps layer_norm_epsilon norm_epsilon",
    "model.norm_position": "post_norm pre_norm sandwich_norm norm_after norm_placement",
    "model.residual": "parallel_residual use_parallel_residual parallel_blocks parallel_attn",
    "model.qk_norm": "qk_layernorm use_qk_norm query_key_norm qk_layer_norm qknorm",
    "model.qk_norm_scope": "qk_norm_type qk_norm_width qk_norm_per_head",
    "model.bias": "use_bias attention_bias mlp_bias biases add_bias linear_bias",
    "model.qkv_bias": "attention_qkv_bias query_key_value_bias add_qkv_bias qkv_proj_bias",
    "model.head_bias": "lm_head_bias output_bias logit_bias",
    "model.embedding_scale": "embedding_multiplier scale_embeddings embed_scale input_multiplier",
    "model.tie_embeddings": "tie_word_embeddings tied tied_embeddings weight_tying share_embeddings"
    " tie_weights tied_head",
    "model.learned_positions": "max_positions max_position_embeddings n_positions"
    " position_embedding positional_embedding learned_pos_emb pos_emb"
    " position_embeddings absolute_positions",
    "model.rope_theta": "rope_base rotary_base theta rotary_emb_base rope rotary_theta",
    "model.rotary_fraction": "partial_rotary_factor rotary_pct rotary_percent rotary_dim",
    "model.rope_scaling": "rope_type rope_scaling_type rope_parameters position_scaling",
    "model.rope_factor": "rope_scaling_factor scaling_factor position_interpolation",
    "model.rope_original_length": "original_max_position_embeddings original_context_length",
    "model.sliding_window": "window window_size local_attention_window attention_window swa"
    " sliding_window_size",
    "model.full_attention_interval": "sliding_window_pattern global_attention_interval"
    " global_every layer_types global_attn_every_n_layers",
    "model.local_rope_theta": "rope_local_base_freq local_rope_base local_rope",
    "model.attention_scale": "query_pre_attn_scalar attention_multiplier softmax_scale qk_scale",
    "model.attention_softcap": "attn_logit_softcapping attn_softcap attention_logit_softcap",
    "model.logit_softcap": "softcap final_logit_softcapping logits_soft_cap logit_cap soft_cap",
    "model.z_loss": "z_loss_weight zloss z_loss_coef z_loss_coefficient logit_z_loss",
    "model.parametrization": "parameterization mup use_mup completep param",
    "model.base_width": "mup_base_width base_d_model mup_base_dim base_hidden_size mup_base_shape",
    "model.base_depth": "base_n_layers mup_base_depth base_layers base_num_layers",
    "model.dtype": "precision compute_dtype mixed_precision amp bf16 fp16 fp32 torch_dtype"
    " activation_dtype half bfloat16 jnp_dtype",
    "model.gradient_dtype": "grad_dtype reduce_dtype gradient_reduction_dtype grad_reduce_dtype"
    " grad_reduce_in_fp32 mixed_precision_reduce accumulate_allreduce_grads_in_fp32",
    "model.remat": "gradient_checkpointing activation_checkpointing checkpointing rematerialize"
    " use_remat remat_policy activation_recomputation recompute checkpoint_activations",
    "model.scan_unroll": "unroll scan_layers use_scan scan unroll_layers",
    "model.lora_rank": "lora_r lora lora_dim adapter_rank rank use_lora",
    "model.lora_alpha": "lora_scale lora_scaling adapter_alpha",
    "model.lora_on": "lora_target_modules target_modules lora_targets lora_layers lora_modules",
    "model.attention": "attn attention_backend attn_implementation flash_attention attention_type"
    " use_flash_attention attention_impl attn_impl flash",
    "model.attention_query_blocks": "attention_blocks attention_block_size query_blocks n_blocks_q"
    " attention_chunks query_chunks",
    "model.loss_chunks": "logit_chunks chunked_loss cross_entropy_chunks loss_chunk ce_chunks",
    "model.n_experts": "num_experts experts moe num_local_experts n_routed_experts moe_experts",
    "model.experts_per_token": "top_k num_experts_per_tok n_experts_per_token moe_top_k topk"
    " num_selected_experts experts_top_k router_topk active_experts",
    "model.n_shared_experts": "num_shared_experts shared_experts",
    "model.d_expert": "moe_intermediate_size expert_dim moe_ffn_dim expert_width moe_d_ff d_moe",
    "model.router": "router_type gate gating router_activation scoring_func gating_function",
    "model.normalize_expert_weights": "normalize_experts norm_topk_prob renormalize norm_topk",
    "model.load_balancing": "balance load_balance moe_balancing balancing aux_loss",
    "model.load_balancing_weight": "balance_weight aux_loss_weight router_aux_loss_coef"
    " load_balancing_loss_weight moe_loss_weight aux_loss_coef moe_aux_loss_coeff",
    "model.router_bias_rate": "balance_rate bias_update_rate bias_update_speed router_bias_speed",
    "model.router_z_loss": "router_z_loss_weight moe_z_loss router_z_loss_coef moe_z_loss_coeff",
    "model.dispatch": "moe_dispatch dropless dispatch_mode moe_impl",
    "model.expert_kernel": "moe_kernel ragged_dot grouped_gemm megablox expert_backend",
    "model.capacity_factor": "capacity expert_capacity moe_capacity_factor expert_capacity_factor",
    "data.sources": "source dataset datasets data_path train_data data_mixture mixture corpus"
    " train_files data_dir text weights mixture_weights dataset_name data_files train_path",
    "data.cache_dir": "cache cache_folder data_cache dataset_cache_dir token_dir prepared_dir",
    "data.heldout_fraction": "heldout val_fraction validation_split val_split test_fraction"
    " validation_fraction eval_fraction val_ratio held_out",
    "data.tokenizer": "tokenizer_name tokenizer_path tokenizer_file tokenization encoding bpe",
    "data.on_error": "broken errors skip_errors ignore_errors bad_lines skip_broken on_bad_lines",
    "data.min_words": "min_length min_doc_words minimum_words min_doc_length",
    "data.min_letters": "min_alpha alpha_fraction min_letter_fraction min_alphabetic",
    "data.max_repeats": "max_repetition max_duplicate_lines repetition max_repeated_lines",
    "data.drop_near_duplicates": "drop_copies dedup deduplicate near_dedup minhash fuzzy_dedup"
    " deduplication near_duplicates",
    "data.quality_filters": "filters datatrove_filters quality_filter heuristic_filters",
    "data.decontaminate_ngram": "overlap decontaminate decontamination ngram n_gram"
    " decontamination_ngram contamination_ngram",
    "data.decontaminate_against": "protect decontaminate_with eval_text benchmarks protected",
    "data.seq_len": "max_seq_len sequence_length seq_length max_seq_length context_length"
    " block_size context ctx_len n_ctx max_length context_size context_window"
    " max_sequence_length length seqlen window train_seq_len",
    "data.batch_size": "global_batch_size train_batch_size bs per_device_batch_size"
    " total_batch_size per_device_train_batch_size micro_batch_size batch batchsize"
    " n_batch batch_rows device_batch_size mini_batch_size",
    "data.batch_size_warmup": "batch_warmup batch_size_schedule batch_ramp rampup_batch_size"
    " batch_size_rampup batch_size_stages batch_doublings",
    "data.batch_size_rule": "batch_rule batch_size_law batch_law",
    "data.packing": "rows pack sequence_packing packed use_packing pack_sequences",
    "data.loss_on": "score loss_mask train_on_inputs completion_only mask_prompt answers_only"
    " assistant_only_loss completion_only_loss",
    "data.on_overflow": "too_long truncation truncate overflow",
    "data.forbidden_tasks": "unseen heldout_tasks exclude_tasks forbidden excluded_tasks",
    "data.attend_across_documents": "across document_mask cross_document_attention"
    " intra_doc_masking reset_attention_mask mask_documents block_cross_document_attention",
    "data.unique_tokens": "data_tokens max_train_tokens token_limit n_unique_tokens dataset_tokens"
    " subset_tokens",
    "data.max_epochs": "epochs n_epochs num_epochs num_train_epochs epoch max_repeat",
    "data.local_cache_dir": "local_cache local_dir scratch scratch_dir tmp_dir",
    "optim.name": "optimizer_name optimizer_type opt optim_name algorithm",
    "optim.lr": "learning_rate peak_lr max_lr lr_peak step_size base_lr eta learningrate"
    " peak_learning_rate max_learning_rate adam_lr initial_lr",
    "optim.lr_rule": "learning_rate_rule lr_law rate_rule",
    "optim.schedule": "lr_schedule scheduler lr_scheduler lr_scheduler_type decay_type"
    " lr_decay_style learning_rate_schedule",
    "optim.warmup": "warmup_ratio warmup_fraction lr_warmup warm_up warmup_proportion"
    " lr_warmup_fraction",
    "optim.warmup_steps": "num_warmup_steps n_warmup_steps warmup_iters lr_warmup_iters"
    " lr_warmup_steps warmup_iterations",
    "optim.warmup_tokens": "n_warmup_tokens num_warmup_tokens lr_warmup_tokens lr_warmup_samples"
    " warmup_samples",
    "optim.decay": "decay_fraction cooldown cooldown_fraction decay_ratio annealing"
    " cooldown_ratio lr_wsd_decay_fraction",
    "optim.decay_steps": "lr_decay_steps lr_decay_iters cooldown_steps n_decay_steps"
    " num_decay_steps annealing_steps lr_wsd_decay_iters",
    "optim.decay_tokens": "cooldown_tokens lr_decay_tokens n_decay_tokens lr_decay_samples"
    " annealing_tokens",
    "optim.final_lr_fraction": "lr_end min_lr min_lr_ratio final_lr end_lr min_learning_rate"
    " lr_min lr_final_fraction final_lr_ratio end_learning_rate",
    "optim.b1": "beta1 adam_beta1 adam_b1 momentum betas adam_betas beta_1",
    "optim.b2": "beta2 adam_beta2 adam_b2 beta_2",
    "optim.b2_half_life_tokens": "beta2_half_life_tokens b2_half_life beta2_half_life half_life"
    " b2_tokens beta2_tokens second_moment_half_life",
    "optim.eps": "epsilon adam_eps adam_epsilon",
    "optim.moment_dtype": "mu_dtype optimizer_dtype state_dtype momentum_dtype exp_avg_dtype"
    " optimizer_state_dtype first_moment_dtype adam_mu_dtype main_params_dtype",
    "optim.weight_decay": "wd l2 weight_decay_rate regularization l2_regularization lambda",
    "optim.weight_decay_rule": "wd_rule decay_rule weight_decay_law",
    "optim.independent_weight_decay": "decoupled_weight_decay independent_decay fully_decoupled"
    " independent_wd decoupled_wd fully_decoupled_weight_decay weight_decay_mode",
    "optim.embedding_decay_factor": "weight_decay_embedding weight_decay_embeddings embedding_decay"
    " embedding_weight_decay embed_decay decay_embeddings wd_embedding",
    "optim.head_decay_factor": "head_weight_decay weight_decay_head head_decay lm_head_decay"
    " output_decay wd_head",
    "optim.norm_decay_factor": "norm_weight_decay weight_decay_norm bias_decay norm_decay"
    " decay_norm_and_bias weight_decay_norms bias_weight_decay decay_norm",
    "optim.layer_decay": "layerwise_decay layer_wise_lr_decay llrd layerwise_lr_decay",
    "optim.frozen": "freeze freeze_layers frozen_layers frozen_params trainable unfreeze",
    "optim.clip_norm": "clip grad_clip gradient_clipping max_grad_norm clip_grad_norm"
    " gradient_clip_val grad_clip_norm clip_grad clipping gradient_clip max_norm",
    "optim.grad_accumulation_steps": "grad_accum accumulate gradient_accumulation_steps"
    " gradient_accumulation grad_accumulation accum_steps grad_accum_steps accumulation_steps"
    " accumulate_grad_batches micro_batches n_micro_batches gradient_accumulation_iters",
    "optim.on_nonfinite": "nonfinite nan skip_nan on_nan nan_policy skip_nonfinite detect_nan",
    "mesh.data": "dp data_parallel data_parallelism dp_size gpus n_devices devices num_devices"
    " num_gpus n_gpus replicas data_axis data_parallel_size",
    "mesh.fsdp": "zero sharding_stage fsdp_size shard_weights fully_sharded",
    "mesh.expert": "ep expert_parallel expert_parallelism ep_size expert_parallel_size",
    "mesh.sequence": "sp cp context_parallel sequence_parallel seq_parallel cp_size",
    "mesh.tensor": "tp tensor_parallel tensor_parallelism model_parallel tp_size"
    " tensor_parallel_size tensor_model_parallel_size",
    "mesh.rules": "sharding_rules axis_rules logical_axis_rules partition_rules sharding",
    "mesh.deterministic_shards": "exact deterministic reproducible bitwise",
    "mesh.deterministic_kernels": "deterministic_ops xla_gpu_deterministic_ops cudnn_deterministic"
    " use_deterministic_algorithms exclude_nondeterministic_ops",
    "eval.interval": "every eval_every eval_interval eval_steps eval_freq evaluation_interval"
    " val_check_interval validation_interval eval_frequency val_every evaluate_every"
    " evaluation_steps",
    "eval.patience": "early_stopping early_stopping_patience early_stop",
    "eval.n_sequences": "sequences eval_iters eval_batches val_batches n_eval_sequences"
    " max_eval_batches limit_val_batches eval_sequences",
    "eval.n_completions": "completions word_completions n_words",
    "eval.tasks": "task eval_tasks benchmark evals downstream_tasks downstream",
    "eval.task_interval": "task_every tasks_every eval_tasks_every task_eval_interval",
    "eval.on_overflow": "eval_overflow",
    "start.run": "init_from parent pretrained pretrained_model checkpoint load_from init_checkpoint"
    " base_model model_name_or_path finetune_from checkpoint_path load_checkpoint start_from"
    " init_from_checkpoint warm_start pretrained_path",
    "start.step": "checkpoint_step load_step parent_step start_step init_step",
    "start.restore": "keep load_optimizer restore_optimizer reset_optimizer load_weights_only",
}  # fmt: skip

# Group -> names of the group in other projects.
GROUPS = {
    "model": "architecture network model_config arch",
    "data": "dataset_config data_config dataloader",
    "optim": "optimizer optimizer_config training train",
    "mesh": "parallel parallelism mesh_config sharding_config distributed",
    "eval": "evaluation validation evaluate eval_config",
    "start": "initialization init finetune warmstart",
}

# Names of features that no field controls -> explanation.
MISSING = {
    "dropout attention_dropout resid_dropout embd_dropout dropout_rate hidden_dropout attn_dropout"
    " residual_dropout attn_pdrop resid_pdrop embd_pdrop": "dropout is not implemented",
    "label_smoothing": "label smoothing is not implemented",
    "ema ema_decay use_ema": "an average of the weights is not implemented",
    "tokens train_tokens n_train_tokens total_tokens max_tokens token_budget tokens_per_param"
    " training_tokens flops budget": (
        "set steps, such as model_sizes.steps_for_budget(run, tokens=1e6)"
    ),
    "size model_size n_params params num_params": (
        "set model, such as model_sizes.ladder_model('100K')"
    ),
    "device backend platform": "set the environment variable JAX_PLATFORMS, such as cpu",
    "compile torch_compile jit": "every step is compiled",
    "num_workers n_workers workers": "use the flag --num_workers of experiments.prepare",
    "pipeline pp pipeline_parallel pipeline_parallel_size": (
        "pipeline parallelism is not implemented: use mesh.fsdp or mesh.tensor"
    ),
    "init_std initializer_range init_scale initialization": (
        "the initial scale follows model.parametrization"
    ),
}


class ConfigError(ValueError):
    """An invalid config. The message states field, value, allowed values and a remedy."""


class UnknownFieldError(ConfigError, AttributeError):
    """A name that is not a field of the config."""


def unknown_field_message(name: str, siblings: Iterable[str] = ()) -> str:
    """Return the error message for an unknown field. It suggests fields of the same meaning.

    name: with its group, such as "optim.learning_rate". siblings: the fields of this group.
    """
    name = shorten(name)
    known = tuple(dict.fromkeys([*siblings, *SYNONYMS]))
    if name in known:
        return f"{name} is a field of a group: set it as run.{name}, not by one name with a dot"
    group, _, last = name.rpartition(".")
    if not group and (groups := _groups_of(name)):
        return f"{name} does not exist: did you mean the group {groups[0]}?"
    meanings = _fields_by_name(known)
    matches = _lookup(last, group, meanings)
    if not matches:
        for names, explanation in MISSING.items():
            if _normalize(last) in map(_normalize, names.split()):
                return f"{name} does not exist: {explanation}"
        near = difflib.get_close_matches(_normalize(last), meanings, MAX_SUGGESTIONS, CUTOFF)
        matches = [field for match in near for field in _lookup(match, group, meanings)]
    if not matches:
        matches = difflib.get_close_matches(name, known, MAX_SUGGESTIONS, 0.5)
    if not matches:
        return f"{name} does not exist: all fields are in lm/config/schema.py"
    suggestions = list(dict.fromkeys(matches))[:MAX_SUGGESTIONS]
    return f"{name} does not exist: did you mean {', '.join(suggestions)}?"


def _groups_of(name: str) -> list[str]:
    """Return the groups of fields that other projects call `name`."""
    return [
        group
        for group, names in GROUPS.items()
        if _normalize(name) in (group, *map(_normalize, names.split()))
    ]


@functools.cache
def _fields_by_name(known: tuple[str, ...]) -> dict[str, list[str]]:
    """Return {normalized name: fields}, for the last part of each field and for its synonyms."""
    meanings: dict[str, list[str]] = {}
    for field in known:
        last = field.rpartition(".")[2]
        for name in (last, field, *SYNONYMS.get(field, "").split()):
            meanings.setdefault(_normalize(name), []).append(field)
    return {name: list(dict.fromkeys(fields)) for name, fields in meanings.items()}


def _lookup(name: str, group: str, meanings: dict[str, list[str]]) -> list[str]:
    """Return the fields of a name. The fields of the group come first.

    A name may repeat its group: optim.optimizer_lr is looked up as lr, too.
    """
    normalized = _normalize(name)
    fields = meanings.get(normalized, [])
    if not fields and group and normalized.startswith(_normalize(group)):
        fields = meanings.get(normalized.removeprefix(_normalize(group)), [])
    return sorted(fields, key=lambda field: field.rpartition(".")[0] != group)


def _normalize(name: str) -> str:
    """Return the name without case, underscores, hyphens and dots."""
    return "".join(character for character in name.lower() if character not in "_-. ")


def suggest_names(name: str, known: list[str]) -> str:
    """Return the error message for an unknown name. It suggests the most similar known names."""
    near = difflib.get_close_matches(name[:MAX_SHOWN], known, n=3, cutoff=0.5) or known
    return f"{shorten(name)} does not exist: did you mean {', '.join(near)}?"


def shorten(text: str) -> str:
    """Return a text as one line of at most MAX_SHOWN characters, for a message."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}..."
