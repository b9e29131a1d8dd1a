"""Which stages each configuration field touches, said once for every field of the default configuration.

A stage is touched when another result of it is looked for in the store. `target_…` is the target's own backbone and
tokens; `candidate`, `full` and `random` are the target models.
"""

from typing import Any

ENSEMBLE = {"members", "gradient_log", "projections", "candidate"}
WEIGHTS = {"bare_losses", *ENSEMBLE}  # whatever the proxy's frozen weights are part of
PROXY = {"backbone", *WEIGHTS}
PROXY_TEXT = {"tokens", *PROXY}  # another tokenizer as well
MODELS = {"candidate", "full", "random"}
TARGET = {"target_backbone", *MODELS}
TARGET_TEXT = {"target_tokens", *TARGET}
DATA = {"tokens", "bare_losses", *ENSEMBLE, "target_tokens", *MODELS}
EVERYTHING = {*PROXY_TEXT, *TARGET_TEXT}
NOTHING: set[str] = set()
TEXT = "a text file, filled in by the test"

# field -> (another value, the stages that it touches)
TOUCHING: dict[str, tuple[Any, set[str]]] = {
    "seed": (1, EVERYTHING),
    "precision": ("fp64", WEIGHTS),
    "projection.width": (4, {"projections"}),  # and the candidate, where rows change places by it
    "projection.seed": (1, {"projections"}),  # likewise
    "proxy.precision": ("fp64", WEIGHTS),
    "proxy.max_tokens": (20, {"tokens", *WEIGHTS}),
    "proxy.ensemble.lr": (0.5, ENSEMBLE),
    "proxy.ensemble.batch_size": (9, ENSEMBLE),
    "proxy.ensemble.init_b_std": (0.5, ENSEMBLE),
    "proxy.backbone.architecture": ("llama", PROXY),
    "proxy.backbone.layers": (2, PROXY),
    "proxy.backbone.heads": (4, PROXY),
    "proxy.backbone.width": (16, PROXY),
    "proxy.backbone.context": (20, PROXY_TEXT),
    "proxy.backbone.vocabulary": (300, PROXY_TEXT),
    "proxy.backbone.text": (TEXT, PROXY_TEXT),
    "proxy.backbone.characters": (9000, PROXY_TEXT),
    "proxy.backbone.pretraining.steps": (3, PROXY),
    "proxy.backbone.pretraining.batch_size": (3, PROXY),
    "proxy.backbone.pretraining.block": (16, PROXY),
    "proxy.backbone.pretraining.lr": (0.5, PROXY),
    "proxy.backbone.precision": ("fp64", WEIGHTS),
    "ensemble.m": (3, ENSEMBLE),  # adds members, and leaves those that are there
    "ensemble.batch_size": (9, ENSEMBLE),
    "ensemble.lr": (0.5, ENSEMBLE),
    "ensemble.warmup_steps": (3, ENSEMBLE),
    "ensemble.betas": ([0.8, 0.99], ENSEMBLE),
    "ensemble.eps": (1e-4, ENSEMBLE),
    "ensemble.weight_decay": (0.1, ENSEMBLE),
    "ensemble.clip_norm": (1.0, ENSEMBLE),
    "ensemble.collect": ("online", ENSEMBLE),
    "ensemble.bucket_batches": (3, ENSEMBLE),
    "ensemble.trajectory_steps": (3, ENSEMBLE),
    "ensemble.lora.rank": (3, ENSEMBLE),
    "ensemble.lora.alpha": (3, ENSEMBLE),
    "ensemble.lora.target_modules": (["c_attn"], ENSEMBLE),
    "ensemble.lora.init_b_std": (0.5, ENSEMBLE),
    "epochs.early": (0, {"gradient_log", "candidate"}),
    "epochs.late": (3, ENSEMBLE),
    "scorer.epsilon": (10.0, {"candidate"}),
    "selector.fraction": (0.3, {"candidate", "random"}),
    "target.tuning.epochs": (3, MODELS),
    "target.tuning.batch_size": (3, MODELS),
    "target.tuning.lr": (0.5, MODELS),
    "target.tuning.schedule": ("linear", MODELS),
    "target.tuning.warmup_share": (0.5, MODELS),
    "target.tuning.weight_decay": (0.1, MODELS),
    "target.tuning.clip_norm": (0.5, MODELS),
    "target.tuning.records": (3, MODELS),
    "target.tuning.lora.rank": (3, MODELS),
    "target.tuning.lora.alpha": (3, MODELS),
    "target.tuning.lora.target_modules": (["q_proj"], MODELS),
    "target.tuning.lora.init_b_std": (0.5, MODELS),
    "target.max_tokens": (20, {"target_tokens", *MODELS}),
    "target.backbone.architecture": ("gpt2", TARGET),
    "target.backbone.layers": (2, TARGET),
    "target.backbone.heads": (4, TARGET),
    "target.backbone.width": (16, TARGET),
    "target.backbone.context": (20, TARGET_TEXT),
    "target.backbone.vocabulary": (300, TARGET_TEXT),
    "target.backbone.text": (TEXT, TARGET_TEXT),
    "target.backbone.characters": (9000, TARGET_TEXT),
    "target.backbone.pretraining.steps": (3, TARGET),
    "target.backbone.pretraining.batch_size": (3, TARGET),
    "target.backbone.pretraining.block": (16, TARGET),
    "target.backbone.pretraining.lr": (0.5, TARGET),
    "target.backbone.precision": ("fp64", MODELS),
    "data.limit": (50, DATA),
    "data.template": ("alpaca", DATA),
    "data.corrupt.wrong_answer": (0.2, DATA),
    "data.corrupt.mismatched_response": (0.2, DATA),
    "data.corrupt.gibberish": (0.2, DATA),
    "data.corrupt.truncated": (0.2, DATA),
    "data.corrupt.duplicate": (0.2, DATA),
    "data.corrupt.ambiguous": (0.2, DATA),
    "data.rows": (50, DATA),
    # Held-out rows are measured and never trained on.
    "data.heldout_rows": (7, {"tokens", "bare_losses", "gradient_log", "target_tokens", *MODELS}),
    "judge.against": (["full"], {"random"}),
}

# field -> another value; no result in the store depends on it
UNTOUCHING: dict[str, Any] = {
    "debug": True,
    "batch.tokens": 300,
    "adaptive.start": 4,
    "adaptive.step": 3,
    "adaptive.limit": 9,
    "adaptive.stability": 0.9,
    "adaptive.resamples": 9,
    "embeddings.max_tokens": 99,
    "embeddings.centre": False,
    "eval.path": "nowhere",
    "eval.limit": 3,
    "eval.sets.tasks.rows": 9,
    "eval.sets.tasks.seed": 9,
    "eval.sets.tasks.limit": 9,
    "generation.max_new_tokens": 9,
    "generation.batch_size": 9,
    "diagnostics.positive_drop_share": 0.9,
    "diagnostics.median_relative_drop": 0.9,
    "diagnostics.relative_variance": 0.9,
    "diagnostics.update_ratio": 0.9,
    "diagnostics.negative_selected_share": 0.9,
    "diagnostics.length_correlation": 0.9,
    "diagnostics.member_agreement": 0.9,
    "diagnostics.source_spread": 0.9,
    "diagnostics.easiness": 0.9,
    "diagnostics.bootstrap": 9,
    "diagnostics.confidence": 0.9,
    "proxy.backbone.attention": "eager",
    "ensemble.checkpoint_minutes": 3,
    "scorer.ddof": 1,  # scales every variance alike
    "target.tuning.micro_batch_tokens": 300,
    "target.max_new_tokens": 9,
    "target.backbone.attention": "eager",
    "data.columns.prompt": "other",
    "data.columns.completion": "other",
    "data.columns.messages": "other",
    "data.columns.text": "other",
    "judge.repeats": 2,
    "judge.resamples": 9,
    "judge.confidence": 0.9,
    "judge.tie_margin": 0.5,
    "judge.judge.tie_margin": 0.5,
    "trainer.accelerator": "cpu",
    "trainer.enable_model_summary": True,
    "trainer.num_sanity_val_steps": 1,
    "trainer.log_every_n_steps": 3,
    "logger.project": "other",
    "logger.name": "other",
    "logger.group": "other",
    "logger.settings.silent": False,
}

# field -> why it is not changed by itself
LEFT_OUT = {
    "until": "ends the run sooner, see the test of it",
    "run_dir": "every run of the test has its own",
    "store.path": "every run of the test has its own",
    "progress": "only what is shown",
    "batch.workers": "starts processes",
    "embeddings.encoder": "needs another model; no stage of the store is made of embeddings",
    "selector.count": "refused beside selector.fraction",
    "data.columns.instruction": "refused: the bundled tasks have one name for it",
    "data.columns.input": "refused likewise",
    "data.columns.output": "refused likewise",
    "trainer.devices": "started otherwise: tests/test_ddp.py",
    "trainer.precision": "of the targets' and adapters' training; 32-true is the one that is tested",
    "trainer.enable_checkpointing": "Lightning's own checkpoints, which nothing reads",
    "trainer.use_distributed_sampler": "for several processes: tests/test_ddp.py",
    "logger.save_dir": "every run of the test has its own",
    "logger.offline": "would ask for a network",
    "logger.settings.console": "only what is kept of the screen",
}
