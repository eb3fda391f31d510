"""What the tests' runs of the recipes have in common, and what makes one of stage 2 a run of LoRA."""

STEPS = 20
SETTINGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "logging_steps": 1,
    "save_steps": 8,
    "use_cpu": "true",
    "bf16": "false",
    "gradient_checkpointing": "false",
    "disable_tqdm": "true",
    "report_to": "none",
}
LORA = {
    "use_peft": "true",
    "lora_r": 8,
    "lora_dropout": 0,  # or two processes would draw other noise than one
    "lora_target_modules": r".*\.language_model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj",
    "lora_modules_to_save": "multi_modal_projector",
    "projector_learning_rate": 1e-3,
}
PREFER_LORA = {name: value for name, value in LORA.items() if name != "projector_learning_rate"}
