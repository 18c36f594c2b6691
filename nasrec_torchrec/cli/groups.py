"""The flags of a training, in the groups that the help shows."""

TRAINING = {
    "Model": (
        *("architecture", "use_layernorm", "embedding_dim", "drop_features", "init_from", "init_data", "freeze"),
        *("from_scratch", "teachers", "teacher_share", "loss_weights"),
    ),
    "Baseline": ("kind", "dense_layers", "over_layers", "cross_layers", "cross_rank", "batch_norm"),
    "Search space of a supernet, and how its paths are drawn": (
        *("num_blocks", "dense_operators", "sparse_operators", "dense_widths", "sparse_widths", "max_inputs"),
        *("outputs", "embedding_widths", "width_tables", "activations", "normalizations", "residuals"),
        *("strategy", "full_path_steps"),
    ),
    "Trials": ("learning_rates", "seeds"),
    "Recipe": (
        *("recipe", "epochs", "batch_size", "learning_rate", "min_learning_rate", "warmup_fraction", "schedule"),
        *("patience", "monitor", "optimizer", "embedding_l2", "embedding_std", "dropout", "adagrad_eps"),
        *("gradient_clip", "ema_decay", "table_optimizers", "table_learning_rates", "table_weight_decay", "seed"),
    ),
    "Speed and distribution": (
        *("accumulate", "precision", "compile", "sharding_type", "table_memory", "pipeline", "quantized_comms"),
        *("background_reader", "cuda_graphs", "replicate_mib", "sharding_group_size", "table_sync_every"),
    ),
    "Logs and checkpoints": (
        *("log_every", "checkpoint_every", "keep_checkpoints", "resume", "profile", "max_skipped_steps"),
    ),
}
# Settings of one kind of model alone, which the help of the others leaves out.
OF_NETWORKS = ("dropout", "ema_decay", "compile", "cuda_graphs", "freeze")
OF_SUPERNETS = ("strategy", "full_path_steps")
